//! How many kernels a decoded token launches on a GPU, for each layer. On a card the time of a token is at least a few microseconds
//! for each, so whoever adds one must change a number here. A process of its own: launches of all threads are counted.
//!
//! Without a wgpu adapter the test is skipped with a message; `POLYKV_REQUIRE_WGPU=1` makes that a failure.

mod common;

use burn::tensor::{Int, Tensor, TensorData};
use common::policy;
use polykv::models::{CausalLm, PrefillOptions, decode_rows, load};
use polykv::testing::launches;
use polykv::{Budget, DeviceSpec, KvCache, Phase, Plan, Storage};
use std::collections::BTreeMap;
use std::path::Path;

const LAYERS: usize = 3;
const TOKENS: usize = 16;

/// Launches of a layer for a token: RMS norm, QKV and rotary embedding; writing the entry and attention; joining its parts; the
/// output projection; RMS norm and SwiGLU; the down projection.
const FULL: usize = 6;

/// Launches of a token beside its layers: embedding, the last norm, the head.
const TOKEN: usize = 3;

fn ids(range: std::ops::Range<i64>, model: &dyn CausalLm) -> Tensor<2, Int> {
    let values: Vec<i64> = range.map(|i| i * 37 % 150 + 3).collect();
    let dims = [1, values.len()];
    Tensor::from_data(TensorData::new(values, dims), model.device())
}

/// The launches of a token of sequences under these plans, by kernel, over all layers.
fn of_token(model: &dyn CausalLm, plans: &[Plan]) -> BTreeMap<&'static str, f64> {
    let after_prompt = |(row, plan): (usize, &Plan)| {
        let mut cache = KvCache::new(plan.clone(), model.cache_shape(1), model.device()).unwrap();
        let options = &mut PrefillOptions::default();
        let prompt = ids(0..48 + 5 * row as i64, model);
        model.prefill(prompt, &mut cache, options).unwrap();
        // A full cache grows seldom; here not at all.
        cache.reserve(64);
        cache
    };
    let mut caches: Vec<KvCache> = plans.iter().enumerate().map(after_prompt).collect();
    let mut decode = |at: i64| {
        let logits = match &mut caches[..] {
            [cache] => model.decode(ids(at..at + 1, model), cache),
            caches => {
                let tokens = vec![at as u32 % 150; caches.len()];
                decode_rows(model, &tokens, &mut caches.iter_mut().collect::<Vec<_>>())
            }
        };
        let read: Vec<f32> = logits.unwrap().try_into_vec_as().unwrap();
        assert!(read.iter().all(|x| x.is_finite()));
    };
    (48..52).for_each(&mut decode);
    let counted = launches(|| (52..52 + TOKENS as i64).for_each(&mut decode));
    let each = counted.into_iter();
    each.map(|(kernel, count)| (kernel, count as f64 / TOKENS as f64))
        .collect()
}

#[test]
fn a_decoded_token_launches_no_more_than_stated() {
    let device = match DeviceSpec::Wgpu(0).open() {
        Ok(device) => device,
        Err(error) => {
            assert!(std::env::var_os("POLYKV_REQUIRE_WGPU").is_none(), "{error}");
            return eprintln!("skipped: {error}");
        }
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama31");
    let model = load::load_weights(&folder, Storage::F32, &device).unwrap();
    assert_eq!(model.config().layers.len(), LAYERS);
    let with = |name: &str, params: &str, every: usize| {
        let policy = policy(name, params);
        let mut plan = Plan::uniform(LAYERS, policy, Budget::Tokens(40), &Phase::BOTH);
        plan.every = every;
        plan
    };
    let evicting = |name: &str, every: usize| with(name, "{}", every);
    // Those beyond the full cache, for a layer.
    let single = [
        ("full", Plan::full(LAYERS), 0.0),
        ("streaming-llm", evicting("streaming-llm", 1), 1.0),
        ("tova", evicting("tova", 1), 1.0),
        ("h2o", evicting("h2o", 1), 1.0),
        ("scissorhands", evicting("scissorhands", 1), 1.0),
        ("cake", evicting("cake", 1), 6.0),
        ("snapkv", evicting("snapkv", 1), 8.0),
        ("snapkv every 8", evicting("snapkv", 8), 2.5),
        // Its window leaves room for 16 more in so small a budget.
        ("snapkv every 16", with("snapkv", "{window: 8}", 16), 1.75),
    ];
    let mut stated = single
        .map(|(name, plan, most)| (name, vec![plan], most))
        .to_vec();
    // Sequences of different lengths together, and heads with budgets of their own. Scores are checked for NaN, sequence by
    // sequence, once in 32 tokens.
    let several = ["streaming-llm", "tova", "h2o", "h2o"].map(|name| evicting(name, 1));
    let divided = with("adakv", "{base: h2o}", 1);
    stated.extend([
        ("full, four sequences", vec![Plan::full(LAYERS); 4], 0.0),
        ("four evicting sequences", several.to_vec(), 1.25),
        ("adakv over h2o", vec![divided.clone()], 1.25),
        ("adakv over h2o, four sequences", vec![divided; 4], 1.6),
    ]);
    let mut wrong = Vec::new();
    for (name, plans, most) in stated {
        let counted = of_token(&*model, &plans);
        let all: f64 = counted.values().sum();
        let layer = (all - TOKEN as f64) / LAYERS as f64;
        println!("{name}: {layer:.2} per layer");
        for (kernel, count) in &counted {
            let short = kernel.split('<').next().unwrap_or(kernel);
            println!("    {:6.2} {}", count / LAYERS as f64, short);
        }
        // A buffer that grows now and then is no launch of every token.
        if layer > FULL as f64 + most + 0.05 {
            wrong.push(format!("{name}: {layer}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
