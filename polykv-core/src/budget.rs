//! How much a plan may keep, before a prompt is known.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// The average number of entries per layer and KV head that a phase may keep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// Entries per layer, whatever the prompt's length.
    Tokens(usize),
    /// A share of the prompt, in (0, 1].
    Ratio(f64),
    /// Bytes of keys and values over all layers.
    Bytes(u64),
}

/// What [`Budget::Bytes`] needs to know of a model to count entries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EntryCost {
    pub layers: usize,
    /// Bytes of one entry in one layer: key and value of every sequence and KV head.
    pub bytes: usize,
}

impl Budget {
    /// The sum over all layers, in entries per KV head, for a prompt of `prompt` tokens.
    pub fn total(&self, prompt: usize, cost: EntryCost) -> usize {
        match *self {
            Self::Tokens(tokens) => tokens.saturating_mul(cost.layers),
            Self::Ratio(ratio) => (ratio * prompt as f64 * cost.layers as f64).round() as usize,
            Self::Bytes(bytes) => (bytes / cost.bytes.max(1) as u64) as usize,
        }
    }

    /// # Errors
    /// Refuses zero and a ratio outside (0, 1].
    pub fn validate(&self, place: &str) -> Result<()> {
        match *self {
            Self::Tokens(0) => Err(Error::invalid(place, "budget.tokens", 0, "at least 1")),
            Self::Bytes(0) => Err(Error::invalid(place, "budget.bytes", 0, "at least 1")),
            Self::Ratio(r) if !(r.is_finite() && r > 0.0 && r <= 1.0) => Err(Error::invalid(
                place,
                "budget.ratio",
                r,
                "above 0 and at most 1",
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: EntryCost = EntryCost {
        layers: 30,
        bytes: 1536,
    };

    #[test]
    fn each_unit_counts_entries_over_all_layers() {
        assert_eq!(Budget::Tokens(256).total(2000, COST), 7680);
        assert_eq!(Budget::Ratio(0.25).total(2000, COST), 15_000);
        assert_eq!(Budget::Bytes(1536 * 100 + 5).total(2000, COST), 100);
    }

    #[test]
    fn impossible_budgets_are_refused() {
        for budget in [
            Budget::Tokens(0),
            Budget::Bytes(0),
            Budget::Ratio(0.0),
            Budget::Ratio(1.5),
            Budget::Ratio(f64::NAN),
        ] {
            assert!(budget.validate("plan").is_err(), "{budget:?}");
        }
    }
}
