//! How much room a layer makes: one rule for the cache and for estimates of its memory.

use crate::phase::Phase;
use crate::plan::LayerEvictions;

/// The least free slots that a cache without a decode budget gets beyond its length, so that it does not grow at every
/// token; a long one gets a part in `SLACK_PART` of its length.
const SLACK: usize = 16;
const SLACK_PART: usize = 32;

/// Slots to have when `tokens` more entries arrive at `len` and there is no room; `expected` are the tokens of the
/// announced prompt that are still to come, these included.
pub fn slots_for(rules: &LayerEvictions, len: usize, tokens: usize, expected: usize) -> usize {
    let least = len + tokens.max(expected);
    let slack = least + SLACK.max(least / SLACK_PART);
    match (rules.budget(Phase::Prefill), rules.budget(Phase::Decode)) {
        // A prompt that will be trimmed gets no room for what comes after it.
        (Some(_), _) | (_, Some(_)) if expected > 0 => least,
        (_, Some(budget)) => slack.min(budget.saturating_add(1)).max(least),
        (_, None) => slack,
    }
}
