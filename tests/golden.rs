//! Tiny seeded models and kvpress scores against fixtures made by `tests/fixtures/generate.py`.

#![cfg(feature = "flex")]

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use polykv::models::chat::Message;
use polykv::models::layers::Rope;
use polykv::models::tokenizer::Specials;
use polykv::models::{CausalLm, PrefillOptions, load};
use polykv::ops::{AttentionBlock, Protected, attend};
use polykv::policy::{self, Appended, LayerView, Params, State};
use polykv::{Budget, KvCache, LayerFacts, LayerShape, ModelFacts, Phase, Plan, Storage};
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
    let plan = Plan::full(model.config().layers);
    KvCache::new(plan, model.cache_shape(1), model.device()).unwrap()
}

fn worst(found: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(found.len(), wanted.len());
    found
        .iter()
        .zip(wanted)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
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

#[test]
fn tiny_models_equal_transformers() {
    for name in ["tiny-llama31", "tiny-llama-tied", "tiny-qwen3"] {
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
            let worst = worst(&logits.try_into_vec_as::<f32>().unwrap(), &wanted);
            assert!(worst < 1e-4, "{name}, chunk {chunk}: {worst}");
        }
        let wanted = golden.ints("greedy");
        assert_eq!(greedy(&*model, &prompt, wanted.len()), wanted, "{name}");
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
        assert!(worst(&found, &original) > 0.0, "{dtype:?} was not rounded");
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

/// Our policy, the press in the fixture, our parameters.
const PRESSES: [(&str, &str, &str); 10] = [
    ("snapkv", "snapkv", "{window: 8, kernel: 5, pool: avg}"),
    ("tova", "tova", "{protect_last: 1}"),
    ("h2o", "h2o", "{normalize: true, recent_fraction: 0.0}"),
    ("knorm", "knorm", "{}"),
    ("keydiff", "keydiff", "{}"),
    (
        "expected-attention",
        "expected",
        "{future: 64, sinks: 4, epsilon: 0.02}",
    ),
    ("lagkv", "lagkv", "{lag: 8, sinks: 4}"),
    (
        "criticalkv",
        "critical",
        "{base: {policy: snapkv, window: 8, kernel: 5, pool: avg}}",
    ),
    ("pyramidkv", "snapkv", "{window: 8, kernel: 5, pool: avg}"),
    ("streaming-llm", "streaming", "{sinks: 4}"),
];

const PRESS_SHAPE: LayerShape = LayerShape {
    batch: 1,
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
    dtype: DType::F32,
};

/// What the model of the fixture tells its cache.
fn press_facts(device: &Device) -> ModelFacts {
    let folder = fixture("tiny-llama31");
    let config = load::load_weights(&folder, Storage::F32, device)
        .unwrap()
        .config()
        .clone();
    let weights = Golden::read("tiny-llama31/model.safetensors");
    let output = (0..3).map(|layer| {
        let name = format!("model.layers.{layer}.self_attn.o_proj.weight");
        let (shape, values) = weights.floats(&name);
        Tensor::from_data(TensorData::new(values, shape), device)
    });
    ModelFacts {
        rope: Some(Rope::new(&config).facts()),
        output: output.collect(),
    }
}

#[test]
fn kept_sets_equal_kvpress() {
    let golden = Golden::read("policies.safetensors");
    let device = Device::flex();
    let facts = press_facts(&device);
    // kvpress leaves open which of lagkv's equal ranks stay.
    for (policy, press, params) in PRESSES.into_iter().filter(|own| own.0 != "lagkv") {
        let params: Params = serde_yaml_ng::from_str(params).unwrap();
        for budget in [20, 37] {
            let plan = Plan::uniform(
                3,
                policy,
                params.clone(),
                Budget::Tokens(budget),
                &[Phase::Prefill],
            );
            let mut cache = KvCache::new(plan, PRESS_SHAPE, &device).unwrap();
            cache.set_facts(&facts);
            cache.begin_prefill(61).unwrap();
            for layer in 0..3 {
                let part = |name: &str| golden.tensor(&format!("layer{layer}.{name}"), &device);
                cache
                    .prefill(layer, part("queries"), part("keys"), part("values"))
                    .unwrap();
                cache.end_prefill(layer).unwrap();
                let found = cache.layers()[layer].positions().unwrap();
                let found: Vec<i64> = found.try_into_vec_as().unwrap();
                let wanted = golden.ints(&format!("layer{layer}.kept.{press}.b{budget}"));
                assert_eq!(found, wanted, "{policy}, layer {layer}, budget {budget}");
            }
        }
    }
}

/// Compared are the entries that kvpress leaves to the score: it overwrites the window of snapkv, the last entry of
/// tova and the sinks of expected attention, which ours protects apart from the score.
#[test]
fn scores_equal_kvpress() {
    let golden = Golden::read("policies.safetensors");
    let device = Device::flex();
    let facts = press_facts(&device);
    let scored = [0..53, 0..60, 0..61, 0..61, 0..61, 4..61, 0..61];
    for ((policy, press, params), scored) in PRESSES.iter().zip(scored) {
        let params: Params = serde_yaml_ng::from_str(params).unwrap();
        let policy = policy::build("test", policy, &params).unwrap();
        for layer in 0..3 {
            let part = |name: &str| golden.tensor(&format!("layer{layer}.{name}"), &device);
            let (queries, keys, values) = (part("queries"), part("keys"), part("values"));
            let layer_facts = LayerFacts {
                rope: facts.rope.clone(),
                output: Some(facts.output[layer].clone()),
            };
            let appended = Appended {
                layer,
                shape: PRESS_SHAPE,
                before: 0,
                positions: 0..61,
                to_come: 0,
                queries: queries.clone(),
                values: values.clone(),
                facts: layer_facts.clone(),
                device: device.clone(),
            };
            let mut state = State::default();
            policy.append(&mut state, &appended).unwrap();
            if policy.needs().attention {
                let mut observe = |block: &AttentionBlock| policy.observe(&mut state, block);
                attend(
                    queries.clone(),
                    keys.clone(),
                    values.clone(),
                    Some(&mut observe),
                )
                .unwrap();
            }
            let positions = Tensor::<1, Int>::arange(0..61, &device)
                .reshape([1, 1, 61])
                .expand([1, 2, 61]);
            let view = LayerView {
                phase: Phase::Prefill,
                layer,
                shape: PRESS_SHAPE,
                seen: 61,
                budget: 20,
                protected: Protected {
                    protect: policy.protect(20),
                    spans: &[],
                    seen: 61,
                },
                facts: &layer_facts,
                heads_agree: true,
                stored_keys: keys,
                stored_values: values,
                positions,
                queries: Some(queries.clone()),
                row: None,
                order: None,
            };
            let scores = policy.score(&state, &view).unwrap();
            let scores = scores.narrow(2, scored.start, scored.len());
            let (_, wanted) = golden.floats(&format!("layer{layer}.scores.{press}"));
            let wanted: Vec<f32> = wanted
                .chunks_exact(61)
                .flat_map(|row| row[scored.clone()].to_vec())
                .collect();
            // kvpress has the mean over the window, ours the sum: the same order.
            let factor = if press == &"snapkv" { 8.0 } else { 1.0 };
            let found: Vec<f32> = scores.div_scalar(factor).try_into_vec_as().unwrap();
            let worst = worst(&found, &wanted);
            assert!(worst < 1e-6, "{press}, layer {layer}: {worst}");
        }
    }
}
