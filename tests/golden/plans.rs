//! Whole plans against python/polykv-kvpress, which runs them under PyTorch: kept positions of every layer and KV head.

use super::{fixture, ids};
use burn::tensor::Device;
use polykv::models::{PrefillOptions, load};
use polykv::{KvCache, PlanFile, Registry, Storage};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

/// The fields are described in python/polykv-kvpress/tests/fixture.py.
#[derive(Deserialize)]
struct Case {
    name: String,
    model: String,
    plan: String,
    prompt: Vec<i64>,
    kept: Vec<Option<Vec<Vec<i64>>>>,
}

#[test]
fn plans_keep_what_they_keep_under_pytorch() {
    let text = std::fs::read_to_string(fixture("kvpress-plans.json")).unwrap();
    let cases = serde_json::from_str::<Fixture>(&text).unwrap().cases;
    assert!(cases.len() > 40, "{}", cases.len());
    for case in cases {
        let place = format!("{}, {}", case.model, case.name);
        let folder = fixture(&case.model);
        let model = load::load_weights(&folder, Storage::F32, &Device::flex()).unwrap();
        let file = PlanFile::from_yaml(&case.plan).unwrap();
        let plan = file.build(&Registry::default()).unwrap();
        let mut cache = KvCache::new(plan, model.cache_shape(1), model.device()).unwrap();
        let prompt = ids(&case.prompt, model.device());
        let mut options = PrefillOptions::default();
        model.prefill(prompt, &mut cache, &mut options).unwrap();
        assert_eq!(cache.layers().len(), case.kept.len(), "{place}");
        for (layer, (found, wanted)) in cache.layers().iter().zip(&case.kept).enumerate() {
            let Some(wanted) = wanted else {
                // Its rule keeps everything, or what its window holds.
                continue;
            };
            let found: Vec<i64> = found.positions().unwrap().try_into_vec_as().unwrap();
            let heads = found.chunks(found.len() / wanted.len());
            for (head, (found, wanted)) in heads.zip(wanted).enumerate() {
                let mut found = found.to_vec();
                found.sort_unstable();
                assert_eq!(found, *wanted, "{place}: layer {layer}, head {head}");
            }
        }
    }
}
