//! Tiny seeded models and kvpress scores against fixtures made by `tests/fixtures/generate.py` and `adakv.py`.

#![cfg(feature = "flex")]

#[path = "golden/adakv.rs"]
mod adakv;
mod common;
#[path = "golden/kvpress.rs"]
mod kvpress;
#[path = "golden/plans.rs"]
mod plans;

use burn::tensor::{Device, Int, Tensor, TensorData};
use polykv::models::chat::Message;
use polykv::models::tokenizer::Specials;
use polykv::models::{CausalLm, PrefillOptions, load};
use polykv::policy::{Params, Policies};
use polykv::testing::max_difference;
use polykv::{Budget, KvCache, Phase, Plan, Storage};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// A fixture's tensors as f32 or i64 values with their shapes.
struct Golden(Vec<u8>);

impl Golden {
    fn read(name: &str) -> Self {
        Self(std::fs::read(fixture(name)).unwrap())
    }

    fn raw(&self, name: &str) -> (Vec<usize>, Vec<u8>) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap();
        (tensor.shape().to_vec(), tensor.data().to_vec())
    }

    fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let (shape, bytes) = self.raw(name);
        (
            shape,
            bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect(),
        )
    }

    fn ints(&self, name: &str) -> Vec<i64> {
        self.raw(name)
            .1
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    fn tensor(&self, name: &str, device: &Device) -> Tensor<4> {
        let (shape, values) = self.floats(name);
        Tensor::from_data(TensorData::new(values, shape), device)
    }
}

fn ids(values: &[i64], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [1, values.len()]), device)
}

fn full_cache(model: &dyn CausalLm) -> KvCache {
    let plan = Plan::full(model.config().layers.len());
    KvCache::new(plan, model.cache_shape(1), model.device()).unwrap()
}

fn argmax(logits: &[f32]) -> i64 {
    (0..logits.len())
        .max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
        .unwrap() as i64
}

fn greedy(model: &dyn CausalLm, prompt: &[i64], steps: usize) -> Vec<i64> {
    let mut cache = full_cache(model);
    let prompt = ids(prompt, model.device());
    let mut logits = model
        .prefill(prompt, &mut cache, &mut PrefillOptions::default())
        .unwrap();
    let mut tokens = Vec::new();
    loop {
        tokens.push(argmax(&logits.try_into_vec_as::<f32>().unwrap()));
        if tokens.len() == steps {
            return tokens;
        }
        logits = model
            .decode(ids(&tokens[tokens.len() - 1..], model.device()), &mut cache)
            .unwrap();
    }
}

/// A model of each family; those with windows have prompts beyond them.
const MODELS: [&str; 10] = [
    "tiny-llama31",
    "tiny-llama-tied",
    "tiny-mistral",
    "tiny-qwen2",
    "tiny-qwen3",
    "tiny-qwen3-moe",
    "tiny-gemma2",
    "tiny-gemma3",
    "tiny-phi3",
    "tiny-smollm3",
];

#[test]
fn tiny_models_equal_transformers() {
    for name in MODELS {
        let golden = Golden::read(&format!("{name}/golden.safetensors"));
        let prompt = golden.ints("ids");
        let (_, wanted) = golden.floats("logits");
        let model = load::load_weights(&fixture(name), Storage::F32, &Device::flex()).unwrap();
        for chunk in [512, 10] {
            let mut options = PrefillOptions {
                chunk,
                ..PrefillOptions::default()
            };
            let mut cache = full_cache(&*model);
            let logits = model
                .logits(ids(&prompt, model.device()), &mut cache, &mut options)
                .unwrap();
            let worst = max_difference(&logits.try_into_vec_as::<f32>().unwrap(), &wanted);
            assert!(worst < 1e-4, "{name}, chunk {chunk}: {worst}");
        }
        let wanted = golden.ints("greedy");
        assert_eq!(greedy(&*model, &prompt, wanted.len()), wanted, "{name}");
    }
}

/// Transformers takes Phi-3's short factors up to the original context, the long ones beyond it.
#[test]
fn phi3_within_its_original_context_equals_transformers() {
    let golden = Golden::read("tiny-phi3/golden.safetensors");
    let (_, wanted) = golden.floats("short_logits");
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(fixture("tiny-phi3/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["original_max_position_embeddings"] = config["max_position_embeddings"].clone();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let weights = "model.safetensors";
    std::fs::copy(fixture("tiny-phi3").join(weights), dir.path().join(weights)).unwrap();
    let model = load::load_weights(dir.path(), Storage::F32, &Device::flex()).unwrap();
    let prompt = ids(&golden.ints("ids"), model.device());
    let mut options = PrefillOptions::default();
    let logits = model.logits(prompt, &mut full_cache(&*model), &mut options);
    let found = logits.unwrap().try_into_vec_as::<f32>().unwrap();
    let worst = max_difference(&found, &wanted);
    assert!(worst < 1e-4, "{worst}");
}

/// Trimming comes after the whole prompt, so that its chunks do not matter.
#[test]
fn chunks_of_a_prompt_leave_the_same_entries() {
    for name in MODELS {
        let golden = Golden::read(&format!("{name}/golden.safetensors"));
        let prompt = golden.ints("ids");
        let model = load::load_weights(&fixture(name), Storage::F32, &Device::flex()).unwrap();
        let policy = Policies::default().build("tova", &Params::new()).unwrap();
        let run = |chunk: usize| -> Vec<f32> {
            let layers = model.config().layers.len();
            let plan = Plan::uniform(layers, policy.clone(), Budget::Tokens(12), &Phase::BOTH);
            let mut cache = KvCache::new(plan, model.cache_shape(1), model.device()).unwrap();
            let mut options = PrefillOptions {
                chunk,
                ..PrefillOptions::default()
            };
            let prompt = ids(&prompt, model.device());
            model.prefill(prompt, &mut cache, &mut options).unwrap();
            let next = [9, 77, 31].map(|id| {
                let logits = model.decode(ids(&[id], model.device()), &mut cache);
                logits.unwrap().try_into_vec_as::<f32>().unwrap()
            });
            next.concat()
        };
        let worst = max_difference(&run(512), &run(10));
        assert!(worst < 1e-4, "{name}: {worst}");
    }
}

/// Writes the tiny model with its weights cast to `dtype` by `cast`, which also returns what f32 weights of the same
/// values are.
fn recast(folder: &Path, dtype: Dtype, cast: fn(f32) -> Vec<u8>) {
    let bytes = std::fs::read(fixture("tiny-llama31/model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let data: BTreeMap<String, (Vec<usize>, Vec<u8>)> = file
        .iter()
        .map(|(name, tensor)| {
            let values = tensor
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            (
                name.to_string(),
                (tensor.shape().to_vec(), values.flat_map(cast).collect()),
            )
        })
        .collect();
    let views = data.iter().map(|(name, (shape, bytes))| {
        (name, TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(
        folder.join("model.safetensors"),
        safetensors::serialize(views, None).unwrap(),
    )
    .unwrap();
    std::fs::copy(
        fixture("tiny-llama31/config.json"),
        folder.join("config.json"),
    )
    .unwrap();
}

#[test]
fn half_precision_files_load_exactly() {
    let logits = |folder: &Path| -> Vec<f32> {
        let model = load::load_weights(folder, Storage::F32, &Device::flex()).unwrap();
        let prompt = ids(&[5, 99, 42, 7], model.device());
        let logits = model.logits(
            prompt,
            &mut full_cache(&*model),
            &mut PrefillOptions::default(),
        );
        logits.unwrap().try_into_vec_as().unwrap()
    };
    let original = logits(&fixture("tiny-llama31"));
    type Cast = fn(f32) -> Vec<u8>;
    let variants: [(Dtype, Cast, Cast); 2] = [
        (
            Dtype::F16,
            |x| half::f16::from_f32(x).to_le_bytes().to_vec(),
            |x| half::f16::from_f32(x).to_f32().to_le_bytes().to_vec(),
        ),
        (
            Dtype::BF16,
            |x| half::bf16::from_f32(x).to_le_bytes().to_vec(),
            |x| half::bf16::from_f32(x).to_f32().to_le_bytes().to_vec(),
        ),
    ];
    for (dtype, half, rounded) in variants {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        recast(folders[0].path(), dtype, half);
        recast(folders[1].path(), Dtype::F32, rounded);
        let found = logits(folders[0].path());
        assert_eq!(found, logits(folders[1].path()), "{dtype:?}");
        let apart = max_difference(&found, &original);
        assert!(apart > 0.0 && apart < 1e-1, "{dtype:?}: rounded by {apart}");
    }
}

#[test]
fn tokenizer_and_chat_template_equal_transformers() {
    let loaded = load(&fixture("tiny-llama31"), &Device::flex()).unwrap();
    let text = std::fs::read_to_string(fixture("tiny-llama31/tokenizer_golden.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    check_text(
        &loaded.tokenizer,
        loaded.chat.as_ref().unwrap(),
        &golden["cases"],
        &golden["chats"],
    );
}

fn check_text(
    tokenizer: &polykv::models::tokenizer::Tokenizer,
    chat: &polykv::models::chat::ChatTemplate,
    cases: &serde_json::Value,
    chats: &serde_json::Value,
) {
    let numbers = |value: &serde_json::Value| -> Vec<u32> {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_u64().unwrap() as u32)
            .collect()
    };
    for case in cases.as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let found = tokenizer.encode(text, Specials::Parse).unwrap();
        assert_eq!(found, numbers(&case["ids"]), "{text:?}");
        assert_eq!(
            tokenizer.decode(&found, false).unwrap(),
            case["decoded"].as_str().unwrap()
        );
    }
    for case in chats.as_array().unwrap() {
        let messages: Vec<Message> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| Message::new(m["role"].as_str().unwrap(), m["content"].as_str().unwrap()))
            .collect();
        assert_eq!(
            chat.render(&messages, true).unwrap(),
            case["text"].as_str().unwrap()
        );
        assert_eq!(
            chat.encode(tokenizer, &messages, true).unwrap(),
            numbers(&case["ids"])
        );
    }
}

/// Rotary embedding sees distances only, so a sequence gives the same logits wherever it starts.
#[test]
fn rows_of_a_batch_may_start_at_other_positions() {
    for name in MODELS {
        let model = load::load_weights(&fixture(name), Storage::F32, &Device::flex()).unwrap();
        let prompt: Vec<i64> = (0..24).map(|i| 5 + 7 * i % 150).collect();
        let policy = Policies::default().build("tova", &Params::new()).unwrap();
        let run = |first: &[usize]| -> Vec<f32> {
            let plan = Plan::uniform(
                model.config().layers.len(),
                policy.clone(),
                Budget::Tokens(12),
                &Phase::BOTH,
            );
            let rows = first.len();
            let cache = KvCache::new(plan, model.cache_shape(rows), model.device()).unwrap();
            let mut cache = cache.starting_at(first).unwrap();
            let tokens = ids(&prompt, model.device()).repeat_dim(0, rows);
            let mut options = PrefillOptions {
                chunk: 10,
                ..PrefillOptions::default()
            };
            model.prefill(tokens, &mut cache, &mut options).unwrap();
            let next = ids(&[9], model.device()).repeat_dim(0, rows);
            let logits = model.decode(next.clone(), &mut cache).unwrap();
            let again = model.decode(next, &mut cache).unwrap();
            Tensor::cat(vec![logits, again], 1)
                .try_into_vec_as()
                .unwrap()
        };
        let alone = run(&[0]);
        let batch = run(&[0, 31]);
        let rows: Vec<&[f32]> = batch.chunks_exact(alone.len()).collect();
        assert!(max_difference(rows[0], &alone) < 1e-4, "{name}");
        assert!(max_difference(rows[1], &alone) < 1e-3, "{name}");
        assert_ne!(rows[0], rows[1], "{name}: the second row was not moved");
    }
}
