//! Scores and kept entries against kvpress.

use crate::{Golden, common, fixture};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use polykv::models::layers::Rope;
use polykv::models::load;
use polykv::ops::{AttentionBlock, Mask, Protected, attend};
use polykv::policy::{Appended, LayerView, State};
use polykv::testing::max_difference;
use polykv::{Budget, KvCache, LayerFacts, LayerShape, ModelFacts, Phase, Plan, Storage};

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

pub const PRESS_SHAPE: LayerShape = LayerShape {
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
    let layers = (0..3).map(|layer| {
        let name = format!("model.layers.{layer}.self_attn.o_proj.weight");
        let (shape, values) = weights.floats(&name);
        let mut facts = LayerFacts::default();
        facts.rope = Some(Rope::new(&config.layers).facts(0));
        facts.output = Some(Tensor::<2>::from_data(TensorData::new(values, shape), device).into());
        facts
    });
    let mut facts = ModelFacts::default();
    facts.layers = layers.collect();
    facts
}

#[test]
fn kept_sets_equal_kvpress() {
    let golden = Golden::read("policies.safetensors");
    let device = Device::flex();
    let facts = press_facts(&device);
    // kvpress leaves open which of lagkv's equal ranks stay.
    for (policy, press, params) in PRESSES.into_iter().filter(|own| own.0 != "lagkv") {
        let own = common::policy(policy, params);
        for budget in [20, 37] {
            let plan = Plan::uniform(3, own.clone(), Budget::Tokens(budget), &[Phase::Prefill]);
            let mut cache = KvCache::new(plan, PRESS_SHAPE, &device).unwrap();
            cache.set_facts(&facts);
            let mut prompt = cache.prompt(61).unwrap();
            for layer in 0..3 {
                let part = |name: &str| golden.tensor(&format!("layer{layer}.{name}"), &device);
                prompt
                    .attend(layer, part("queries"), part("keys"), part("values"))
                    .unwrap();
                prompt.end_layer(layer).unwrap();
                let found = prompt.cache().layers()[layer].positions().unwrap();
                let found: Vec<i64> = found.try_into_vec_as().unwrap();
                let wanted = golden.ints(&format!("layer{layer}.kept.{press}.b{budget}"));
                assert_eq!(found, wanted, "{policy}, layer {layer}, budget {budget}");
            }
            prompt.finish().unwrap();
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
        let policy = common::policy(policy, params);
        for layer in 0..3 {
            let part = |name: &str| golden.tensor(&format!("layer{layer}.{name}"), &device);
            let (queries, keys, values) = (part("queries"), part("keys"), part("values"));
            let layer_facts = &facts.layers[layer];
            let appended = Appended {
                layer,
                first_head: 0,
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
                    &Mask::default(),
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
                first_head: 0,
                shape: PRESS_SHAPE,
                seen: 61,
                budget: 20,
                protected: Protected {
                    protect: policy.protect(20),
                    spans: &[],
                    seen: 61,
                    oldest: 0,
                },
                facts: layer_facts,
                softcap: None,
                heads_agree: true,
                stored_keys: keys.into(),
                stored_values: values.into(),
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
            let worst = max_difference(&found, &wanted);
            assert!(worst < 1e-6, "{press}, layer {layer}: {worst}");
        }
    }
}
