use super::*;
use crate::gguf::Value;
use crate::gguf::testing::{Gguf, tiny_llama};

fn tiny_json() -> serde_json::Value {
    let bytes = gguf::tokenizer_json(&tiny_llama().open()).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn tiny() -> Tokenizer {
    Tokenizer::from_gguf(&tiny_llama().open()).unwrap()
}

#[test]
fn round_trip_and_merges() {
    let tokenizer = tiny();
    let text = "hello, wörld! 2024 \u{1F600}\n\n";
    for specials in [Specials::Parse, Specials::AsText] {
        let ids = tokenizer.encode(text, specials).unwrap();
        assert_eq!(ids[0], 259, "h and e merge");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    assert_eq!(tokenizer.encode("", Specials::Parse).unwrap(), [0u32; 0]);
}

#[test]
fn both_readings_share_one_vocabulary() {
    let tokenizer = tiny().fit(261).unwrap();
    let [parsing, literal] =
        [&tokenizer.parsing, &tokenizer.literal].map(|one| one.get_model().compact().unwrap());
    assert!(std::ptr::eq(parsing, literal));
}

#[test]
fn a_vocabulary_that_is_taken_makes_the_same_tokenizer() {
    let mut file = tiny_llama().open();
    let taken = Tokenizer::take_from(&mut file).unwrap();
    assert!(Tokenizer::from_gguf(&file).is_err());
    let text = "hello<|im_end|>";
    let ids = |tokenizer: &Tokenizer| tokenizer.encode(text, Specials::Parse).unwrap();
    assert_eq!(ids(&taken), ids(&tiny()));
}

#[test]
fn special_text_cannot_become_a_special_token() {
    let tokenizer = tiny();
    let text = "a<|im_end|>b<tool>";
    let parsed = tokenizer.encode(text, Specials::Parse).unwrap();
    assert_eq!(parsed, [b'a'.into(), 258, b'b'.into(), 260]);
    let literal = tokenizer.encode(text, Specials::AsText).unwrap();
    assert!(literal.iter().all(|id| !tokenizer.is_special(*id)));
    assert_eq!(tokenizer.decode(&literal, true).unwrap(), text);
    assert_eq!(tokenizer.decode(&parsed, true).unwrap(), "ab<tool>");
    // Control tokens of the vocabulary are special, user-defined ones are not.
    assert!(tokenizer.is_special(256) && !tokenizer.is_special(260));
}

#[test]
fn ids_against_embedding_rows() {
    let tokenizer = tiny();
    assert_eq!(tokenizer.vocab_size(), 261);
    assert_eq!(tokenizer.token_id("<|im_start|>"), Some(257));
    let message = tiny().fit(250).unwrap_err().to_string();
    assert!(
        message.contains("260") && message.contains("250 rows"),
        "{message}"
    );
    assert_eq!(tokenizer.fit(261).unwrap().vocab_size(), 261);
}

/// A tokenizer.json with a token added behind its vocabulary, and files beside it.
fn folder(token: serde_json::Value, files: &[(&str, &str)]) -> tempfile::TempDir {
    let mut json = tiny_json();
    json["added_tokens"].as_array_mut().unwrap().push(token);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn added(special: bool) -> serde_json::Value {
    serde_json::json!({"id": 261, "content": "<pad>", "special": special, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false})
}

#[test]
fn an_added_token_behind_the_embedding_is_without_use() {
    for special in [false, true] {
        let dir = folder(added(special), &[]);
        let load = || Tokenizer::from_json_file(&dir.path().join("tokenizer.json")).unwrap();
        let whole = load().fit(262).unwrap();
        assert_eq!(whole.encode("<pad>", Specials::Parse).unwrap(), [261]);
        let tokenizer = load().fit(261).unwrap();
        let ids = tokenizer.encode("a<pad>b", Specials::AsText).unwrap();
        assert!(ids.len() > 5 && ids.iter().all(|id| *id < 261));
        let message = tokenizer
            .encode("<pad>", Specials::Parse)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("<pad>") && message.contains("261 rows"),
            "{message}"
        );
    }
}

#[test]
fn tokens_that_only_other_files_call_special() {
    let listed = r#"{"added_tokens_decoder": {"261": {"content": "<pad>", "special": true}}}"#;
    let named = r#"{"pad_token": "<pad>", "eos_token": "h"}"#;
    let list = r#"{"additional_special_tokens": [{"content": "<pad>"}]}"#;
    for (name, text) in [
        ("tokenizer_config.json", listed),
        ("tokenizer_config.json", named),
        ("tokenizer_config.json", list),
        ("special_tokens_map.json", named),
    ] {
        let dir = folder(added(false), &[(name, text)]);
        let tokenizer = Tokenizer::from_json_file(&dir.path().join("tokenizer.json")).unwrap();
        assert!(tokenizer.is_special(261), "{text}");
        let ids = tokenizer.encode("a<pad>", Specials::AsText).unwrap();
        assert!(!ids.contains(&261));
        assert_eq!(tokenizer.encode("<pad>", Specials::Parse).unwrap(), [261]);
        // What plain text is made of cannot be special.
        assert_eq!(
            tokenizer.encode("h", Specials::AsText).unwrap(),
            [u32::from(b'h')]
        );
    }
    let dir = folder(added(false), &[]);
    let tokenizer = Tokenizer::from_json_file(&dir.path().join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer.encode("<pad>", Specials::AsText).unwrap(), [261]);
}

fn refusal(json: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, json).unwrap();
    let error = Tokenizer::from_json_file(&path).err().unwrap();
    assert!(error.is_refusal());
    let message = error.to_string();
    assert!(message.contains("tokenizer.json") && message.lines().count() == 1);
    message
}

#[test]
fn bad_files() {
    refusal("");
    refusal("{}");
    refusal("{\"version\": \"9\"}");
    refusal(&"[".repeat(100_000));
    let json = tiny_json();
    let text = json.to_string();
    refusal(&text[..text.len() / 2]);
    let mut moved = json;
    moved["added_tokens"][0]["id"] = 7.into();
    assert!(refusal(&moved.to_string()).contains("<|endoftext|>"));
}

#[test]
fn truncation_and_padding_are_dropped() {
    let mut json = tiny_json();
    json["truncation"] = serde_json::json!({"direction": "Right", "max_length": 2,
        "strategy": "LongestFirst", "stride": 0});
    json["padding"] = serde_json::json!({"strategy": {"Fixed": 1_000_000_000_000u64},
        "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "x"});
    let tokenizer = Tokenizer::from_json("t", json.to_string().as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("abcd", Specials::AsText).unwrap().len(), 4);
}

#[test]
fn the_begin_token_is_told_and_not_added() {
    let flag = |value| tiny_llama().value("tokenizer.ggml.add_bos_token", &Value::Bool(value));
    let pre =
        |file: Gguf, name: &str| file.replace("tokenizer.ggml.pre", &Value::String(name.into()));
    for (file, start) in [
        (flag(true), &[257][..]),
        (flag(false), &[]),
        (tiny_llama(), &[]),
        (pre(tiny_llama(), "llama-bpe"), &[257]),
        (pre(flag(false), "llama-bpe"), &[]),
    ] {
        let tokenizer = Tokenizer::from_gguf(&file.open()).unwrap();
        assert_eq!(tokenizer.start(), start);
        assert_eq!(tokenizer.encode("ab", Specials::Parse).unwrap().len(), 2);
    }
    let unknown = flag(true).replace("tokenizer.ggml.bos_token_id", &Value::Uint(999));
    let message = Tokenizer::from_gguf(&unknown.open())
        .unwrap_err()
        .to_string();
    assert!(message.contains("bos_token_id is 999"), "{message}");
}

#[test]
fn a_post_processor_may_add_begin_and_end() {
    let mut json = tiny_json();
    let special = |id: u32| serde_json::json!({"id": "t", "ids": [id], "tokens": ["t"]});
    let template = |id| {
        let token = serde_json::json!({"SpecialToken": {"id": "t", "type_id": 0}});
        let text = serde_json::json!({"Sequence": {"id": "A", "type_id": 0}});
        serde_json::json!({"type": "TemplateProcessing", "single": [token, text, token],
            "pair": [token, text], "special_tokens": {"t": special(id)}})
    };
    json["post_processor"] = template(258);
    let tokenizer = Tokenizer::from_json("t", json.to_string().as_bytes()).unwrap();
    assert_eq!(tokenizer.start(), [258]);
    json["post_processor"] = template(300);
    let message = Tokenizer::from_json("t", json.to_string().as_bytes())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("300") && message.contains("below 261"),
        "{message}"
    );
}

#[test]
fn long_runs_are_encoded() {
    let tokenizer = tiny();
    for text in [" ".repeat(100_000), "a".repeat(100_000)] {
        assert_eq!(
            tokenizer.encode(&text, Specials::AsText).unwrap().len(),
            100_000
        );
    }
}

#[test]
fn gguf_refusals_name_the_key() {
    let cases = [
        ("tokenizer.ggml.model", Value::String("bert".into())),
        ("tokenizer.ggml.pre", Value::String("falcon3".into())),
        ("tokenizer.ggml.tokens", Value::Uint(3)),
        (
            "tokenizer.ggml.token_type",
            Value::Array(vec![Value::Int(1)]),
        ),
        (
            "tokenizer.ggml.merges",
            Value::Array(vec![Value::String("he".into())]),
        ),
    ];
    for (key, value) in cases {
        let file = tiny_llama().replace(key, &value).open();
        let message = Tokenizer::from_gguf(&file).err().unwrap().to_string();
        assert!(message.contains(key), "{message}");
    }
    let known = [
        "default",
        "gpt-2",
        "llama-bpe",
        "llama3",
        "dbrx",
        "smaug-bpe",
        "qwen2",
        "deepseek-r1-qwen",
        "gpt-4o",
        "tekken",
    ];
    for pre in known {
        let file = tiny_llama().replace("tokenizer.ggml.pre", &Value::String(pre.into()));
        let tokenizer = Tokenizer::from_gguf(&file.open()).unwrap();
        let ids = tokenizer.encode("he is 12345 ", Specials::AsText).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "he is 12345 ");
    }
}

#[test]
fn a_text_has_at_least_as_many_tokens_as_its_bytes_allow() {
    let tokenizer = tiny();
    for text in ["", "hello", "hello, wörld! 2024 \u{1F600}\n\n<|im_end|>"] {
        let ids = tokenizer.encode(text, Specials::AsText).unwrap();
        assert!(tokenizer.least_tokens(text) <= ids.len(), "{text}");
    }
    assert!(tokenizer.least_tokens(&"a".repeat(8_000_000)) > 100_000);
}
