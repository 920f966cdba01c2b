//! Weights and caches in fewer bits: close to f32, as small as they say, on every device that has the format and
//! refused by name on one that has not.

mod common;

use burn::tensor::{Device, Int, Tensor, TensorData};
use polykv::models::{CausalLm, PrefillOptions, load};
use polykv::testing::{kept, max_difference};
use polykv::{Budget, KvCache, Phase, Plan, Storage};
use std::path::{Path, PathBuf};

const BOTH: [Phase; 2] = Phase::BOTH;

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

/// Root of the mean squared difference, relative to that of `b`; infinite if a number is not finite.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    if max_difference(a, b).is_infinite() {
        return f64::INFINITY;
    }
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (difference / b.iter().copied().map(square).sum::<f64>()).sqrt()
}

/// The least and the most that the logits may be off: formats of fewer bits must make a difference, a small one.
fn range(storage: Storage) -> std::ops::RangeInclusive<f64> {
    match storage {
        Storage::F32 => 0.0..=0.0,
        // Random weights amplify rounding more than trained ones.
        Storage::F16 => 1e-6..=1e-2,
        Storage::Bf16 => 1e-5..=5e-2,
        Storage::Q8 => 1e-5..=1e-1,
        // Ten times the error of the weights, as in 8 bits: random weights are not made for four.
        Storage::Q4K => 1e-2..=8e-1,
        // The cache differs, and with a file in bf16 prompts are rounded to that: the file holds numbers, not blocks.
        Storage::Native => 1e-6..=5e-2,
    }
}

/// The part of the entries that both caches keep.
#[cfg(feature = "flex")]
fn shared_entries(a: &KvCache, b: &KvCache) -> f64 {
    let (mut shared, mut all) = (0, 0);
    for layer in 0..a.layers().len() {
        let both = [a, b].map(|cache| kept(cache, layer).unwrap());
        // As many over all heads; a head with a budget of its own may have an entry more or less.
        let together = |heads: &[Vec<usize>]| heads.iter().map(Vec::len).sum::<usize>();
        assert_eq!(together(&both[0]), together(&both[1]));
        for (a, b) in both[0].iter().zip(&both[1]) {
            shared += a.iter().filter(|p| b.contains(p)).count();
            all += a.len();
        }
    }
    shared as f64 / all as f64
}

/// Every format of fewer bits: logits near those of f32 under FullKV, and under every policy nearly the same entries.
#[cfg(feature = "flex")]
#[test]
fn every_format_is_close_to_f32_and_keeps_nearly_the_same() {
    let load =
        |name, storage| load::load_weights(&fixture(name), storage, &Device::flex()).unwrap();
    for name in ["tiny-llama31", "tiny-qwen3"] {
        let exact = load(name, Storage::F32);
        let layers = exact.config().layers.len();
        let plan = |policy| Plan::uniform(layers, policy, Budget::Tokens(40), &BOTH);
        let (wanted, mut full) = run(&*exact, Plan::full(layers));
        let of_policies: Vec<_> = common::each_policy()
            .into_iter()
            .map(|policy| run(&*exact, plan(policy)))
            .collect();
        for storage in Storage::ALL {
            // The rows of that model are no whole number of blocks: see below.
            let blocks = matches!(storage, Storage::Q8 | Storage::Q4K);
            if storage == Storage::F32 || (name == "tiny-qwen3" && blocks) {
                continue;
            }
            let model = load(name, storage);
            let (found, mut cache) = run(&*model, Plan::full(layers));
            let apart = distance(&found, &wanted);
            println!("{name}, {storage}: {apart:.1e}");
            assert!(
                range(storage).contains(&apart),
                "{name}, {storage}: {apart}"
            );
            assert_eq!(
                cache.report().unwrap().bytes * 2,
                full.report().unwrap().bytes,
                "{storage}"
            );
            if storage == Storage::Q4K {
                continue;
            }
            for (policy, (wanted, exact)) in common::each_policy().into_iter().zip(&of_policies) {
                let what = format!("{name}, {storage}, {}", policy.key());
                let (found, mut cache) = run(&*model, plan(policy));
                assert!(
                    cache
                        .report()
                        .unwrap()
                        .kept
                        .iter()
                        .all(|&kept| kept == 40.0),
                    "{what}"
                );
                let (shared, apart) = (shared_entries(&cache, exact), distance(&found, wanted));
                println!("{what}: {shared:.3} of the entries, logits {apart:.1e}");
                assert!(shared >= 0.9, "{what}: {shared} of the entries");
                assert!(apart <= 5.0 * range(storage).end(), "{what}: {apart}");
            }
        }
    }
}

#[cfg(feature = "flex")]
#[test]
fn rows_of_no_whole_number_of_blocks_are_refused_by_name() {
    let load = |storage| {
        let model = load::load_weights(&fixture("tiny-qwen3"), storage, &Device::flex());
        let error = model.unwrap_err();
        assert!(error.is_refusal());
        error.to_string()
    };
    let error = load(Storage::Q8);
    for part in ["columns of tensor", "q8", "a multiple of 32"] {
        assert!(error.contains(part), "{error}");
    }
    let error = load(Storage::Q4K);
    for part in [
        ".safetensors",
        "tensor ",
        "columns is 48",
        "a multiple of 32",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

/// A copy of a fixture whose numbers are in bf16.
#[cfg(feature = "wgpu")]
fn in_bf16(name: &str) -> tempfile::TempDir {
    use safetensors::tensor::{Dtype, SafeTensors, TensorView};

    let folder = tempfile::tempdir().unwrap();
    let config = std::fs::read(fixture(name).join("config.json")).unwrap();
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let bytes = std::fs::read(fixture(name).join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let rounded = tensors.iter().map(|(name, view)| {
        assert_eq!(view.dtype(), Dtype::F32);
        let numbers = view.data().as_chunks::<4>().0.iter();
        let bytes =
            numbers.flat_map(|x| half::bf16::from_f32(f32::from_le_bytes(*x)).to_le_bytes());
        (name, view.shape().to_vec(), bytes.collect::<Vec<u8>>())
    });
    let rounded: Vec<_> = rounded.collect();
    let views = rounded.iter().map(|(name, shape, bytes)| {
        (
            name,
            TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap(),
        )
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

/// What the machine's GPU, or software Vulkan, has of the formats.
#[cfg(feature = "wgpu")]
#[test]
fn wgpu_stores_what_it_has_and_refuses_the_rest_by_name() {
    use burn::tensor::DType;
    use polykv::DeviceSpec;

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
    let exact = load(Storage::F32, &Device::flex()).unwrap();
    let layers = exact.config().layers.len();
    let (wanted, _) = run(&*exact, Plan::full(layers));
    for storage in [Storage::Q4K, Storage::Native] {
        let (found, _) = run(&*load(storage, &device).unwrap(), Plan::full(layers));
        let apart = distance(&found, &wanted);
        println!("wgpu, {storage}: {apart:.1e}");
        assert!(apart <= *range(storage).end(), "{storage}: {apart}");
    }
    // Numbers in a type that WGSL does not have become f32.
    assert!(!device.supports_dtype(DType::BF16));
    let folder = in_bf16("tiny-llama31");
    let [(found, _), (wanted, _)] = [&device, &Device::flex()].map(|device| {
        let model = load::load_weights(folder.path(), Storage::Native, device).unwrap();
        run(&*model, Plan::full(layers))
    });
    let apart = distance(&found, &wanted);
    assert!(apart <= *range(Storage::F16).end(), "{apart}");
    match device.supports_dtype(DType::F16) {
        false => {
            let error = load(Storage::F16, &device).unwrap_err().to_string();
            assert!(error.contains("dtype f16"), "{error}");
        }
        true => {
            let model = load(Storage::F16, &device).unwrap();
            let mut plan = common::uniform(layers, "tova", Budget::Tokens(40), &BOTH);
            let mut plans = vec![plan.clone()];
            for online in ["cake", "dynamic"] {
                let online = polykv::allocate::Allocators::default().get(online);
                plan.online = Some(online.unwrap());
                plans.push(plan.clone());
            }
            for plan in plans {
                let (found, _) = run(&*model, plan.clone());
                let (wanted, _) = run(&*exact, plan.clone());
                let apart = distance(&found, &wanted);
                assert!(apart < 1e-2, "{apart}: {}", common::written(&plan));
            }
        }
    }
}
