use super::*;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};
use tokenizers::Model;
use tokenizers::models::bpe::BPE;

const LETTERS: [char; 8] = ['a', 'b', 'c', 'd', 'ä', '▁', '€', '😀'];

/// A vocabulary whose merges make tokens of tokens, in both spellings of merges.
fn model(random: &mut StdRng) -> Value {
    let mut tokens: Vec<String> = Vec::new();
    let letters = random.random_range(2..=LETTERS.len());
    tokens.extend(LETTERS[..letters].iter().map(|letter| letter.to_string()));
    let mut merges = Vec::new();
    for _ in 0..random.random_range(0..40) {
        let (left, right) = (tokens.choose(random), tokens.choose(random));
        let (left, right) = (left.unwrap().clone(), right.unwrap().clone());
        let joined = format!("{left}{right}");
        if joined.chars().count() <= 6 {
            merges.push((left, right));
            if !tokens.contains(&joined) {
                tokens.push(joined);
            }
        }
    }
    let fallback = random.random();
    if fallback {
        let missing = random.random_range(0..300);
        let bytes = (0..256).filter(|byte| *byte != missing);
        tokens.extend(bytes.map(|byte| format!("<0x{byte:02X}>")));
    }
    let unknown = random.random::<bool>().then_some("<unk>");
    tokens.extend(unknown.map(str::to_owned));
    // Ids in another order, with gaps.
    let mut ids: Vec<u32> = (0..tokens.len() as u32).map(|id| 2 * id + 3).collect();
    rand::seq::SliceRandom::shuffle(ids.as_mut_slice(), random);
    let vocab: Map<String, Value> = tokens
        .into_iter()
        .zip(ids.into_iter().map(Value::from))
        .collect();
    let merges = match random.random::<bool>() {
        true => json!(merges),
        false => json!(
            merges
                .iter()
                .map(|(a, b)| format!("{a} {b}"))
                .collect::<Vec<_>>()
        ),
    };
    json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": random.random::<bool>(), "byte_fallback": fallback,
        "ignore_merges": random.random::<bool>(), "vocab": vocab, "merges": merges,
    })
}

fn both(model: &Value) -> (Result<Option<CompactBpe>>, serde_json::Result<BPE>) {
    let raw: Raw = serde_json::from_value(model.clone()).unwrap();
    // The crate reads its own from text only.
    (
        CompactBpe::new(&raw),
        serde_json::from_str(&model.to_string()),
    )
}

#[test]
fn words_become_what_the_crate_makes_of_them() {
    let mut random = StdRng::seed_from_u64(7);
    let (mut several, mut unknown) = (0, 0);
    for _ in 0..300 {
        let model = model(&mut random);
        let (ours, theirs) = both(&model);
        let (ours, theirs) = (ours.unwrap().unwrap(), theirs.unwrap());
        assert_eq!(ours.len(), theirs.get_vocab_size());
        for (text, id) in theirs.get_vocab() {
            assert_eq!(ours.id(&text), Some(id), "{model}");
            assert_eq!(ours.token(id), Some(&*text), "{model}");
        }
        for id in 0..8 {
            assert_eq!(ours.token(id).map(str::to_owned), theirs.id_to_token(id));
        }
        for _ in 0..40 {
            let count = random.random_range(0..24);
            let letters = (0..count).map(|_| *LETTERS.choose(&mut random).unwrap());
            let word: String = letters.collect();
            let found = ours.tokenize(&word);
            assert_eq!(found, theirs.tokenize(&word).unwrap(), "{word:?} {model}");
            several += usize::from(found.len() < word.chars().count());
            unknown += usize::from(found.iter().any(|token| token.value == "<unk>"));
        }
    }
    assert!(several > 1000 && unknown > 100, "{several} {unknown}");
}

#[test]
fn what_the_tables_cannot_say_is_left_to_the_crate() {
    let model = |key: &str, value: &Value| {
        let vocab = json!({"a": 0, "b": 1, "ab": 2});
        let mut model = json!({"type": "BPE", "vocab": vocab, "merges": [["a", "b"]]});
        model[key] = value.clone();
        model
    };
    let compact = |model: Value| CompactBpe::new(&serde_json::from_value(model).unwrap());
    assert!(compact(model("dropout", &json!(0.0))).unwrap().is_some());
    for (key, value) in [
        ("dropout", json!(0.5)),
        ("continuing_subword_prefix", json!("##")),
        ("end_of_word_suffix", json!("</w>")),
        ("unk_token", json!("<unk>")),
        ("vocab", json!({"a": 0, "b": 1, "ab": 1})),
        ("vocab", json!({"a": 0, "b": 1, "ab": 2, "": 3})),
        ("vocab", json!({"a": 0, "b": 1, "ab": 4_000_000_000u32})),
    ] {
        let found = compact(model(key, &value)).unwrap();
        assert!(found.is_none(), "{key} {value}");
    }
    // Errors are the crate's.
    let (ours, theirs) = both(&model("merges", &json!([["a", "c"]])));
    let ours = ours.err().unwrap().to_string();
    let theirs = theirs.unwrap_err().to_string();
    assert!(theirs.starts_with(&ours), "{ours} {theirs}");
}

#[test]
fn of_a_merge_that_is_listed_twice_the_last_counts() {
    let merges = json!([["a", "b"], ["b", "a"], ["a", "b"]]);
    let vocab = json!({"a": 0, "b": 1, "ab": 2, "ba": 3});
    let (ours, theirs) = both(&json!({"type": "BPE", "vocab": vocab, "merges": merges}));
    let (ours, theirs) = (ours.unwrap().unwrap(), theirs.unwrap());
    let found = ours.tokenize("aba");
    assert_eq!(found, theirs.tokenize("aba").unwrap());
    assert_eq!(found[0].value, "a");
}
