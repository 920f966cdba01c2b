//! Windows of a text: a prefix that is compressed and the continuation that shows what was lost.

use super::{SampleInfo, id_bytes};
use crate::LoadedModel;
use crate::tokenizer::Specials;
use polykv_core::{Error, Result};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::index;

const MOST: usize = 100_000;

/// Which windows are cut from a text.
#[derive(Clone, Debug)]
pub struct WindowOptions {
    /// Tokens of the prefix, each at least 1.
    pub lengths: Vec<usize>,
    /// Tokens of the continuation, at least 1.
    pub continuation: usize,
    /// Windows per length, fewer if the text has fewer.
    pub limit: usize,
    pub seed: u64,
}

/// A piece of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub prefix: Vec<u32>,
    pub continuation: Vec<u32>,
}

/// Windows at different starts, in the order of the text; they may overlap. They are pieces of a text, so none has a
/// begin token.
///
/// # Errors
/// Lengths that are zero, beyond the model's context or beyond the text, with the numbers.
pub(super) fn cut(model: &LoadedModel, text: &str, options: &WindowOptions) -> Result<Vec<Window>> {
    let tokens = model.tokenizer.encode(text, Specials::AsText)?;
    let context = model.model.config().max_positions;
    check_counts(&[
        ("continuation", options.continuation),
        ("limit", options.limit),
        ("number of lengths", options.lengths.len()),
    ])?;
    for &length in &options.lengths {
        check_length(length, options.continuation, context)?;
        let whole = length + options.continuation;
        if whole > tokens.len() {
            let found = format!("{} tokens", tokens.len());
            let allowed = format!(
                "at least {whole}, a prefix of {length} and a continuation of {}",
                options.continuation
            );
            return Err(Error::invalid("evaluation", "text", found, allowed));
        }
    }
    let windows = options.lengths.iter().flat_map(|&length| {
        let whole = length + options.continuation;
        starts(tokens.len() - whole + 1, options.limit, options.seed)
            .into_iter()
            .map(|start| Window {
                prefix: tokens[start..start + length].to_vec(),
                continuation: tokens[start + length..start + whole].to_vec(),
            })
            .collect::<Vec<_>>()
    });
    Ok(windows.collect())
}

/// What is known of the windows as a task's samples.
pub(super) fn samples(task: &str, windows: &[Window]) -> Vec<SampleInfo> {
    let windows = windows.iter().enumerate();
    windows
        .map(|(index, window)| SampleInfo {
            id: id(task, index),
            task: task.into(),
            prompt_tokens: window.prefix.len(),
        })
        .collect()
}

pub(super) fn id(task: &str, sample: usize) -> String {
    format!("{task}#{sample}")
}

pub(super) fn fingerprint(windows: &[Window]) -> String {
    let parts = windows
        .iter()
        .flat_map(|own| [&own.prefix, &own.continuation]);
    let parts: Vec<Vec<u8>> = parts.map(|ids| id_bytes(ids)).collect();
    super::fingerprint(parts.iter().map(Vec::as_slice))
}

/// Counts have a ceiling, because all samples are made before the first one runs.
///
/// # Errors
/// Names the count.
pub(crate) fn check_counts(counts: &[(&str, usize)]) -> Result<()> {
    match counts.iter().find(|(_, count)| !(1..=MOST).contains(count)) {
        Some((field, count)) => {
            let allowed = format!("at least 1, at most {MOST}");
            Err(Error::invalid("evaluation", field, count, allowed))
        }
        None => Ok(()),
    }
}

/// Whether a prompt of `length` and `more` tokens fit the model.
///
/// # Errors
/// Names both numbers.
pub(crate) fn check_length(length: usize, more: usize, context: usize) -> Result<()> {
    if length == 0 {
        return Err(Error::invalid("evaluation", "length", 0, "at least 1"));
    }
    if length.saturating_add(more) > context {
        let found = format!("{length} and {more} tokens after it");
        let allowed = format!("at most {context} together, the model's context");
        return Err(Error::invalid("evaluation", "length", found, allowed));
    }
    Ok(())
}

/// `count` different numbers below `choices`, ascending; all if there are fewer.
pub(crate) fn starts(choices: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut starts = index::sample(&mut rng, choices, count.min(choices)).into_vec();
    starts.sort_unstable();
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_different_and_follow_the_seed() {
        let some = starts(1000, 8, 3);
        assert_eq!(some.len(), 8);
        assert!(some.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(some.iter().all(|&start| start < 1000));
        assert_eq!(some, starts(1000, 8, 3));
        assert_ne!(some, starts(1000, 8, 4));
        assert_eq!(starts(3, 8, 0), [0, 1, 2]);
    }

    #[test]
    fn lengths_must_fit_the_context() {
        assert!(check_length(384, 128, 512).is_ok());
        let message = check_length(400, 128, 512).unwrap_err().to_string();
        assert_eq!(
            message,
            "evaluation: length is 400 and 128 tokens after it; allowed: at most 512 together, the model's context"
        );
        assert!(check_length(0, 1, 512).is_err());
        assert!(check_length(usize::MAX, 1, 512).is_err());
    }
}
