//! How many slots a layer allocates: one rule for the cache and for estimates of its memory.

use crate::facts::most_entries;
use crate::phase::Phase;
use crate::plan::LayerEvictions;

/// A cache without a decode budget gets at least this many free slots beyond its length, so that it does not grow at every
/// token. A long one gets one free slot per `SLACK_PART` entries.
pub const SLACK: usize = 16;
const SLACK_PART: usize = 32;

/// The tokens of a prompt that a layer with a window takes at a time: it has slots for these beside what its window holds,
/// however long the prompt is.
pub const PIECE: usize = 512;

/// The slots to allocate when `tokens` entries are appended to `len` and do not fit. `expected` counts the tokens of the
/// announced prompt that are still to be appended, these included. A layer with a window gets at most [`PIECE`] tokens at a
/// time.
pub fn slots_for(rules: &LayerEvictions, len: usize, tokens: usize, expected: usize) -> usize {
    let window = most_entries(rules.window);
    let now = len.saturating_add(tokens);
    let all = len.saturating_add(tokens.max(expected));
    let least = all.min(window.saturating_add(PIECE)).max(now);
    let slack = least.saturating_add(SLACK.max(least / SLACK_PART));
    let evicts = rules.prefill.is_some() || rules.decode.is_some() || all > window;
    match expected > 0 && evicts {
        // A prompt that will be trimmed gets no room for what comes after it.
        true => least,
        false => {
            let most = rules.most(Phase::Decode).saturating_add(1);
            slack.min(most).max(least)
        }
    }
}
