//! Gemma 3 270M against transformers, SentencePiece and llama.cpp (`tests/fixtures/real_models.py`), and Qwen2.5-Coder.
//!
//! Gemma is fetched on first use; where it is neither in the cache nor to be had, its tests are skipped with a message, and
//! `POLYKV_REQUIRE_MODEL=1` makes that a failure.

#![cfg(feature = "flex")]

#[path = "real_models/qwen.rs"]
mod qwen;

use burn::tensor::Device;
use polykv::models::gguf::GgufFile;
use polykv::models::tokenizer::{Specials, Tokenizer};
use polykv::models::{GenerateOptions, Generator, LoadedModel, PrefillOptions, hub, load};
use polykv::testing::max_difference;
use polykv::{KvCache, Plan};
use safetensors::SafeTensors;
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Tokens whose logits are held at once.
const CHUNK: usize = 128;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What others computed from a model's file.
struct Golden {
    json: Value,
    tensors: Vec<u8>,
}

impl Golden {
    fn read(name: &str) -> Self {
        let path = root().join("tests/fixtures").join(name);
        let text = std::fs::read_to_string(path.with_extension("json")).unwrap();
        Self {
            json: serde_json::from_str(&text).unwrap(),
            tensors: std::fs::read(path.with_extension("safetensors")).unwrap(),
        }
    }

    /// The numbers of a tensor, each made of `N` bytes.
    fn tensor<T, const N: usize>(&self, name: &str, read: fn([u8; N]) -> T) -> Vec<T> {
        let file = SafeTensors::deserialize(&self.tensors).unwrap();
        let tensor = file.tensor(name).unwrap();
        let numbers = tensor.data().chunks_exact(N);
        numbers
            .map(|bytes| read(bytes.try_into().unwrap()))
            .collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.tensor(name, f32::from_le_bytes)
    }

    fn some_ids(&self) -> Vec<usize> {
        let ids = self.tensor("some_ids", i64::from_le_bytes).into_iter();
        ids.map(|id| usize::try_from(id).unwrap()).collect()
    }

    fn long_ids(&self) -> Vec<u32> {
        let ids = self.tensor("long_ids", i32::from_le_bytes).into_iter();
        ids.map(|id| u32::try_from(id).unwrap()).collect()
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
        // Otherwise than it was written where the tokenizer brings texts to a normal form.
        assert_eq!(decoded, case["decoded"].as_str().unwrap_or(text));
    }
    tokenizer
}

fn prose() -> String {
    std::fs::read_to_string(root().join("tests/fixtures/lighthouse.txt")).unwrap()
}

/// The logits after each token of a text, a part at a time.
fn each_logits(model: &LoadedModel, ids: &[u32], see: &mut dyn FnMut(usize, &[f32])) {
    let plan = Plan::full(model.model.config().layers.len());
    let device = model.model.device();
    let mut cache = KvCache::new(plan, model.model.cache_shape(1), device).unwrap();
    let vocab = model.model.config().vocab_size;
    let mut position = 0;
    for part in ids.chunks(CHUNK) {
        let options = &mut PrefillOptions::default();
        let logits = model.model.logits(model.ids(part), &mut cache, options);
        let logits: Vec<f32> = logits.unwrap().try_into_vec_as().unwrap();
        for row in logits.chunks_exact(vocab) {
            see(position, row);
            position += 1;
        }
    }
}

fn check_logits(model: &LoadedModel, golden: &Golden, tolerance: f64) {
    let some = golden.some_ids();
    let mut found = Vec::new();
    each_logits(model, &ids(&golden.json["prompt_ids"]), &mut |_, row| {
        found.extend(some.iter().map(|&id| row[id]));
    });
    let apart = max_difference(&found, &golden.floats("logits_some"));
    assert!(apart < tolerance, "logits differ by {apart}");
}

/// Perplexity of the prose: like transformers', token by token, and close to llama.cpp's, which computes with 8 bits.
fn check_perplexity(model: &LoadedModel, golden: &Golden, tolerance: f64) {
    let text = model.tokenizer.encode(&prose(), Specials::AsText).unwrap();
    let ids = [model.tokenizer.start(), &text].concat();
    assert_eq!(golden.json["prose_tokens"], ids.len());
    let mut found = Vec::new();
    each_logits(model, &ids, &mut |position, row| {
        let Some(next) = ids.get(position + 1) else {
            return;
        };
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
        found.push((f64::from(most - row[*next as usize]) + sum.ln()) as f32);
    });
    let apart = max_difference(&found, &golden.floats("nlls"));
    assert!(apart < tolerance, "a token's NLL differs by {apart}");
    let mean = found.iter().map(|x| f64::from(*x)).sum::<f64>() / found.len() as f64;
    let theirs = |name: &str| golden.json["prose_nll"][name].as_f64().unwrap();
    assert!((mean - theirs("transformers")).abs() < 1e-4, "{mean}");
    let ratio = (mean - theirs("llama.cpp")).exp();
    assert!(
        (0.98..1.02).contains(&ratio),
        "perplexity is {ratio} × llama.cpp's"
    );
}

/// A prompt that is longer than any window, and the tokens after it.
fn check_long_prompt(model: &LoadedModel, golden: &Golden, tolerance: f64) {
    let plan = Plan::full(model.model.config().layers.len());
    let device = model.model.device();
    let mut cache = KvCache::new(plan, model.model.cache_shape(1), device).unwrap();
    let long = golden.long_ids();
    assert_eq!(long.len(), 8192);
    let options = &mut PrefillOptions::default();
    let logits = model.model.prefill(model.ids(&long), &mut cache, options);
    let mut logits: Vec<f32> = logits.unwrap().try_into_vec_as().unwrap();
    let found: Vec<f32> = golden.some_ids().into_iter().map(|id| logits[id]).collect();
    let apart = max_difference(&found, &golden.floats("long_logits_some"));
    assert!(
        apart < tolerance,
        "logits after 8,192 tokens differ by {apart}"
    );
    let mut tokens = Vec::new();
    let wanted = ids(&golden.json["long_greedy_ids"]);
    while tokens.len() < wanted.len() {
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        let best = u32::try_from(best.unwrap()).unwrap();
        tokens.push(best);
        let next = model.model.decode(model.ids(&[best]), &mut cache);
        logits = next.unwrap().try_into_vec_as().unwrap();
    }
    assert_eq!(tokens, wanted, "after 8,192 tokens");
}

/// Answers with the full cache; the generator can be asked again.
fn greedy(generator: &mut Generator, prompt: &[u32], tokens: usize) -> (Vec<u32>, String) {
    let options = GenerateOptions {
        max_new_tokens: tokens,
        ..GenerateOptions::default()
    };
    let found = generator
        .generate(prompt, &options, &mut |_| ControlFlow::Continue(()))
        .unwrap();
    (found.tokens, found.text)
}

fn check_greedy(generator: &mut Generator, golden: &Golden) {
    let wanted = ids(&golden.json["greedy_ids"]);
    let (tokens, text) = greedy(generator, &ids(&golden.json["prompt_ids"]), wanted.len());
    assert_eq!(tokens, wanted);
    assert_eq!(text, golden.json["greedy_text"].as_str().unwrap());
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

fn loaded(path: &Path) -> LoadedModel {
    load(path, &Device::flex()).unwrap()
}

#[test]
fn gemma3_equals_transformers_and_llama_cpp() {
    let Some(path) = gemma3() else { return };
    let golden = Golden::read("gemma3");
    let model = loaded(&path);
    // <eos> by its key, <end_of_turn> by its text.
    assert_eq!(model.eos_tokens, [1, 106]);
    assert!(model.chat.is_none());
    check_logits(&model, &golden, 5e-3);
    check_perplexity(&model, &golden, 5e-3);
    check_long_prompt(&model, &golden, 5e-3);
    let plan = Plan::full(model.model.config().layers.len());
    check_greedy(&mut Generator::new(model, plan).unwrap(), &golden);
}
