//! How many slots a layer allocates: one rule for the cache and for estimates of its memory.

use crate::phase::Phase;
use crate::plan::LayerEvictions;

/// A cache without a decode budget gets at least this many free slots beyond its length, so that it does not grow at every
/// token. A long one gets one free slot per `SLACK_PART` entries.
const SLACK: usize = 16;
const SLACK_PART: usize = 32;

/// The slots to allocate when `tokens` entries are appended to `len` and do not fit. `expected` counts the tokens of the
/// announced prompt that are still to be appended, these included.
pub fn slots_for(rules: &LayerEvictions, len: usize, tokens: usize, expected: usize) -> usize {
    let least = len.saturating_add(tokens.max(expected));
    let slack = least.saturating_add(SLACK.max(least / SLACK_PART));
    match (rules.budget(Phase::Prefill), rules.budget(Phase::Decode)) {
        // A prompt that will be trimmed gets no room for what comes after it.
        (Some(_), _) | (_, Some(_)) if expected > 0 => least,
        (_, Some(budget)) => slack.min(budget.saturating_add(1)).max(least),
        (_, None) => slack,
    }
}
