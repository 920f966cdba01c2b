//! Weights and caches in fewer bits: close to f32, as small as they say, on every device that has the format and
//! refused by name on one that has not.

#[allow(dead_code, reason = "each test file uses a part of it")]
mod reference;

use burn::tensor::{Device, Int, Tensor, TensorData};
use polykv::models::{CausalLm, PrefillOptions, load};
use polykv::policy;
use polykv::{Budget, KvCache, Phase, Plan, Storage};
use reference::harness::small;
use std::path::{Path, PathBuf};

const BOTH: [Phase; 2] = [Phase::Prefill, Phase::Decode];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// Logits of a prompt's last token and of six forced tokens after it, and the cache that remains.
fn run(model: &dyn CausalLm, plan: Plan) -> (Vec<f32>, KvCache) {
    let mut cache = KvCache::new(plan, model.cache_shape(1), model.device()).unwrap();
    let ids = |ids: Vec<i64>| {
        let dims = [1, ids.len()];
        Tensor::<2, Int>::from_data(TensorData::new(ids, dims), model.device())
    };
    let mut options = PrefillOptions::default();
    let prompt = ids((3..53).collect());
    let mut logits = vec![model.prefill(prompt, &mut cache, &mut options).unwrap()];
    for token in 60..66 {
        logits.push(model.decode(ids(vec![token]), &mut cache).unwrap());
    }
    cache.check().unwrap();
    let logits = Tensor::cat(logits, 0).try_into_vec_as().unwrap();
    (logits, cache)
}

/// Root of the mean squared difference, relative to that of `b`.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let square = |x: f32| x * x;
    let difference: f32 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (difference / b.iter().copied().map(square).sum::<f32>()).sqrt()
}

/// The least and the most that the logits may be off: formats of fewer bits must make a difference, a small one.
fn range(storage: Storage) -> (f32, f32) {
    match storage {
        Storage::F32 => (0.0, 0.0),
        // Random weights amplify rounding more than trained ones.
        Storage::F16 => (1e-6, 1e-2),
        Storage::Bf16 => (1e-5, 5e-2),
        Storage::Q8 => (1e-5, 1e-1),
    }
}

#[cfg(feature = "flex")]
#[test]
fn every_format_is_close_to_f32_under_every_policy() {
    let load =
        |name, storage| load::load_weights(&fixture(name), storage, &Device::flex()).unwrap();
    for name in ["tiny-llama31", "tiny-qwen3"] {
        let exact = load(name, Storage::F32);
        let layers = exact.config().layers;
        let (wanted, full) = run(&*exact, Plan::full(layers));
        for storage in Storage::ALL {
            // Its rows are no whole number of blocks: see below.
            if (name, storage) == ("tiny-qwen3", Storage::Q8) {
                continue;
            }
            let model = load(name, storage);
            let (found, cache) = run(&*model, Plan::full(layers));
            let (least, most) = range(storage);
            let distance = distance(&found, &wanted);
            println!("{name}, {storage}: {distance:.1e}");
            assert!(
                (least..=most).contains(&distance),
                "{name}, {storage}: {distance}"
            );
            let halves = if storage == Storage::F32 { 1 } else { 2 };
            assert_eq!(
                cache.report().bytes * halves,
                full.report().bytes,
                "{storage}"
            );
            for policy in policy::names().into_iter().filter(|&name| name != "full") {
                let params = small(policy);
                let plan = Plan::uniform(layers, policy, params, Budget::Tokens(40), &BOTH);
                let (found, cache) = run(&*model, plan);
                assert!(found.iter().all(|x| x.is_finite()), "{storage}, {policy}");
                assert!(
                    cache.report().kept.iter().all(|&kept| kept == 40.0),
                    "{policy}"
                );
            }
        }
    }
}

#[cfg(feature = "flex")]
#[test]
fn rows_of_no_whole_number_of_blocks_are_refused_by_name() {
    let model = load::load_weights(&fixture("tiny-qwen3"), Storage::Q8, &Device::flex());
    let error = model.unwrap_err();
    assert!(error.is_refusal());
    let error = error.to_string();
    for part in ["columns of tensor", "q8", "a multiple of 32"] {
        assert!(error.contains(part), "{error}");
    }
}

/// What the machine's GPU, or software Vulkan, has of the formats.
#[cfg(feature = "wgpu")]
#[test]
fn wgpu_stores_what_it_has_and_refuses_the_rest_by_name() {
    use burn::tensor::DType;
    use polykv::DeviceSpec;
    use polykv::policy::Params;

    let device = match DeviceSpec::Wgpu(0).open() {
        Ok(device) => device,
        Err(error) if std::env::var_os("POLYKV_REQUIRE_WGPU").is_some() => panic!("{error}"),
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let load =
        |storage, device: &Device| load::load_weights(&fixture("tiny-llama31"), storage, device);
    for storage in [Storage::Bf16, Storage::Q8] {
        let error = load(storage, &device).unwrap_err().to_string();
        for part in [format!("dtype {storage}"), "f32".into()] {
            assert!(error.contains(&part), "{error}");
        }
    }
    match device.supports_dtype(DType::F16) {
        false => {
            let error = load(Storage::F16, &device).unwrap_err().to_string();
            assert!(error.contains("dtype f16"), "{error}");
        }
        true => {
            let model = load(Storage::F16, &device).unwrap();
            let exact = load(Storage::F32, &Device::flex()).unwrap();
            let plan =
                |layers| Plan::uniform(layers, "tova", Params::new(), Budget::Tokens(40), &BOTH);
            let layers = exact.config().layers;
            let (found, _) = run(&*model, plan(layers));
            let (wanted, _) = run(&*exact, plan(layers));
            let distance = distance(&found, &wanted);
            assert!(distance < 1e-2, "{distance}");
        }
    }
}
