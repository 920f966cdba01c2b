//! What can only be seen from inside; the rest is in the workspace's tests/cache.rs.

use super::order::Order;
use super::*;
use crate::Budget;
use crate::policy::{self, Params, Phase};
use burn::tensor::{Distribution, Int, TensorData};

const SHAPE: LayerShape = LayerShape {
    batch: 2,
    heads: 4,
    kv_heads: 2,
    head_dim: 8,
    dtype: DType::F32,
};

#[test]
fn decode_writes_in_place() {
    let device = Device::flex();
    let random =
        |heads, tokens| Tensor::<4>::random([2, heads, tokens, 8], Distribution::Default, &device);
    for name in policy::names() {
        let text = match name {
            "snapkv" | "pyramidkv" | "cake" => "{window: 4}",
            "scissorhands" => "{recent: 2}",
            "lagkv" => "{lag: 2}",
            "criticalkv" => "{base: h2o}",
            _ => "{}",
        };
        let params: Params = serde_yaml_ng::from_str(text).unwrap();
        let phases = [Phase::Prefill, Phase::Decode];
        let plan = Plan::uniform(1, name, params, Budget::Tokens(10), &phases);
        let mut cache = KvCache::new(plan, SHAPE, &device).unwrap();
        cache.set_facts(&ModelFacts {
            rope: Some(RopeFacts {
                frequencies: [1.0, 0.3, 0.1, 0.03].into(),
                magnitude: 1.0,
            }),
            output: vec![Tensor::random([12, 32], Distribution::Default, &device)],
        });
        cache.begin_prefill(20).unwrap();
        cache
            .prefill(0, random(4, 20), random(2, 20), random(2, 20))
            .unwrap();
        cache.end_prefill(0).unwrap();
        // The first step may make room or compact once.
        cache
            .decode(0, random(4, 1), random(2, 1), random(2, 1))
            .unwrap();
        let address = |cache: &KvCache| cache.layers[0].addresses();
        let before = address(&cache);
        for _ in 0..15 {
            cache
                .decode(0, random(4, 1), random(2, 1), random(2, 1))
                .unwrap();
            assert_eq!(address(&cache), before, "policy {name}");
        }
    }
}

#[test]
fn plans_that_do_the_same_in_a_layer_share_its_cut() {
    let device = Device::flex();
    let random =
        |heads, tokens| Tensor::<4>::random([2, heads, tokens, 8], Distribution::Default, &device);
    let plan = |text: &str| Plan::from_yaml("test", text).unwrap();
    let same = "{schema: 1, layers: 2, budget: {tokens: 10}, prefill: [{layers: 0-1, policy: h2o}],
        decode: [{layers: 0-1, policy: tova}]}";
    let other =
        "{schema: 1, layers: 2, budget: {tokens: 10}, prefill: [{layers: 0-1, policy: h2o}],
        decode: [{layers: 0, policy: tova}, {layers: 1, policy: h2o}]}";
    let plans = [same, other, same].map(plan).to_vec();
    let mut shared = SharedPrefill::new(plans, SHAPE, &device).unwrap();
    shared.begin_prefill(20).unwrap();
    for layer in 0..2 {
        shared
            .prefill(layer, random(4, 20), random(2, 20), random(2, 20))
            .unwrap();
        shared.end_prefill(layer).unwrap();
    }
    let caches = shared.finish();
    let cut = |cache: usize, layer: usize| caches[cache].layers[layer].addresses();
    assert_eq!(cut(0, 0), cut(1, 0), "the same rules in both phases");
    assert_eq!(cut(0, 0), cut(2, 0));
    assert_eq!(cut(0, 1), cut(2, 1));
    assert_ne!(cut(0, 1), cut(1, 1), "another policy in decode");
}

#[test]
fn what_stays_out_of_a_choice_is_in_order_of_position() {
    let slots = |slots: &[i64]| {
        let dims = [SHAPE.batch, SHAPE.kv_heads, slots.len() / 4];
        let data = TensorData::new(slots.to_vec(), dims);
        Tensor::<3, Int>::from_data(data, &Device::flex())
    };
    let rest = |order: &Order, kept: &[i64]| -> Vec<i64> {
        let others = order.rest(&slots(kept), 4).unwrap();
        others.try_into_vec_as().unwrap()
    };
    let mut order = Order::default();
    let kept = [2, 0, 1, 3];
    assert_eq!(rest(&order, &kept), [0, 1, 3, 1, 2, 3, 0, 2, 3, 0, 1, 2]);
    // Per head the order becomes 0 2 3 1, 1 2 3 0, 0 1 3 2 and 0 1 2 3.
    order.replace(slots(&[1, 0, 2, 4]), 5, SHAPE);
    assert_eq!(rest(&order, &kept), [0, 3, 1, 1, 2, 3, 0, 3, 2, 0, 1, 2]);
}
