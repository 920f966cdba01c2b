//! Every operator with kernels, every policy in both phases, and a tiny model end to end, on every device of this machine against the reference
//! in f64 and against the CPU. One process and few shapes: software adapters compile kernels slowly.
//!
//! Without a wgpu adapter the wgpu part is skipped with a message; `POLYKV_REQUIRE_WGPU=1` makes that a failure.

#![cfg(all(feature = "flex", feature = "wgpu"))]

#[path = "conformance/case.rs"]
mod case;
#[path = "conformance/host.rs"]
mod host;
#[path = "conformance/keys.rs"]
mod keys;
#[path = "conformance/layers.rs"]
mod layers;
#[path = "conformance/operators.rs"]
mod operators;
#[path = "conformance/order.rs"]
mod order;
mod reference;

use burn::tensor::{Device, Int, Tensor, TensorData};
use polykv::models::{CausalLm, PrefillOptions, load};
use polykv::policy;
use polykv::{Budget, DeviceSpec, KvCache, Phase, Plan, Storage};
use reference::harness::{Case, compare, small};
use std::path::Path;

const BOTH: [Phase; 2] = [Phase::Prefill, Phase::Decode];

fn devices() -> Vec<(String, Device)> {
    let mut found = vec![("cpu".to_string(), Device::flex())];
    match DeviceSpec::Wgpu(0).open() {
        Ok(device) => found.push(("wgpu".into(), device)),
        Err(error) => {
            assert!(std::env::var_os("POLYKV_REQUIRE_WGPU").is_none(), "{error}");
            eprintln!("skipped: {error}");
        }
    }
    if let Ok(device) = DeviceSpec::Cuda(0).open() {
        found.push(("cuda".into(), device));
    }
    found
}

#[test]
fn operators_agree_with_the_host() {
    for (name, device) in devices() {
        keys::likeness(&name, &device);
        keys::spread(&name, &device);
        keys::summed(&name, &device);
        order::pooling(&name, &device);
        order::followers(&name, &device);
        operators::choices(&name, &device);
        operators::moves(&name, &device);
        operators::attention(&name, &device);
        operators::lengths(&name, &device);
    }
}

#[test]
fn operators_of_layers_agree_with_plain_tensors() {
    for (name, device) in devices() {
        layers::products(&name, &device);
        layers::unrounded_products(&name, &device);
        layers::elementwise(&name, &device);
        layers::blocks(&name, &device);
    }
}

#[test]
fn every_device_agrees() {
    for (name, device) in devices() {
        for policy in policy::names()
            .into_iter()
            .filter(|policy| *policy != "full")
        {
            let plan = Plan::uniform(1, policy, small(policy), Budget::Tokens(12), &BOTH);
            let difference = compare(
                &Case {
                    plan,
                    prompt: 37,
                    chunk: 37,
                    steps: 6,
                    seed: 3,
                },
                &device,
            );
            println!(
                "{name:5} {policy:14} output {:.1e}  kept {}",
                difference.output, difference.kept
            );
            assert!(difference.output < 1e-4, "{name}, {policy}: {difference:?}");
            assert_eq!(difference.kept, 0, "{name}, {policy}");
        }
        let full = compare(
            &Case {
                plan: Plan::full(1),
                prompt: 37,
                chunk: 37,
                steps: 6,
                seed: 3,
            },
            &device,
        );
        assert!(full.output < 1e-4, "{name}, full: {full:?}");
    }
}

/// Logits of prompt and decode steps, and what is kept, under a plan of different policies.
fn run(model: &dyn CausalLm, plan: &Plan) -> (Vec<f32>, Vec<i64>) {
    let device = model.device();
    let mut cache = KvCache::new(plan.clone(), model.cache_shape(1), device).unwrap();
    let ids = |range: std::ops::Range<i64>| -> Tensor<2, Int> {
        let values: Vec<i64> = range.map(|i| i * 37 % 300 + 3).collect();
        let dims = [1, values.len()];
        Tensor::from_data(TensorData::new(values, dims), device)
    };
    let mut all: Vec<f32> = Vec::new();
    let logits = model
        .prefill(ids(0..37), &mut cache, &mut PrefillOptions::default())
        .unwrap();
    all.extend(logits.try_into_vec_as::<f32>().unwrap());
    for step in 37..43 {
        let logits = model.decode(ids(step..step + 1), &mut cache).unwrap();
        all.extend(logits.try_into_vec_as::<f32>().unwrap());
    }
    cache.check().unwrap();
    let mut kept = Vec::new();
    for layer in cache.layers() {
        let positions = layer.positions().unwrap();
        let [_, heads, entries] = positions.dims();
        let values: Vec<i64> = positions.try_into_vec_as().unwrap();
        for head in 0..heads {
            let mut sorted = values[head * entries..][..entries].to_vec();
            sorted.sort_unstable();
            kept.extend(sorted);
        }
    }
    (all, kept)
}

/// Plans of different policies, and one for each policy alone.
fn plans() -> Vec<(String, Plan)> {
    let mixed = Plan::from_yaml(
        "mixed",
        "{schema: 1, layers: 3, budget: {tokens: 14},
          prefill: [{layers: 0, policy: h2o}, {layers: 1, policy: snapkv, params: {window: 4, kernel: 3}},
                    {layers: 2, policy: streaming-llm}],
          decode: [{layers: 0, policy: h2o}, {layers: 1-2, policy: tova}]}",
    );
    // As calibrations write them.
    let uneven = Plan::from_yaml(
        "uneven",
        "{schema: 1, layers: 3, budget: {ratio: 0.4},
          prefill: [{layers: 0, policy: h2o, share: 8, params: {normalize: true, recent_fraction: 0}},
                    {layers: 1, policy: snapkv, share: 24, params: {window: 4, kernel: 3}},
                    {layers: 2, policy: blend, share: 12, params: {policies: 'keydiff:1,tova:2'}}],
          decode: [{layers: 0, policy: d2o, share: 21, params: {sinks: 2}}, {layers: 1-2, policy: tova, share: 12}]}",
    );
    let mut plans = vec![
        ("mixed".to_string(), mixed.unwrap()),
        ("uneven".to_string(), uneven.unwrap()),
    ];
    for policy in policy::names() {
        let plan = Plan::uniform(3, policy, small(policy), Budget::Tokens(14), &BOTH);
        plans.push((policy.into(), plan));
    }
    plans
}

#[test]
fn a_model_agrees_with_the_cpu_under_every_policy() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama31");
    let devices = devices();
    let models: Vec<_> = devices
        .iter()
        .map(|(_, device)| load::load_weights(&folder, Storage::F32, device).unwrap())
        .collect();
    for (plan_name, plan) in plans() {
        let (wanted, kept) = run(&*models[0], &plan);
        for ((device, _), model) in devices.iter().zip(&models).skip(1) {
            let (found, found_kept) = run(&**model, &plan);
            let worst = found
                .iter()
                .zip(&wanted)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            println!("{device:5} {plan_name:14} logits differ by {worst:.1e}");
            assert!(worst <= 1e-3, "{device}, {plan_name}: {worst}");
            assert_eq!(found_kept, kept, "{device}, {plan_name}");
        }
    }
}
