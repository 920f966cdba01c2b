//! How rotary frequencies are stretched for contexts longer than the original training.

use super::checks::{MAX_POSITIONS, check_positive, check_size};
use super::fields::{Fields, shown};
use polykv_core::{Error, Result};
use serde_json::{Map, Value};

/// The share of a head that is rotated.
const PARTIAL: &str = "partial_rotary_factor";

/// The rotary embedding (RoPE) of queries and keys in one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// How many elements of a head are rotated, from its first one; even. The others stay as they are.
    pub rotated: usize,
    /// How the frequencies are scaled for longer contexts.
    pub scaling: RopeScaling,
}

impl RopeConfig {
    /// An embedding that rotates all elements of a head and is not scaled.
    #[must_use]
    pub fn new(theta: f64, head_dim: usize) -> Self {
        Self {
            theta,
            rotated: head_dim,
            scaling: RopeScaling::None,
        }
    }

    pub(super) fn validate(&self, place: &str) -> Result<()> {
        self.scaling.validate(place, self.theta)?;
        let pairs = self.rotated / 2;
        match &self.scaling {
            RopeScaling::LongRope { divisors, .. } if divisors.len() != pairs => {
                let allowed = format!("{pairs}, one per rotated pair of a head");
                let field = "number of rope factors";
                Err(Error::invalid(place, field, divisors.len(), allowed))
            }
            _ => Ok(()),
        }
    }
}

/// A rule that maps the frequencies of the original training to those of the longer context.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// No scaling: the frequencies of the training.
    None,
    /// Every frequency is divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies are divided by `factor`, high ones kept, those between interpolated.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Frequencies with fewer turns than this in the original context are low.
        low_freq_factor: f64,
        /// Frequencies with more turns than this in the original context are high.
        high_freq_factor: f64,
        /// The context of the original training, in tokens.
        original_max_positions: usize,
    },
    /// YaRN (Peng et al. 2023, arXiv 2309.00071): frequencies with fewer than `beta_slow` turns in the original context
    /// are divided by `factor`, those with more than `beta_fast` are kept, and those between are interpolated along the
    /// pairs of a head.
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// The context of the original training, in tokens.
        original_max_positions: usize,
        /// Turns in the original context above which a frequency is kept.
        beta_fast: f64,
        /// Turns in the original context below which a frequency is divided by `factor`.
        beta_slow: f64,
        /// Multiplies cosines and sines, so attention scores grow by its square.
        attention_factor: f64,
        /// Whether the ends of the interpolated range are rounded outwards to whole pairs.
        truncate: bool,
    },
    /// LongRoPE (Ding et al. 2024, arXiv 2402.13753): every frequency is divided by a factor of its own that was searched
    /// for. Checkpoints hold factors for contexts up to that of the original training and for longer ones; which of
    /// them are used follows from the model's context, see [`RopeScaling::longrope`].
    LongRope {
        /// The divisor of each frequency, fastest first.
        divisors: Vec<f64>,
        /// Multiplies cosines and sines, so attention scores grow by its square.
        attention_factor: f64,
    },
}

impl RopeScaling {
    /// YaRN with the constants of its paper: `beta_fast` 32, `beta_slow` 1, an attention factor of 0.1 ln(factor) + 1.
    #[must_use]
    pub fn yarn(factor: f64, original_max_positions: usize) -> Self {
        Self::Yarn {
            factor,
            original_max_positions,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: mscale(factor, 1.0),
            truncate: true,
        }
    }

    /// LongRoPE of a model whose context is `max_positions` and was `original` in its first training: the long divisors if
    /// the context is longer, else the short ones. Without a stated `attention_factor` it is √(1 + ln(s) / ln(original)) for
    /// a context s times as long.
    ///
    /// The context decides once for all prompts, as in llama.cpp and vLLM, so that keys in a cache always agree.
    /// Transformers decides anew for each sequence by its length so far, and computes a prompt again when it grows beyond
    /// `original`; a cache that has been trimmed cannot do that.
    #[must_use]
    pub fn longrope(
        [short, long]: [Vec<f64>; 2],
        attention_factor: Option<f64>,
        max_positions: usize,
        original: usize,
    ) -> Self {
        let stretch = max_positions as f64 / original as f64;
        let published = || match stretch > 1.0 {
            true => (1.0 + stretch.ln() / (original as f64).ln()).sqrt(),
            false => 1.0,
        };
        Self::LongRope {
            divisors: if max_positions > original {
                long
            } else {
                short
            },
            attention_factor: attention_factor.unwrap_or_else(published),
        }
    }

    /// What cosines and sines are multiplied by; 1 for most rules.
    #[must_use]
    pub fn magnitude(&self) -> f64 {
        match *self {
            Self::Yarn {
                attention_factor, ..
            }
            | Self::LongRope {
                attention_factor, ..
            } => attention_factor,
            _ => 1.0,
        }
    }

    /// The longest context, in tokens, of a model whose config says `max_positions`. YaRN is often added to a config
    /// without a change of that number, so `factor` times the original context counts if it is more. Scaling that is
    /// out of range changes nothing here; the validation of the config refuses it.
    #[must_use]
    pub fn context(&self, max_positions: usize) -> usize {
        let Self::Yarn {
            factor,
            original_max_positions,
            ..
        } = *self
        else {
            return max_positions;
        };
        match factor * original_max_positions as f64 {
            stretched if stretched.is_finite() && stretched > max_positions as f64 => {
                // One above the limit is refused as any other number above it.
                stretched.min(MAX_POSITIONS as f64 + 1.0) as usize
            }
            _ => max_positions,
        }
    }

    pub(super) fn validate(&self, place: &str, theta: f64) -> Result<()> {
        let positive = |name: &str, found: f64| {
            check_positive(place, &format!("rope_scaling {name}"), found, 1e6)
        };
        let above = |name: &str, found: f64, low_name: &str, low: f64| {
            if found > low {
                return Ok(());
            }
            let allowed = format!("above {low_name}, {low}");
            Err(Error::invalid(
                place,
                format!("rope_scaling {name}"),
                found,
                allowed,
            ))
        };
        let original = |found: usize| {
            let field = "rope_scaling original_max_position_embeddings";
            check_size(place, field, found, MAX_POSITIONS)
        };
        match *self {
            Self::None => Ok(()),
            Self::LongRope {
                ref divisors,
                attention_factor,
            } => {
                positive("attention_factor", attention_factor)?;
                divisors
                    .iter()
                    .try_for_each(|&divisor| positive("factor of a pair", divisor))
            }
            Self::Linear { factor } => positive("factor", factor),
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions,
            } => {
                positive("factor", factor)?;
                positive("low_freq_factor", low)?;
                positive("high_freq_factor", high)?;
                original(original_max_positions)?;
                above("high_freq_factor", high, "low_freq_factor", low)
            }
            Self::Yarn {
                factor,
                original_max_positions,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate: _,
            } => {
                positive("factor", factor)?;
                positive("beta_fast", beta_fast)?;
                positive("beta_slow", beta_slow)?;
                positive("attention_factor", attention_factor)?;
                original(original_max_positions)?;
                above("beta_fast", beta_fast, "beta_slow", beta_slow)?;
                if theta <= 1.0 {
                    // The rule divides by the logarithm of theta.
                    let allowed = "above 1 with yarn scaling";
                    return Err(Error::invalid(place, "rope_theta", theta, allowed));
                }
                Ok(())
            }
        }
    }
}

/// By how much YaRN enlarges cosines and sines for a context `factor` times as long.
fn mscale(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 {
        return 1.0;
    }
    0.1 * weight * factor.ln() + 1.0
}

/// The key of layers that see every token, in files with one object per kind of layer.
const FULL: &str = "full_attention";
/// The key of layers with a window.
const SLIDING: &str = "sliding_attention";

/// What a family's rotary embeddings are where its config says nothing.
#[derive(Clone, Copy)]
pub(super) struct RopeDefaults {
    /// The base.
    pub theta: f64,
    /// The base in layers with a window, which are not scaled then; `None` if they have the same embedding as the others.
    pub local_theta: Option<f64>,
}

/// The sizes that rotary embeddings depend on.
#[derive(Clone, Copy)]
pub(super) struct RopeSizes {
    pub head_dim: usize,
    pub max_positions: usize,
    /// The context of the original training, if the file states one beside the rotary embedding.
    pub original: Option<usize>,
}

/// The rotary embeddings of layers that see every token and of those with a window. Newer files hold them in
/// `rope_parameters`, one object per kind if they differ, older ones in fields beside each other.
pub(super) fn read(
    json: &Fields,
    defaults: RopeDefaults,
    sizes: RopeSizes,
) -> Result<[RopeConfig; 2]> {
    let top = RopeConfig {
        theta: json.number("rope_theta")?.unwrap_or(defaults.theta),
        rotated: rotated(json, sizes.head_dim)?.unwrap_or(sizes.head_dim),
        scaling: RopeScaling::None,
    };
    let maps = [
        ("rope_parameters", json.object("rope_parameters")?),
        ("rope_scaling", json.object("rope_scaling")?),
    ];
    let mut found: Option<[RopeConfig; 2]> = None;
    for (field, map) in maps {
        let Some(map) = map else { continue };
        // What rope_parameters say of the base counts for rope_scaling too.
        let top = found.as_ref().map_or(&top, |[full, _]| full);
        let kinds = read_kinds(json, field, map, top, defaults, sizes)?;
        if found.as_ref().is_some_and(|before| *before != kinds) {
            let found = "not what rope_parameters say";
            let allowed = "the same as rope_parameters, or only one of the two";
            return Err(Error::invalid(json.place, field, found, allowed));
        }
        found = Some(kinds);
    }
    match found {
        Some(kinds) => Ok(kinds),
        None => {
            let local = local(json, &top, defaults)?;
            Ok([top, local])
        }
    }
}

/// The embedding of layers with a window, where no object of theirs states one.
fn local(json: &Fields, full: &RopeConfig, defaults: RopeDefaults) -> Result<RopeConfig> {
    let Some(theta) = defaults.local_theta else {
        return Ok(full.clone());
    };
    Ok(RopeConfig {
        theta: json.number("rope_local_base_freq")?.unwrap_or(theta),
        scaling: RopeScaling::None,
        ..full.clone()
    })
}

fn read_kinds(
    json: &Fields,
    field: &str,
    map: &Map<String, Value>,
    top: &RopeConfig,
    defaults: RopeDefaults,
    sizes: RopeSizes,
) -> Result<[RopeConfig; 2]> {
    let object = |kind: &str| map.get(kind).and_then(Value::as_object);
    let one = |kind: &str, map, top: &RopeConfig| {
        read_map(json.place, &format!("{field} {kind}"), map, top, sizes)
    };
    if let Some((name, _)) = map
        .iter()
        .find(|(name, value)| value.is_object() && ![FULL, SLIDING].contains(&name.as_str()))
    {
        let what = format!("{field} with an object {}", shown(name));
        let reason = format!(
            "{}: allowed are plain values, or objects {FULL} and {SLIDING}",
            json.place
        );
        return Err(Error::unsupported(what, reason));
    }
    let full = match (object(FULL), object(SLIDING)) {
        (None, None) => read_map(json.place, field, map, top, sizes)?,
        (Some(full), _) => one(FULL, full, top)?,
        (None, Some(_)) => top.clone(),
    };
    let local = local(json, &full, defaults)?;
    let sliding = match object(SLIDING) {
        Some(sliding) => one(SLIDING, sliding, &local)?,
        None => local,
    };
    Ok([full, sliding])
}

/// How many elements of a head are rotated, if that is stated.
fn rotated(json: &Fields, head_dim: usize) -> Result<Option<usize>> {
    let Some(part) = json.number(PARTIAL)? else {
        return Ok(None);
    };
    check_positive(json.place, &format!("{}{PARTIAL}", json.prefix), part, 1.0)?;
    Ok(Some((head_dim as f64 * part) as usize))
}

fn read_map(
    place: &str,
    field: &str,
    map: &Map<String, Value>,
    top: &RopeConfig,
    sizes: RopeSizes,
) -> Result<RopeConfig> {
    let prefix = format!("{field} ");
    let rope = Fields {
        place,
        prefix: &prefix,
        map,
    };
    let kind = match rope.text("rope_type")? {
        Some(kind) => kind,
        None => rope.text("type")?.unwrap_or("default"),
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear {
            factor: rope.required_number("factor")?,
        },
        "llama3" => RopeScaling::Llama3 {
            factor: rope.required_number("factor")?,
            low_freq_factor: rope.required_number("low_freq_factor")?,
            high_freq_factor: rope.required_number("high_freq_factor")?,
            original_max_positions: rope.required("original_max_position_embeddings")?,
        },
        "yarn" => read_yarn(&rope, sizes.max_positions)?,
        "longrope" | "su" => read_longrope(&rope, sizes)?,
        other => {
            let reason = format!("{place}: allowed are default, linear, llama3, yarn and longrope");
            let what = format!("{prefix}type {}", shown(other));
            return Err(Error::unsupported(what, reason));
        }
    };
    Ok(RopeConfig {
        theta: rope.number("rope_theta")?.unwrap_or(top.theta),
        rotated: rotated(&rope, sizes.head_dim)?.unwrap_or(top.rotated),
        scaling,
    })
}

/// The original context is stated here or beside the rotary embedding.
fn read_longrope(rope: &Fields, sizes: RopeSizes) -> Result<RopeScaling> {
    let original = match rope.size("original_max_position_embeddings")? {
        Some(original) => Some(original),
        None => sizes.original,
    };
    let factors = [
        rope.required_numbers("short_factor")?,
        rope.required_numbers("long_factor")?,
    ];
    let attention_factor = rope.number("attention_factor")?;
    let original = original.ok_or_else(|| rope.missing("original_max_position_embeddings"))?;
    let field = format!("{}original_max_position_embeddings", rope.prefix);
    check_size(rope.place, &field, original, MAX_POSITIONS)?;
    Ok(RopeScaling::longrope(
        factors,
        attention_factor,
        sizes.max_positions,
        original,
    ))
}

/// Defaults as in transformers.
fn read_yarn(rope: &Fields, max_positions: usize) -> Result<RopeScaling> {
    let factor = rope.required_number("factor")?;
    let weights = (rope.number("mscale")?, rope.number("mscale_all_dim")?);
    let attention_factor = match (rope.number("attention_factor")?, weights) {
        (Some(given), _) => given,
        (None, (Some(part), Some(all))) if part != 0.0 && all != 0.0 => {
            mscale(factor, part) / mscale(factor, all)
        }
        (None, _) => mscale(factor, 1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_max_positions: rope
            .size("original_max_position_embeddings")?
            .unwrap_or(max_positions),
        beta_fast: rope.number("beta_fast")?.unwrap_or(32.0),
        beta_slow: rope.number("beta_slow")?.unwrap_or(1.0),
        attention_factor,
        truncate: rope.flag("truncate")?.unwrap_or(true),
    })
}
