//! Gemma 3 270M against SentencePiece (`tests/fixtures/real_models.py`).
//!
//! It is fetched on first use; where it is neither in the cache nor to be had, the tests are skipped with a message, and
//! `POLYKV_REQUIRE_MODEL=1` makes that a failure.

#![cfg(feature = "flex")]

use polykv::models::gguf::GgufFile;
use polykv::models::hub;
use polykv::models::tokenizer::{Specials, Tokenizer};
use serde_json::Value;
use std::path::{Path, PathBuf};

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
