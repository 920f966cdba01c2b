//! Byte-level BPE, which GGUF calls `gpt2`: merges in their order, and a pre-tokenizer by name.

use super::Parts;
use crate::gguf::GgufFile;
use polykv_core::{Error, Result};
use serde_json::{Value, json};

const MERGES: &str = "tokenizer.ggml.merges";
const PRE: &str = "tokenizer.ggml.pre";

/// As published in the tokenizer.json of Llama 3; of the same meaning as tiktoken's `cl100k_base`.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As published in the tokenizer.json of Qwen 2.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As published by tiktoken under the name `o200k_base`.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As published in the tekken.json of Mistral Nemo.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// # Errors
/// Merges that are malformed; a pre-tokenizer that is not known.
pub(super) fn parts(file: &GgufFile) -> Result<Parts<'_>> {
    let mut merges = Vec::new();
    for merge in file.texts(MERGES)?.unwrap_or_default() {
        match merge.split_once(' ') {
            Some((a, b)) if !a.is_empty() && !b.is_empty() => merges.push((a, b)),
            _ => {
                let allowed = "two tokens with a space between";
                let found = format!("{merge:?}");
                return Err(Error::invalid(file.place(), MERGES, found, allowed));
            }
        }
    }
    let plain = |pre_tokenizer| Parts {
        normalizer: Value::Null,
        pre_tokenizer,
        decoder: byte_level(true),
        byte_fallback: false,
        ignore_merges: false,
        merges,
        add_bos: false,
    };
    let parts = match file.text(PRE)?.unwrap_or("default") {
        "default" | "gpt-2" => plain(byte_level(true)),
        "smollm" => plain(json!({
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level(true)],
        })),
        "llama-bpe" | "llama3" | "llama-v3" => Parts {
            ignore_merges: true,
            add_bos: true,
            ..plain(split(LLAMA3))
        },
        // Phi-4 and SmolLM3, as converters name them.
        "dbrx" | "smaug-bpe" => plain(split(LLAMA3)),
        "qwen2" | "deepseek-r1-qwen" => Parts {
            normalizer: json!({"type": "NFC"}),
            ..plain(split(QWEN2))
        },
        "gpt-4o" => plain(split(GPT4O)),
        "tekken" => Parts {
            ignore_merges: true,
            add_bos: true,
            ..plain(split(TEKKEN))
        },
        other => {
            let reason = format!(
                "{}: allowed are default, gpt-2, smollm, llama-bpe, llama3, dbrx, smaug-bpe, qwen2, deepseek-r1-qwen, \
                 gpt-4o and tekken",
                file.place()
            );
            return Err(Error::unsupported(format!("{PRE} {other:?}"), reason));
        }
    };
    Ok(parts)
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn split(regex: &str) -> Value {
    json!({
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
            byte_level(false),
        ],
    })
}
