//! GGUF vocabularies against SentencePiece and the published patterns (`scripts/tokenizer-oracle`), and their limits.

use super::super::{Specials, Tokenizer};
use super::*;
use crate::gguf::Value as Meta;
use crate::gguf::testing::{Gguf, tiny_llama};
use std::time::{Duration, Instant};
use tokenizers::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper,
};

const ORACLE: &str = include_str!("../oracle.json");

fn oracle() -> Value {
    serde_json::from_str(ORACLE).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn text(text: impl Into<String>) -> Meta {
    Meta::String(text.into())
}

fn ids(value: &Value) -> Vec<u32> {
    let id = |id: &Value| u32::try_from(id.as_u64().unwrap()).unwrap();
    list(value).iter().map(id).collect()
}

/// A vocabulary of the oracle as a GGUF file without tensors.
fn file(vocabulary: &Value) -> Gguf {
    let column = |name: &str, to: &dyn Fn(&Value) -> Meta| {
        Meta::Array(list(&vocabulary[name]).iter().map(to).collect())
    };
    let tokens = column("tokens", &|token| text(token.as_str().unwrap()));
    let scores = column("scores", &|score| Meta::Float(score.as_f64().unwrap()));
    let types = column("types", &|kind| Meta::Int(kind.as_i64().unwrap()));
    let prefix = vocabulary["add_space_prefix"].as_bool().unwrap();
    Gguf::new()
        .value(MODEL, &text("llama"))
        .value("tokenizer.ggml.pre", &text("default"))
        .value(TOKENS, &tokens)
        .value("tokenizer.ggml.scores", &scores)
        .value(TYPES, &types)
        .value(BOS, &Meta::Uint(1))
        .value("tokenizer.ggml.add_space_prefix", &Meta::Bool(prefix))
}

fn vocabularies() -> Vec<Value> {
    list(&oracle()["sentencepiece"]).to_vec()
}

#[test]
fn sentencepiece_gives_the_same_tokens_and_texts() {
    let vocabularies = vocabularies();
    assert_eq!(vocabularies.len(), 2);
    for vocabulary in vocabularies {
        let name = &vocabulary["name"];
        let tokenizer = Tokenizer::from_gguf(&file(&vocabulary).open()).unwrap();
        let cases = list(&vocabulary["cases"]);
        assert!(cases.len() > 150);
        for case in cases {
            let (text, wanted) = (case["text"].as_str().unwrap(), ids(&case["ids"]));
            let found = tokenizer.encode(text, Specials::AsText).unwrap();
            assert_eq!(found, wanted, "{name}: {text:?}");
            let decoded = tokenizer.decode(&wanted, false).unwrap();
            assert_eq!(
                decoded,
                case["decoded"].as_str().unwrap(),
                "{name}: {text:?}"
            );
            assert!(
                tokenizer.least_tokens(text) <= wanted.len(),
                "{name}: {text:?}"
            );
            let mut stream = tokenizer.stream(false);
            let mut parts: Vec<String> = Vec::new();
            for id in wanted {
                parts.extend(stream.push(id).unwrap());
            }
            assert!(!parts.concat().contains('\u{FFFD}'), "{name}: {parts:?}");
            parts.extend(stream.flush().unwrap());
            assert_eq!(parts.concat(), decoded, "{name}: {text:?}");
        }
    }
}

#[test]
fn text_does_not_become_a_control_token() {
    for vocabulary in vocabularies() {
        let tokenizer = Tokenizer::from_gguf(&file(&vocabulary).open()).unwrap();
        let [unknown, begin, end, turn] = [0, 1, 2, 3];
        assert_eq!(tokenizer.start(), [begin]);
        let text = "<unk><s></s><turn><0x41>";
        let parsed = tokenizer.encode(text, Specials::Parse).unwrap();
        assert_eq!(parsed[..4], [unknown, begin, end, turn]);
        let literal = tokenizer.encode(text, Specials::AsText).unwrap();
        let special = |id: &u32| tokenizer.is_special(*id);
        assert!(
            !literal.iter().any(special) && literal.contains(&turn),
            "{literal:?}"
        );
        let decoded = tokenizer.decode(&literal, true).unwrap();
        // With the space that is put before what follows a user-defined token.
        assert_eq!(decoded.replace("<turn> ", "<turn>"), text);
        // A byte token's name is text as well.
        let byte = tokenizer.token_id("<0x41>").unwrap();
        assert!(!parsed.contains(&byte) && !literal.contains(&byte));
    }
}

#[test]
fn control_tokens_of_phi3_take_the_white_space_behind_them() {
    let vocabulary = &vocabularies()[0];
    let with = |architecture: &str| {
        let file = file(vocabulary).value("general.architecture", &text(architecture));
        let tokenizer = Tokenizer::from_gguf(&file.open()).unwrap();
        let ids = tokenizer
            .encode("<turn> \n the</s>\n<s>\n", Specials::Parse)
            .unwrap();
        tokenizer.decode(&ids, false).unwrap()
    };
    assert_eq!(with("llama"), "<turn>  \n the</s> \n<s> \n");
    assert_eq!(with("phi3"), "<turn> the</s><s> \n");
}

#[test]
fn pre_tokenizers_cut_words_as_published() {
    let words = &oracle()["words"];
    let texts = list(&words["texts"]);
    for (name, found) in words["found"].as_object().unwrap() {
        let file = tiny_llama().replace("tokenizer.ggml.pre", &text(name));
        let json = tokenizer_json(&file.open()).unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        let wrapper: PreTokenizerWrapper =
            serde_json::from_value(json["pre_tokenizer"].clone()).unwrap();
        for (text, wanted) in texts.iter().zip(list(found)) {
            let text = text.as_str().unwrap();
            let mut cut = PreTokenizedString::from(text);
            wrapper.pre_tokenize(&mut cut).unwrap();
            let cut = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
            let cut: Vec<&str> = cut.iter().map(|(_, (a, b), _)| &text[*a..*b]).collect();
            let wanted: Vec<&str> = list(wanted).iter().map(|w| w.as_str().unwrap()).collect();
            assert_eq!(cut, wanted, "{name}: {text:?}");
        }
    }
}

#[test]
fn malformed_vocabularies_of_sentencepiece_are_refused() {
    let vocabulary = &vocabularies()[1];
    let count = list(&vocabulary["tokens"]).len();
    let scores = |at: usize, score: f64| {
        let mut scores: Vec<Meta> = (0..count).map(|i| Meta::Float(-(i as f64))).collect();
        scores[at] = Meta::Float(score);
        Meta::Array(scores)
    };
    let mut tokens: Vec<String> = list(&vocabulary["tokens"])
        .iter()
        .map(|token| token.as_str().unwrap().to_owned())
        .collect();
    let merged = tokens
        .iter()
        .position(|token| token == "\u{2581}the")
        .unwrap();
    let byte = tokens.iter().position(|token| token == "<0xA0>").unwrap();
    let refused = |key: &str, value: &Meta, part: &str| {
        let start = Instant::now();
        let file = file(vocabulary).replace(key, value).open();
        let error = Tokenizer::from_gguf(&file).unwrap_err();
        let message = error.to_string();
        assert!(error.is_refusal() && message.contains(key), "{message}");
        assert!(message.contains(part), "{message}");
        assert!(start.elapsed() < Duration::from_secs(5), "{message}");
    };
    let key = "tokenizer.ggml.scores";
    refused(key, &Meta::Array(vec![Meta::Float(0.0)]), "an array of 1");
    refused(key, &scores(merged, f64::NAN), "NaN for \"\u{2581}the\"");
    refused(
        key,
        &scores(merged, -(merged as f64) - 1.0),
        "a score of its own",
    );
    refused(TYPES, &text("x"), "an array of whole numbers");
    let mut listed = |at: usize, token: String| {
        let before = std::mem::replace(&mut tokens[at], token);
        let list = Meta::Array(tokens.iter().map(text).collect());
        tokens[at] = before;
        list
    };
    refused(
        TOKENS,
        &listed(byte, "xyzzy".into()),
        "no byte token <0xA0>",
    );
    refused(TOKENS, &listed(merged, "<turn>".into()), "\"<turn>\" twice");
    refused(TOKENS, &listed(merged, "e".repeat(257)), "257 bytes");
    refused(
        "tokenizer.ggml.add_space_prefix",
        &Meta::Uint(1),
        "true or false",
    );
    for key in [TYPES, key] {
        let file = file(vocabulary).without(key).open();
        let message = Tokenizer::from_gguf(&file).unwrap_err().to_string();
        assert!(
            message.contains(key) && message.contains("missing"),
            "{message}"
        );
    }
}

/// A vocabulary for which finding all merges would take minutes.
#[test]
fn too_many_long_tokens_are_refused() {
    let vocabulary = &vocabularies()[1];
    let count = list(&vocabulary["tokens"]).len();
    let more = 10_000;
    let extended = |name: &str, to: &dyn Fn(&Value) -> Meta, new: &dyn Fn(usize) -> Meta| {
        let known = list(&vocabulary[name]).iter().map(to);
        Meta::Array(known.chain((0..more).map(new)).collect())
    };
    let file = file(vocabulary)
        .replace(
            TOKENS,
            &extended("tokens", &|t| text(t.as_str().unwrap()), &|i| {
                text(format!("{}{i:05}", "e".repeat(250)))
            }),
        )
        .replace(
            "tokenizer.ggml.scores",
            &extended("scores", &|s| Meta::Float(s.as_f64().unwrap()), &|i| {
                Meta::Float(-((count + i) as f64))
            }),
        )
        .replace(
            TYPES,
            &extended("types", &|t| Meta::Int(t.as_i64().unwrap()), &|_| {
                Meta::Int(1)
            }),
        );
    let message = Tokenizer::from_gguf(&file.open()).unwrap_err().to_string();
    assert!(message.contains("lengths squared"), "{message}");
}

#[test]
fn long_runs_are_encoded_in_time() {
    for vocabulary in vocabularies() {
        let tokenizer = Tokenizer::from_gguf(&file(&vocabulary).open()).unwrap();
        let start = Instant::now();
        for text in ["a", " ", "\u{4E16}", "\n"].map(|text| text.repeat(300_000)) {
            let ids = tokenizer.encode(&text, Specials::AsText).unwrap();
            assert!(ids.len() > 70_000);
        }
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
