use super::super::Tokenizer;
use super::*;
use serde_json::json;

fn file() -> Value {
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": null,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    })
}

fn replace(pattern: &str, content: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": pattern}, "content": content})
}

fn refusal(file: &Value) -> String {
    let bytes = file.to_string();
    let start = std::time::Instant::now();
    let error = Tokenizer::from_json("tokenizer.json", bytes.as_bytes()).unwrap_err();
    assert!(start.elapsed().as_secs() < 2, "{error}");
    assert!(error.is_refusal());
    error.to_string()
}

#[test]
fn texts_that_grow() {
    let mut grows = file();
    let step = replace("a", "aaaaaaaaaa");
    grows["normalizer"] = json!({"type": "Sequence", "normalizers": vec![step.clone(); 8]});
    let message = refusal(&grows);
    assert!(
        message.contains("100000000 times") && message.contains("at most 64"),
        "{message}"
    );
    // Nested, by an empty pattern, by an expression, and when decoding.
    let nested = json!({"type": "Sequence", "normalizers": [step, {"type": "Sequence", "normalizers": [step]}]});
    let expression =
        json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "x".repeat(100)});
    for normalizer in [nested, replace("", &"x".repeat(100)), expression] {
        let mut grows = file();
        grows["normalizer"] = normalizer.clone();
        assert!(refusal(&grows).contains("growth of texts by the normalizer"));
        let mut grows = file();
        let text = normalizer.to_string().replace("normalizers", "decoders");
        grows["decoder"] = serde_json::from_str(&text).unwrap();
        assert!(refusal(&grows).contains("growth of texts by the decoder"));
    }
    let mut map = file();
    let bytes = [&4_u32.to_le_bytes()[..], &[0; 4], &[b'x'; 100]].concat();
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    map["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": text});
    assert!(refusal(&map).contains("growth of texts by the normalizer is 100 times"));
    // Steps that change what they have made again: found by fuzzing.
    let bytes = json!({"type": "ByteLevel"});
    let mut levels = file();
    levels["normalizer"] = json!({"type": "Sequence", "normalizers": vec![bytes.clone(); 4]});
    assert!(refusal(&levels).contains("growth of texts by the normalizer is 256 times"));
    let spaces =
        |text: &str| json!({"type": "Metaspace", "replacement": text, "prepend_scheme": "always"});
    for steps in [
        vec![bytes.clone(); 5],
        vec![
            spaces("\u{2581}"),
            spaces("x"),
            bytes.clone(),
            bytes.clone(),
            bytes,
        ],
    ] {
        let mut grows = file();
        grows["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": steps});
        let message = refusal(&grows);
        assert!(
            message.contains("growth of texts by normalizer and pre_tokenizer")
                && message.contains("at most 256"),
            "{message}"
        );
    }
    // As in files of XLM-R: a character map, then a mark in place of spaces.
    let bytes = [&4_u32.to_le_bytes()[..], &[0; 4], &[b'x'; 33]].concat();
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    let mut published = file();
    published["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": text});
    published["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "WhitespaceSplit"}, spaces("\u{2581}")]});
    check("t", published.to_string().as_bytes()).unwrap();
    // As in files of Llama 2.
    let mut plain = file();
    plain["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u{2581}"}, replace(" ", "\u{2581}")]});
    Tokenizer::from_json("t", plain.to_string().as_bytes()).unwrap();
}

#[test]
fn long_tokens_and_lists() {
    let long = "a".repeat(40_000);
    let mut cases = Vec::new();
    let mut case = |edit: &dyn Fn(&mut Value), says: &'static str| {
        let mut file = file();
        edit(&mut file);
        cases.push((file, says));
    };
    case(
        &|f| f["model"]["vocab"][&long] = json!(3),
        "token of model.vocab is 40000 bytes",
    );
    let many: serde_json::Map<String, Value> = (0..=MAX_VOCAB)
        .map(|id| (id.to_string(), id.into()))
        .collect();
    case(
        &|f| f["model"]["vocab"] = Value::Object(many.clone()),
        "model.vocab is 1048577 tokens",
    );
    case(
        &|f| f["model"]["merges"] = json!([[long, "b"]]),
        "text of model.merges",
    );
    case(
        &|f| f["model"]["merges"] = json!([format!("{long} b")]),
        "text of model.merges",
    );
    case(
        &|f| f["added_tokens"] = json!([{"id": 3, "content": long, "special": true}]),
        "token of added_tokens",
    );
    case(
        &|f| f["model"]["end_of_word_suffix"] = json!(long),
        "prefix or suffix",
    );
    let lower = json!({"type": "Lowercase"});
    case(
        &|f| {
            f["normalizer"] = json!({"type": "Sequence", "normalizers": vec![lower.clone(); 1000]})
        },
        "normalizer is 1001 steps",
    );
    let digits = json!({"type": "Digits", "individual_digits": true});
    case(
        &|f| {
            f["pre_tokenizer"] =
                json!({"type": "Sequence", "pretokenizers": vec![digits.clone(); 1000]})
        },
        "pre_tokenizer is 1001 steps",
    );
    let special = json!({"SpecialToken": {"id": "a", "type_id": 0}});
    case(
        &|f| {
            f["post_processor"] = json!({"type": "TemplateProcessing", "single": vec![special.clone(); 1000],
            "pair": [], "special_tokens": {"a": {"id": "a", "ids": [0], "tokens": ["a"]}}})
        },
        "list of post_processor is 1000 entries",
    );
    case(
        &|f| {
            f["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": long}, "behavior": "Isolated",
            "invert": false})
        },
        "pattern of pre_tokenizer",
    );
    for (file, says) in cases {
        let message = refusal(&file);
        assert!(
            message.contains("tokenizer.json") && message.contains(says),
            "{message}"
        );
    }
}
