//! The real model: SmolLM2-135M-Instruct, fetched on first use, against transformers and against itself.
//!
//! Where it is neither in the cache nor to be had, these tests are skipped with a message; `POLYKV_REQUIRE_MODEL=1` makes
//! that a failure.

#![cfg(feature = "flex")]

mod common;
#[path = "formats/writer.rs"]
mod writer;

use burn::tensor::Device;
use polykv::models::tokenizer::Specials;
use polykv::models::{Finish, GenerateOptions, Generation, Generator, LoadedModel, hub, load};
use polykv::testing::max_difference;
use polykv::{Budget, KvCache, Phase, Plan};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// None, with a message, where the model cannot be had.
fn model() -> Option<LoadedModel> {
    file().map(|path| load(&path, &Device::flex()).unwrap())
}

fn file() -> Option<PathBuf> {
    match hub::resolve("smollm2-135m", false, &mut |_| {}) {
        Ok(path) => Some(path),
        Err(error) => {
            let required = std::env::var_os("POLYKV_REQUIRE_MODEL").is_some();
            assert!(!required, "{error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn golden() -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture("smollm2.json")).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap() as u32)
        .collect()
}

/// Filler of our own, so that a prompt has about `tokens` tokens.
fn filler(model: &LoadedModel, tokens: usize, skip: usize) -> String {
    const PARTS: [[&str; 6]; 3] = [
        [
            "The baker",
            "A young teacher",
            "The old sailor",
            "Our neighbour",
            "The clerk",
            "A quiet painter",
        ],
        [
            "walked to the harbour",
            "counted the apples",
            "repaired a wooden gate",
            "read a long letter",
            "waited for the evening train",
            "watered the garden",
        ],
        [
            "before the rain began.",
            "while the bells were ringing.",
            "and went home early.",
            "because the market was closed.",
            "without saying a word.",
            "as on every other day.",
        ],
    ];
    let mut text = String::new();
    let mut sentence = skip;
    let mut count = 0;
    while count < tokens {
        let [who, what, when] = [
            sentence % 6,
            sentence / 6 % 6,
            (sentence / 36 + sentence) % 6,
        ];
        let next = format!("{} {} {} ", PARTS[0][who], PARTS[1][what], PARTS[2][when]);
        count += model
            .tokenizer
            .encode(&next, Specials::AsText)
            .unwrap()
            .len();
        text.push_str(&next);
        sentence += 5;
    }
    text
}

fn prompt(model: &LoadedModel, text: &str, lead_in: &str) -> Vec<u32> {
    let messages = [polykv::models::chat::Message::new("user", text)];
    let mut ids = model
        .chat
        .as_ref()
        .unwrap()
        .encode(&model.tokenizer, &messages, true)
        .unwrap();
    ids.extend(model.tokenizer.encode(lead_in, Specials::AsText).unwrap());
    ids
}

fn run(model: LoadedModel, plan: Plan, prompt: &[u32], max_new_tokens: usize) -> Generation {
    let mut generator = Generator::new(model, plan).unwrap();
    let options = GenerateOptions {
        max_new_tokens,
        ..GenerateOptions::default()
    };
    generator
        .generate(prompt, &options, &mut |_| {
            std::ops::ControlFlow::Continue(())
        })
        .unwrap()
}

#[test]
fn tokenizer_chat_and_logits_equal_transformers() {
    let golden = golden();
    let Some(loaded) = model() else { return };
    for case in golden["tokenizer_cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let found = loaded.tokenizer.encode(text, Specials::Parse).unwrap();
        assert_eq!(found, numbers(&case["ids"]), "{text:?}");
    }
    for case in golden["chats"].as_array().unwrap() {
        let messages: Vec<_> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| {
                let part = |name: &str| m[name].as_str().unwrap().to_string();
                polykv::models::chat::Message::new(part("role"), part("content"))
            })
            .collect();
        let found = loaded
            .chat
            .as_ref()
            .unwrap()
            .encode(&loaded.tokenizer, &messages, true)
            .unwrap();
        assert_eq!(found, numbers(&case["ids"]));
    }

    let bytes = std::fs::read(fixture("smollm2.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    };
    let some: Vec<usize> = file
        .tensor("some_ids")
        .unwrap()
        .data()
        .chunks_exact(8)
        .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize)
        .collect();
    let ids: Vec<i64> = numbers(&golden["prompt_ids"])
        .into_iter()
        .map(i64::from)
        .collect();
    let dims = [1, ids.len()];
    let prompt =
        burn::tensor::Tensor::from_data(burn::tensor::TensorData::new(ids, dims), &Device::flex());
    let plan = Plan::full(loaded.model.config().layers.len());
    let mut cache = KvCache::new(plan, loaded.model.cache_shape(1), &Device::flex()).unwrap();
    let logits = loaded
        .model
        .logits(prompt, &mut cache, &mut Default::default())
        .unwrap();
    let vocab = loaded.model.config().vocab_size;
    let found: Vec<f32> = logits.try_into_vec_as().unwrap();
    let chosen = found
        .chunks_exact(vocab)
        .flat_map(|row| some.iter().map(|&id| row[id]));
    let apart = max_difference(&chosen.collect::<Vec<_>>(), &floats("logits_some"));
    assert!(apart < 2e-3, "logits at every position differ by {apart}");
    let last = &found[found.len() - vocab..];
    let apart = max_difference(last, &floats("logits_last"));
    assert!(
        apart < 2e-3,
        "logits at the last position differ by {apart}"
    );
}

#[test]
fn greedy_tokens_equal_transformers() {
    let golden = golden();
    let wanted = numbers(&golden["greedy_ids"]);
    let Some(model) = model() else { return };
    let layers = model.model.config().layers.len();
    let found = run(
        model,
        Plan::full(layers),
        &numbers(&golden["prompt_ids"]),
        wanted.len(),
    );
    assert_eq!(found.tokens, wanted);
    assert_eq!(found.text, golden["greedy_text"].as_str().unwrap());
    assert_eq!(found.finish, Finish::Length);
}

#[test]
fn a_needle_is_found_with_the_full_cache_and_with_tova_at_a_quarter() {
    let Some(model) = model() else { return };
    let layers = model.model.config().layers.len();
    let text = format!(
        "{}The special magic number for Velmar is 714092. {}\n\nWhat is the special magic number for Velmar?",
        filler(&model, 500, 0),
        filler(&model, 540, 2),
    );
    let prompt = prompt(&model, &text, "The special magic number for Velmar is ");
    assert!(
        (950..1150).contains(&prompt.len()),
        "{} tokens",
        prompt.len()
    );
    let quarter = common::uniform(layers, "tova", Budget::Ratio(0.25), &Phase::BOTH);
    let mut model = Some(model);
    for plan in [Plan::full(layers), quarter] {
        let text = common::written(&plan);
        let Some(model) = model.take().or_else(self::model) else {
            return;
        };
        let found = run(model, plan, &prompt, 8);
        assert!(
            found.text.starts_with("714092"),
            "{:?} under\n{text}",
            found.text
        );
    }
}

#[test]
fn a_budget_really_frees_memory() {
    let Some(model) = model() else { return };
    let layers = model.model.config().layers.len();
    let ids = prompt(&model, &filler(&model, 2200, 0), "");
    let ids = &ids[ids.len() - 2000..];
    let plan = common::uniform(layers, "snapkv", Budget::Tokens(256), &Phase::BOTH);
    let found = run(model, plan, ids, 4).cache;
    let entry = found.full_bytes as f64 / found.seen as f64;
    // FullKV's cache for the 2,000 prompt tokens, from the tensors' own size per entry.
    let full = entry * 2000.0;
    assert!(
        found.bytes as f64 <= 1.05 * 257.0 / 2000.0 * full,
        "{found:?}"
    );
    let layer = full / layers as f64;
    assert!(
        found.peak_bytes as f64 <= layer + 257.0 * entry,
        "{found:?}"
    );
    assert_eq!(found.kept, vec![256.0; layers]);
}

#[test]
fn the_parts_of_a_split_file_equal_the_whole() {
    let Some(whole) = file() else { return };
    let dir = tempfile::tempdir().unwrap();
    let parts = writer::split(&whole, dir.path(), &[128, 128]);
    let expected = load(&whole, &Device::flex()).unwrap();
    let ids = prompt(&expected, "What is the capital of France?", "");
    let (ends, start) = (
        expected.eos_tokens.clone(),
        expected.tokenizer.start().to_vec(),
    );
    let layers = expected.model.config().layers.len();
    let expected = run(expected, Plan::full(layers), &ids, 12);
    for path in [parts[1].as_path(), dir.path()] {
        let model = load(path, &Device::flex()).unwrap();
        assert_eq!(prompt(&model, "What is the capital of France?", ""), ids);
        assert_eq!(
            (&model.eos_tokens, model.tokenizer.start()),
            (&ends, &start[..])
        );
        let found = run(model, Plan::full(layers), &ids, 12);
        assert_eq!(found.tokens, expected.tokens);
    }
}
