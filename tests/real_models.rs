//! Gemma 3 270M and Qwen2.5-Coder-0.5B-Instruct against transformers, SentencePiece and llama.cpp
//! (`tests/fixtures/real_models.py`).
//!
//! Gemma is fetched on first use; where it is neither in the cache nor to be had, its tests are skipped with a message, and
//! `POLYKV_REQUIRE_MODEL=1` makes that a failure. Qwen is used where `scripts/qwen25-coder` has put it into the cache.

#![cfg(feature = "flex")]

use polykv::models::gguf::GgufFile;
use polykv::models::hub;
use polykv::models::tokenizer::{Specials, Tokenizer};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What others computed from a model's file.
struct Golden {
    json: Value,
}

impl Golden {
    fn read(name: &str) -> Self {
        let path = root().join("tests/fixtures").join(name);
        let text = std::fs::read_to_string(path.with_extension("json")).unwrap();
        Self {
            json: serde_json::from_str(&text).unwrap(),
        }
    }
}

fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().unwrap().iter();
    list.map(|id| u32::try_from(id.as_u64().unwrap()).unwrap())
        .collect()
}

/// None, with a message, where the model cannot be had.
fn gemma3() -> Option<PathBuf> {
    hub::resolve("gemma3-270m", false, &mut |_| {})
        .map_err(|error| {
            let required = std::env::var_os("POLYKV_REQUIRE_MODEL").is_some();
            assert!(!required, "{error}");
            eprintln!("skipped: {error}");
        })
        .ok()
}

/// None, with a message, where nobody has fetched the model.
fn qwen25() -> Option<PathBuf> {
    let mut script = Command::new(root().join("scripts/qwen25-coder"));
    let output = script.arg("--cached").output();
    let output = output.ok().filter(|output| output.status.success());
    match output {
        Some(output) => Some(String::from_utf8(output.stdout).unwrap().trim_end().into()),
        None => {
            eprintln!("skipped: run scripts/qwen25-coder first, which fetches the model");
            None
        }
    }
}

fn check_tokenizer(path: &Path, golden: &Golden) -> Tokenizer {
    let tokenizer = Tokenizer::from_gguf(&GgufFile::open(path).unwrap()).unwrap();
    let cases = golden.json["tokenizer_cases"].as_array().unwrap();
    assert!(cases.len() >= 20);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        for specials in [Specials::Parse, Specials::AsText] {
            let found = tokenizer.encode(text, specials).unwrap();
            assert_eq!(found, ids(&case["ids"]), "{text:?}");
        }
        let decoded = tokenizer.decode(&ids(&case["ids"]), false).unwrap();
        assert_eq!(decoded, text);
    }
    tokenizer
}

#[test]
fn gemma3_reads_and_writes_tokens_as_sentencepiece_does() {
    let Some(path) = gemma3() else { return };
    let tokenizer = check_tokenizer(&path, &Golden::read("gemma3"));
    assert_eq!(tokenizer.start(), [2]);
    let text = "<bos><start_of_turn>user\n<unused7></s>";
    let parsed = tokenizer.encode(text, Specials::Parse).unwrap();
    assert_eq!(parsed[..2], [2, 105]);
    let literal = tokenizer.encode(text, Specials::AsText).unwrap();
    assert!(!literal.iter().any(|id| tokenizer.is_special(*id)));
    assert_eq!(tokenizer.decode(&literal, true).unwrap(), text);
}

#[test]
fn qwen25_reads_and_writes_tokens_and_chats_as_transformers_does() {
    let Some(path) = qwen25() else { return };
    let golden = Golden::read("qwen25");
    let tokenizer = check_tokenizer(&path, &golden);
    assert!(tokenizer.start().is_empty());
}
