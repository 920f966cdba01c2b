//! Rotary embeddings, and how their frequencies are stretched for contexts longer than the original training.

use super::checks::{MAX_POSITIONS, check_positive, check_size};
use polykv_core::{Error, Result};

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
pub(super) fn mscale(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 {
        return 1.0;
    }
    0.1 * weight * factor.ln() + 1.0
}
