//! Budgets for prompts of any length.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

use crate::codes::Codes;
use crate::facts::most_entries;
use crate::ops::coded::Exact;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How many entries per KV head the layers may keep in each phase. The number is fixed when a prompt is announced: while
/// decoding, a ratio stays that part of the tokens up to the end of the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// Entries per layer on average, whatever the prompt's length; at least 1.
    Tokens(usize),
    /// Entries over all layers, whatever the prompt's length; at least 1.
    Total(usize),
    /// This part of what all layers hold without eviction at the end of the prompt, in (0, 1]: of all tokens, in a layer with
    /// a window of those in it.
    Ratio(f64),
    /// This part of the bytes that all layers take without eviction at the end of the prompt if keys and values are 16-bit
    /// floats, in (0, 1], whatever the layers keep them in.
    ByteRatio(f64),
    /// Bytes of keys and values over all layers; at least 1.
    Bytes(u64),
}

/// What a budget needs to know of a model's cache: the windows of its layers and the memory of an entry.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryCost {
    /// The window of each of the model's layers, see [`LayerFacts::window`](crate::LayerFacts::window); `None` for a layer
    /// that sees everything.
    pub windows: Arc<[Option<usize>]>,
    /// Bytes of one entry in one layer: its key and value for every sequence and KV head.
    pub bytes: usize,
    /// The same of an entry in 16-bit floats, whatever the cache's type.
    pub half: usize,
    /// The same of an entry in codes, in the order of [`Codes::ALL`].
    pub coded: [usize; 2],
}

impl EntryCost {
    /// The most entries per KV head that a layer ever holds: what its window holds beside the next token, `usize::MAX`
    /// without a window.
    pub fn most(&self, layer: usize) -> usize {
        most_entries(self.windows.get(layer).copied().flatten())
    }

    /// Bytes of one entry in a layer that keeps its entries in codes, or in the cache's type.
    pub fn bytes_in(&self, codes: Option<Codes>) -> usize {
        let [q8, q4] = self.coded;
        match codes {
            None => self.bytes,
            Some(Codes::Q8) => q8,
            Some(Codes::Q4) => q4,
        }
    }

    /// Bytes that a layer which keeps its entries in codes takes beside them: of the few that stay in floats.
    pub fn bytes_beside(&self, codes: Option<Codes>) -> usize {
        match codes {
            Some(Codes::Q4) => self.bytes.saturating_mul(Exact::COUNT),
            Some(Codes::Q8) | None => 0,
        }
    }

    /// The entries per KV head that all layers hold together after `tokens` tokens without eviction.
    pub fn full(&self, tokens: usize) -> usize {
        let layers = (0..self.windows.len()).map(|layer| self.most(layer).min(tokens));
        layers.fold(0, usize::saturating_add)
    }
}

impl Budget {
    /// The entries per KV head of all layers together, for a prompt of `prompt` tokens, if no layer keeps them in codes.
    pub fn total(&self, prompt: usize, cost: &EntryCost) -> usize {
        match *self {
            Self::Tokens(tokens) => tokens.saturating_mul(cost.windows.len()),
            Self::Total(total) => total,
            Self::Ratio(ratio) => (ratio * cost.full(prompt) as f64).round() as usize,
            Self::ByteRatio(_) | Self::Bytes(_) => {
                let bytes = self.bytes(prompt, cost).unwrap_or(0);
                bytes.checked_div(cost.bytes).unwrap_or(0)
            }
        }
    }

    /// The bytes of all layers together for a prompt of `prompt` tokens; `None` for a budget that counts entries.
    pub fn bytes(&self, prompt: usize, cost: &EntryCost) -> Option<usize> {
        match *self {
            Self::Bytes(bytes) => Some(usize::try_from(bytes).unwrap_or(usize::MAX)),
            Self::ByteRatio(ratio) => {
                let full = cost.full(prompt).saturating_mul(cost.half);
                Some((ratio * full as f64) as usize)
            }
            _ => None,
        }
    }

    /// Whether the budget counts bytes, so that the layers' formats decide how many entries it holds.
    pub fn counts_bytes(&self) -> bool {
        matches!(self, Self::ByteRatio(_) | Self::Bytes(_))
    }

    /// Checks the range of the budget.
    ///
    /// # Errors
    /// A budget of 0, more than 2^40 entries, and a ratio outside of (0, 1].
    pub fn check(&self) -> Result<()> {
        let (name, found) = match *self {
            Self::Tokens(0) => ("tokens", "0".to_string()),
            Self::Total(0) => ("total", "0".to_string()),
            Self::Bytes(0) => ("bytes", "0".to_string()),
            Self::Tokens(n) if n > MOST => ("tokens", n.to_string()),
            Self::Total(n) if n > MOST => ("total", n.to_string()),
            Self::Ratio(r) if !is_part(r) => {
                return Err(Error::budget("budget.ratio", r, "above 0 and at most 1"));
            }
            Self::ByteRatio(r) if !is_part(r) => {
                return Err(Error::budget(
                    "budget.byte_ratio",
                    r,
                    "above 0 and at most 1",
                ));
            }
            _ => return Ok(()),
        };
        let allowed = match self {
            Self::Bytes(_) => "at least 1".to_string(),
            _ => format!("at least 1, at most {MOST}"),
        };
        Err(Error::budget(format!("budget.{name}"), found, allowed))
    }
}

fn is_part(ratio: f64) -> bool {
    ratio.is_finite() && ratio > 0.0 && ratio <= 1.0
}

/// More entries than any memory holds; sums over layers cannot overflow below it.
const MOST: usize = 1 << 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_counts_entries_over_all_layers() {
        let cost = EntryCost {
            windows: [None; 30].into(),
            bytes: 3072,
            half: 1536,
            coded: [864, 480],
        };
        assert_eq!(Budget::Tokens(256).total(2000, &cost), 7680);
        assert_eq!(Budget::Total(2240).total(2000, &cost), 2240);
        assert_eq!(Budget::Ratio(0.25).total(2000, &cost), 15_000);
        assert_eq!(Budget::Bytes(3072 * 100 + 5).total(2000, &cost), 100);
        let bytes = Budget::ByteRatio(0.25);
        assert_eq!(bytes.bytes(2000, &cost), Some(1536 * 15_000));
        assert_eq!(bytes.total(2000, &cost), 7500);
    }

    #[test]
    fn a_ratio_is_taken_of_what_windows_hold() {
        let cost = EntryCost {
            windows: [Some(513), Some(513), None].into(),
            bytes: 1,
            half: 1,
            coded: [1, 1],
        };
        assert_eq!(cost.full(2000), 2 * 512 + 2000);
        assert_eq!(Budget::Ratio(0.25).total(2000, &cost), 756);
        assert_eq!(Budget::Ratio(1.0).total(100, &cost), 300);
    }

    #[test]
    fn impossible_budgets_are_refused() {
        for budget in [
            Budget::Tokens(0),
            Budget::Tokens(usize::MAX),
            Budget::Total(0),
            Budget::Bytes(0),
            Budget::Ratio(0.0),
            Budget::Ratio(1.5),
            Budget::Ratio(f64::NAN),
            Budget::ByteRatio(0.0),
            Budget::ByteRatio(1.5),
        ] {
            assert!(budget.check().is_err(), "{budget:?}");
        }
    }
}
