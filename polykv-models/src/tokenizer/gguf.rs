//! The vocabulary of a GGUF file as a tokenizer.json, so that both sources take one way into the tokenizers crate.

use crate::gguf::GgufFile;
use polykv_core::{Error, Result};
use serde_json::{Map, Value, json};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const BOS: &str = "tokenizer.ggml.bos_token_id";

/// ggml's numbers for kinds of tokens.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// As published in the tokenizer.json of Llama 3.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As published in the tokenizer.json of Qwen 2.
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What `tokenizer.ggml.pre` stands for.
struct Pre {
    pre_tokenizer: Value,
    normalizer: Value,
    /// Whether a word that is a token is taken whole, whatever the merges say.
    ignore_merges: bool,
    /// Whether the published tokenizer puts a begin token before a text, for files that do not say.
    add_bos: bool,
}

/// Fails when a key is missing or malformed, or names a model or pre-tokenizer that is not known.
pub(super) fn tokenizer_json(file: &GgufFile) -> Result<Value> {
    let refuse = |field: &str, found: String, allowed: &str| {
        Err(Error::invalid(file.place(), field, found, allowed))
    };
    match file.text("tokenizer.ggml.model")? {
        Some("gpt2") => {}
        found => {
            let what = format!("tokenizer.ggml.model {found:?}");
            let reason = format!("{}: only gpt2 (byte-level BPE) can be read", file.place());
            return Err(Error::unsupported(what, reason));
        }
    }
    let pre = pre_tokenizer(file)?;
    let Some(tokens) = file.texts(TOKENS)? else {
        return refuse(TOKENS, "missing".into(), "an array of texts");
    };
    let types = match file.uints(TYPES)? {
        Some(types) => types,
        None => vec![1; tokens.len()],
    };
    if types.len() != tokens.len() {
        let allowed = format!("{}, as many as there are tokens", tokens.len());
        return refuse(TYPES, format!("an array of {}", types.len()), &allowed);
    }

    let mut vocab = Map::new();
    let mut added = Vec::new();
    for (id, (token, kind)) in tokens.iter().zip(&types).enumerate() {
        if vocab.insert((*token).to_owned(), id.into()).is_some() {
            return refuse(TOKENS, format!("{token:?} twice"), "each token once");
        }
        if matches!(*kind, CONTROL | USER_DEFINED) {
            added.push(json!({
                "id": id, "content": token, "special": *kind == CONTROL,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            }));
        }
    }
    let mut merges = Vec::new();
    for merge in file.texts(MERGES)?.unwrap_or_default() {
        match merge.split_once(' ') {
            Some((a, b)) if !a.is_empty() && !b.is_empty() => merges.push(json!([a, b])),
            _ => {
                return refuse(
                    MERGES,
                    format!("{merge:?}"),
                    "two tokens with a space between",
                );
            }
        }
    }
    Ok(json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": pre.normalizer,
        "pre_tokenizer": pre.pre_tokenizer,
        "post_processor": post_processor(file, &tokens, pre.add_bos)?,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.ignore_merges, "vocab": vocab, "merges": merges,
        },
    }))
}

/// The begin token before a text, where the file asks for it.
fn post_processor(file: &GgufFile, tokens: &[&str], by_default: bool) -> Result<Value> {
    let add = file.flag("tokenizer.ggml.add_bos_token")?;
    let (true, Some(id)) = (add.unwrap_or(by_default), file.uint(BOS)?) else {
        return Ok(Value::Null);
    };
    let Some(token) = usize::try_from(id).ok().and_then(|at| tokens.get(at)) else {
        let allowed = format!("below {}, the number of tokens", tokens.len());
        return Err(Error::invalid(file.place(), BOS, id, allowed));
    };
    let begin = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |id: &str, type_id: u32| json!({"Sequence": {"id": id, "type_id": type_id}});
    Ok(json!({
        "type": "TemplateProcessing",
        "single": [begin, text("A", 0)],
        "pair": [begin, text("A", 0), text("B", 1)],
        "special_tokens": {*token: {"id": token, "ids": [id], "tokens": [token]}},
    }))
}

fn pre_tokenizer(file: &GgufFile) -> Result<Pre> {
    let plain = |pre_tokenizer| Pre {
        pre_tokenizer,
        normalizer: Value::Null,
        ignore_merges: false,
        add_bos: false,
    };
    Ok(
        match file.text("tokenizer.ggml.pre")?.unwrap_or("default") {
            "default" | "gpt-2" => plain(byte_level(true)),
            "smollm" => plain(json!({
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level(true)],
            })),
            "llama-bpe" | "llama3" | "llama-v3" => Pre {
                ignore_merges: true,
                add_bos: true,
                ..plain(split(LLAMA3_SPLIT))
            },
            "qwen2" => Pre {
                normalizer: json!({"type": "NFC"}),
                ..plain(split(QWEN2_SPLIT))
            },
            other => {
                let reason = format!(
                    "{}: allowed are smollm, default, gpt-2, llama-bpe, llama3 and qwen2",
                    file.place()
                );
                return Err(Error::unsupported(
                    format!("tokenizer.ggml.pre {other:?}"),
                    reason,
                ));
            }
        },
    )
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
