//! How rotary frequencies are stretched for contexts longer than the original training.

use super::checks::{MAX_POSITIONS, check_positive, check_size};
use super::fields::{Fields, shown};
use polykv_core::{Error, Result};
use serde_json::{Map, Value};

/// The share of a head that is rotated; only whole heads are.
pub(super) const PARTIAL: &str = "partial_rotary_factor";

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

/// Theta and scaling. Newer files hold both in `rope_parameters`, older ones beside each other.
pub(super) fn read(json: &Fields, max_positions: usize) -> Result<(f64, RopeScaling)> {
    let top_theta = json.number("rope_theta")?.unwrap_or(10_000.0);
    let newer = json.object("rope_parameters")?;
    let newer =
        newer.map(|map| read_map(json.place, "rope_parameters", map, top_theta, max_positions));
    let newer = newer.transpose()?;
    let Some(map) = json.object("rope_scaling")? else {
        return Ok(newer.unwrap_or((top_theta, RopeScaling::None)));
    };
    let theta = newer.as_ref().map_or(top_theta, |(theta, _)| *theta);
    let older = read_map(json.place, "rope_scaling", map, theta, max_positions)?;
    if newer.is_some_and(|newer| newer != older) {
        let found = "not what rope_parameters say";
        let allowed = "the same as rope_parameters, or only one of the two";
        return Err(Error::invalid(json.place, "rope_scaling", found, allowed));
    }
    Ok(older)
}

/// The key that files with several kinds of layers give to those that see every token.
const FULL_ATTENTION: &str = "full_attention";

fn read_map(
    place: &str,
    field: &str,
    map: &Map<String, Value>,
    top_theta: f64,
    max_positions: usize,
) -> Result<(f64, RopeScaling)> {
    // One object per kind of layer. Configs with other kinds than full attention are refused before.
    if let Some(inner) = map.get(FULL_ATTENTION).and_then(Value::as_object)
        && map.len() == 1
    {
        let field = format!("{field} {FULL_ATTENTION}");
        return read_map(place, &field, inner, top_theta, max_positions);
    }
    if let Some((name, _)) = map.iter().find(|(_, value)| value.is_object()) {
        let what = format!("{field} with an object {}", shown(name));
        let reason = format!("{place}: allowed are plain values, or one object {FULL_ATTENTION}");
        return Err(Error::unsupported(what, reason));
    }
    let prefix = format!("{field} ");
    let rope = Fields {
        place,
        prefix: &prefix,
        map,
    };
    if let Some(part) = rope.number(PARTIAL)?
        && part != 1.0
    {
        let reason = format!("{place}: there is no code for it");
        return Err(Error::unsupported(
            format!("{prefix}{PARTIAL} {part}"),
            reason,
        ));
    }
    let theta = rope.number("rope_theta")?.unwrap_or(top_theta);
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
        "yarn" => read_yarn(&rope, max_positions)?,
        other => {
            let reason = format!("{place}: allowed are default, linear, llama3 and yarn");
            let what = format!("{prefix}type {}", shown(other));
            return Err(Error::unsupported(what, reason));
        }
    };
    Ok((theta, scaling))
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
