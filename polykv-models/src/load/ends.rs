//! The tokens that end an answer, from every file of a checkpoint that names some.

use super::MAX_CONFIG_BYTES;
use crate::config::{ModelConfig, generation_end_tokens, once_each};
use crate::tokenizer::Tokenizer;
use polykv_core::files::{read_capped, read_capped_text};
use polykv_core::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// Files that list every added token reach a few hundred kilobytes.
const MAX_TOKENIZER_CONFIG_BYTES: u64 = 16 << 20;

/// The end tokens of config.json, then those of generation_config.json, then the one of tokenizer_config.json; each id
/// once.
///
/// # Errors
/// Files that are there but malformed; ids beyond the vocabulary.
pub(super) fn end_tokens(
    folder: &Path,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>> {
    let mut ids = config.eos_tokens.clone();
    let generation = folder.join("generation_config.json");
    if generation.exists() {
        let text = read_capped_text(&generation, MAX_CONFIG_BYTES)?;
        let place = generation.display().to_string();
        ids.extend(generation_end_tokens(&place, &text, config.vocab_size)?);
    }
    let texts = folder.join("tokenizer_config.json");
    if texts.exists() {
        let bytes = read_capped(&texts, MAX_TOKENIZER_CONFIG_BYTES)?;
        let json: Value = serde_json::from_slice(&bytes)
            .map_err(|e| Error::invalid(texts.display(), "content", e, "a JSON object"))?;
        let token = json.get("eos_token");
        let content = token.and_then(|token| token.get("content"));
        let text = |value: Option<&'_ Value>| value.and_then(Value::as_str).map(str::to_owned);
        let token = text(token).or_else(|| text(content));
        ids.extend(token.and_then(|token| tokenizer.token_id(&token)));
    }
    Ok(once_each(ids))
}
