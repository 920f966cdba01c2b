//! Windows of a text: a prefix that is compressed and the continuation that shows what was lost.

use super::{SampleInfo, id_bytes};
use crate::LoadedModel;
use crate::texts::draw::{check_counts, check_length, of_text, starts};
use crate::tokenizer::Specials;
use polykv_core::{Error, Result};

/// How windows are cut from a text.
#[derive(Clone, Debug)]
pub struct WindowOptions {
    /// Lengths of the prefix in tokens, each at least 1.
    pub lengths: Vec<usize>,
    /// Tokens of the continuation, at least 1.
    pub continuation: usize,
    /// Windows per length, fewer if the text has fewer.
    pub limit: usize,
    /// Seed of the starts.
    pub seed: u64,
}

/// A piece of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub prefix: Vec<u32>,
    pub continuation: Vec<u32>,
}

/// Windows at different starts, in the order of the text; they may overlap. A prefix begins with the begin token of a model
/// that was trained with one, which counts among its tokens: such models know no text without it.
///
/// # Errors
/// Lengths that are zero, beyond the model's context or beyond the text, with the numbers.
pub(super) fn cut(model: &LoadedModel, text: &str, options: &WindowOptions) -> Result<Vec<Window>> {
    let tokens = model.tokenizer.encode(text, Specials::AsText)?;
    let begin = model.tokenizer.start();
    let context = model.model.config().max_positions;
    check_counts(&[
        ("continuation", options.continuation),
        ("limit", options.limit),
        ("number of lengths", options.lengths.len()),
    ])?;
    for &length in &options.lengths {
        check_length(length, options.continuation, context)?;
        let whole = of_text(length, begin)?.saturating_add(options.continuation);
        if whole > tokens.len() {
            let found = format!("{} tokens", tokens.len());
            let allowed = format!(
                "at least {whole}, for a prefix of {length} and a continuation of {}",
                options.continuation
            );
            return Err(Error::invalid("evaluation", "text", found, allowed));
        }
    }
    let windows = options.lengths.iter().flat_map(|&length| {
        let length = length.saturating_sub(begin.len());
        let whole = length.saturating_add(options.continuation);
        let count = tokens.len().saturating_sub(whole).saturating_add(1);
        let starts = starts(count, options.limit, options.seed).into_iter();
        let tokens = tokens.as_slice();
        starts.filter_map(move |start| {
            let window = tokens.get(start..start.saturating_add(whole))?;
            let (prefix, continuation) = window.split_at_checked(length)?;
            Some(Window {
                prefix: [begin, prefix].concat(),
                continuation: continuation.to_vec(),
            })
        })
    });
    Ok(windows.collect())
}

/// The facts about the windows as samples of a task.
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
        .flat_map(|window| [&window.prefix, &window.continuation]);
    let parts: Vec<Vec<u8>> = parts.map(|ids| id_bytes(ids)).collect();
    super::fingerprint(parts.iter().map(Vec::as_slice))
}
