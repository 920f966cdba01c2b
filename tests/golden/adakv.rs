//! The entries that each KV head keeps when heads share a budget, against kvpress.

use crate::kvpress::PRESS_SHAPE;
use crate::{Golden, common, fixture};
use burn::tensor::{Device, Tensor, TensorData};
use polykv::testing::kept;
use polykv::{Budget, KvCache, Phase, Plan};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

/// The fields are described in tests/fixtures/adakv.py.
#[derive(Deserialize)]
struct Case {
    window: usize,
    kernel: usize,
    floor: f64,
    budget: usize,
    scales: [f32; 2],
    kept: Vec<Vec<Vec<usize>>>,
}

#[test]
fn heads_keep_what_they_keep_under_kvpress() {
    let golden = Golden::read("policies.safetensors");
    let text = std::fs::read_to_string(fixture("adakv.json")).unwrap();
    let cases = serde_json::from_str::<Fixture>(&text).unwrap().cases;
    assert!(cases.len() > 70, "{}", cases.len());
    let device = Device::flex();
    for case in cases {
        let Case {
            window,
            kernel,
            floor,
            budget,
            scales,
            kept: wanted,
        } = case;
        let params = format!(
            "{{base: {{policy: snapkv, window: {window}, kernel: {kernel}, pool: avg}}, floor: {floor}}}"
        );
        let own = common::policy("adakv", &params);
        let plan = Plan::uniform(3, own, Budget::Tokens(budget), &[Phase::Prefill]);
        let mut cache = KvCache::new(plan, PRESS_SHAPE, &device).unwrap();
        let mut prompt = cache.prompt(61).unwrap();
        let factors = TensorData::new(scales.to_vec(), [1, 2, 1, 1]);
        let factors = Tensor::<4>::from_data(factors, &device);
        for layer in 0..3 {
            let part = |name: &str| golden.tensor(&format!("layer{layer}.{name}"), &device);
            let keys = part("keys").mul(factors.clone());
            prompt
                .attend(layer, part("queries"), keys, part("values"))
                .unwrap();
            prompt.end_layer(layer).unwrap();
        }
        prompt.finish().unwrap();
        let found: Vec<Vec<Vec<usize>>> =
            (0..3).map(|layer| kept(&cache, layer).unwrap()).collect();
        assert_eq!(
            found, wanted,
            "{params}, budget {budget}, keys times {scales:?}"
        );
    }
}
