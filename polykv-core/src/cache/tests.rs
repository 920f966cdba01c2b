//! What can only be seen from inside; the rest is in the workspace's tests/cache.rs.

use super::order::Order;
use super::*;
use crate::phase::Phase;
use crate::policy::{Params, Policies};
use crate::{Budget, LayerFacts, PlanFile, Registry, RopeFacts};
use burn::tensor::{DType, Distribution, Int, TensorData};

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
    let policies = Policies::default();
    for entry in policies.iter() {
        let params = Params::from_yaml(&entry.variants[0]).unwrap();
        let policy = policies.build(&entry.name, &params).unwrap();
        let plan = Plan::uniform(1, policy, Budget::Tokens(12), &Phase::BOTH);
        let mut cache = KvCache::new(plan, SHAPE, &device).unwrap();
        let layer = LayerFacts {
            rope: Some(RopeFacts {
                frequencies: [1.0, 0.3, 0.1, 0.03].into(),
                magnitude: 1.0,
            }),
            output: Some(Tensor::random([12, 32], Distribution::Default, &device).into()),
            ..LayerFacts::default()
        };
        cache.set_facts(&ModelFacts {
            layers: vec![layer],
            ..ModelFacts::default()
        });
        let mut prompt = cache.prompt(20).unwrap();
        prompt
            .attend(0, random(4, 20), random(2, 20), random(2, 20))
            .unwrap();
        if prompt.layers_to_repeat() > 0 {
            prompt
                .repeat(0, random(4, 5), random(2, 5), random(2, 5))
                .unwrap();
        }
        prompt.end_layer(0).unwrap();
        prompt.finish().unwrap();
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
            assert_eq!(address(&cache), before, "policy {}", entry.name);
        }
    }
}

#[test]
fn plans_that_do_the_same_in_a_layer_share_its_cut() {
    let device = Device::flex();
    let random =
        |heads, tokens| Tensor::<4>::random([2, heads, tokens, 8], Distribution::Default, &device);
    let plan = |text: &str| {
        let file = PlanFile::from_yaml(text).unwrap();
        file.build(&Registry::default()).unwrap()
    };
    let same = "{schema: 1, layers: 2, budget: {tokens: 10}, prefill: [{layers: 0-1, policy: h2o}],
        decode: [{layers: 0-1, policy: tova}]}";
    let other =
        "{schema: 1, layers: 2, budget: {tokens: 10}, prefill: [{layers: 0-1, policy: h2o}],
        decode: [{layers: 0, policy: tova}, {layers: 1, policy: h2o}]}";
    let plans = [same, other, same].map(plan).to_vec();
    let shared = SharedPrefill::new(plans, SHAPE, &device).unwrap();
    let mut prompt = Prompt::new(shared, 20).unwrap();
    for layer in 0..2 {
        prompt
            .attend(layer, random(4, 20), random(2, 20), random(2, 20))
            .unwrap();
        prompt.end_layer(layer).unwrap();
    }
    let caches = prompt.finish().unwrap().into_caches();
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
