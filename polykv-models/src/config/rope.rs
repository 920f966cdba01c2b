//! How rotary frequencies are stretched for contexts longer than the original training.

use super::fields::Fields;
use super::{check_positive, check_size};
use polykv_core::{Error, Result};

/// A rule that maps the frequencies of the original training to those of the longer context.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Every frequency is divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies are divided by `factor`, high ones kept, those between interpolated.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_positions: usize,
    },
    /// YaRN: what makes fewer than `beta_slow` turns in the original context is divided by `factor`, what makes more
    /// than `beta_fast` is kept, those between are interpolated along the pairs of a head.
    Yarn {
        factor: f64,
        original_max_positions: usize,
        beta_fast: f64,
        beta_slow: f64,
        /// Multiplies cosines and sines, so attention scores grow by its square.
        attention_factor: f64,
        /// Whether the ends of the interpolated range are rounded outwards to whole pairs.
        truncate: bool,
    },
}

impl RopeScaling {
    /// YaRN with the published constants.
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
            check_size(place, field, found, 1 << 26)
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
    let (map, prefix) = match json.object("rope_parameters")? {
        Some(map) => (Some(map), "rope_parameters "),
        None => (json.object("rope_scaling")?, "rope_scaling "),
    };
    let top_theta = json.number("rope_theta")?;
    let Some(map) = map else {
        return Ok((top_theta.unwrap_or(10_000.0), RopeScaling::None));
    };
    let rope = Fields {
        place: json.place,
        prefix,
        map,
    };
    let theta = rope.number("rope_theta")?.or(top_theta).unwrap_or(10_000.0);
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
            let reason = format!(
                "{}: allowed are default, linear, llama3 and yarn",
                json.place
            );
            let what = format!("{prefix}type {}", super::fields::shown(other));
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
