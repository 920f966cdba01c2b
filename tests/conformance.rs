//! Every operator with kernels, every policy in both phases, and a tiny model end to end, on every device of this machine against the reference
//! in f64 and against the CPU. One process and few shapes: software adapters compile kernels slowly.
//!
//! Without a wgpu adapter the wgpu part is skipped with a message; `POLYKV_REQUIRE_WGPU=1` makes that a failure.

#![cfg(feature = "flex")]

#[path = "formats/block_model.rs"]
mod block_model;
#[path = "conformance/blocks.rs"]
mod blocks;
#[path = "conformance/case.rs"]
mod case;
#[path = "conformance/codes.rs"]
mod codes;
mod common;
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
#[path = "conformance/together.rs"]
mod together;
#[path = "formats/writer.rs"]
mod writer;

use burn::tensor::{Device, Int, Tensor, TensorData};
use common::{each_policy, plan, policy, uniform};
use polykv::allocate::Allocators;
use polykv::models::{CausalLm, PrefillOptions, load};
use polykv::policy::Policies;
use polykv::testing::{Case, check, compare, kept, max_difference};
use polykv::{
    Budget, Codes, DeviceSpec, KvCache, Phase, Plan, PlanFile, PromptCache, Registry, Session,
    SessionInfo, SharedPrefill, Spans, Storage,
};
use std::ops::Range;
use std::path::Path;

const BOTH: [Phase; 2] = Phase::BOTH;

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
        keys::compared(&name, &device);
        keys::wrong_slots(&name, &device);
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
        layers::fused(&name, &device);
    }
}

#[test]
fn weights_in_blocks_agree_with_the_host() {
    for (name, device) in devices() {
        blocks::rows(&name, &device);
        blocks::products(&name, &device);
        blocks::activations(&name, &device);
    }
}

#[test]
fn a_model_in_blocks_agrees_with_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    blocks::model(&devices(), folder.path());
}

#[test]
fn tokens_of_several_caches_agree_with_each_alone() {
    for (name, device) in devices() {
        together::rows(&name, &device);
        together::shapes(&name, &device);
        together::copies(&name, &device);
    }
}

/// On the CPU tests/cache.rs does this with more variants.
#[test]
fn every_policy_passes_the_checks_on_every_device() {
    let policies = Policies::default();
    for (name, device) in devices().into_iter().skip(1) {
        for entry in policies.iter() {
            println!("{name:5} {}", entry.name);
            check(&policies, &entry.name, &device)
                .unwrap_or_else(|reason| panic!("{name}, {}: {reason}", entry.name));
        }
    }
}

/// Two prompts with steps after each, protected spans, and everything kept.
#[test]
fn every_device_agrees() {
    let case = |plan, spans| Case {
        prompt: 37,
        chunk: 37,
        steps: 6,
        seed: 3,
        rounds: 2,
        spans,
        ..Case::new(plan)
    };
    for (name, device) in devices() {
        let mut cases = vec![("full".to_string(), case(Plan::full(1), Spans::default()))];
        for policy in each_policy() {
            let what = policy.key();
            let plan = Plan::uniform(1, policy, Budget::Tokens(16), &BOTH);
            cases.push((what, case(plan, Spans::new([1..3, 20..22]))));
        }
        for (what, case) in cases {
            let difference = compare(&case, &device).unwrap();
            println!(
                "{name:5} {what:50} output {:.1e}  kept {}",
                difference.output, difference.kept
            );
            assert!(difference.output < 1e-4, "{name}, {what}: {difference:?}");
            assert_eq!(difference.kept, 0, "{name}, {what}");
        }
    }
}

/// What a run of the model leaves: logits of every call, and what each layer keeps at the end.
struct Run {
    logits: Vec<Vec<f32>>,
    kept: Vec<Vec<Vec<usize>>>,
}

fn ids(range: Range<i64>, device: &Device) -> Tensor<2, Int> {
    let values: Vec<i64> = range.map(|i| i * 37 % 150 + 3).collect();
    let dims = [1, values.len()];
    Tensor::from_data(TensorData::new(values, dims), device)
}

fn read(logits: Tensor<2>) -> Vec<f32> {
    logits.try_into_vec_as().unwrap()
}

const PROMPT: Range<i64> = 0..37;

fn prefill(model: &dyn CausalLm, cache: &mut dyn PromptCache, range: Range<i64>) -> Vec<f32> {
    let ids = ids(range, model.device());
    let logits = model.prefill(ids, cache, &mut PrefillOptions::default());
    read(logits.unwrap())
}

/// Steps after the prompt, a second prompt, and a step after it.
fn go_on(model: &dyn CausalLm, cache: &mut KvCache, first: Vec<f32>) -> Run {
    let device = model.device();
    let mut logits = vec![first];
    let decode = |cache: &mut KvCache, at: i64| {
        let logits = model.decode(ids(at..at + 1, device), cache);
        read(logits.unwrap())
    };
    for at in 37..43 {
        logits.push(decode(cache, at));
    }
    logits.push(prefill(model, cache, 43..60));
    logits.push(decode(cache, 60));
    cache.check().unwrap();
    let layers = 0..cache.layers().len();
    Run {
        logits,
        kept: layers.map(|layer| kept(cache, layer).unwrap()).collect(),
    }
}

fn run(model: &dyn CausalLm, plan: &Plan, spans: Spans) -> Run {
    let shape = model.cache_shape(1);
    let mut cache = KvCache::new(plan.clone(), shape, model.device()).unwrap();
    cache.protect(spans);
    let first = prefill(model, &mut cache, PROMPT);
    go_on(model, &mut cache, first)
}

/// Plans of different policies, one for each policy alone, and the allocators that split per prompt.
fn plans() -> Vec<(String, Plan)> {
    let mixed = plan(
        "{schema: 1, layers: 3, budget: {tokens: 14},
          prefill: [{layers: 0, policy: h2o}, {layers: 1, policy: snapkv, params: {window: 4, kernel: 3}},
                    {layers: 2, policy: streaming-llm}],
          decode: [{layers: 0, policy: h2o}, {layers: 1-2, policy: tova}]}",
    );
    // As calibrations write them.
    let uneven = plan(
        "{schema: 1, layers: 3, budget: {ratio: 0.4},
          prefill: [{layers: 0, policy: h2o, share: 8, params: {normalize: true, recent_fraction: 0}},
                    {layers: 1, policy: snapkv, share: 24, params: {window: 4, kernel: 3}},
                    {layers: 2, policy: blend, share: 12, params: {policies: 'keydiff:1,tova:2'}}],
          decode: [{layers: 0, policy: d2o, share: 21, params: {sinks: 2}}, {layers: 1-2, policy: tova, share: 12}]}",
    );
    let mut plans = vec![
        ("full".to_string(), Plan::full(3)),
        ("mixed".into(), mixed),
        ("uneven".into(), uneven),
    ];
    let uniform = |policy| Plan::uniform(3, policy, Budget::Tokens(14), &BOTH);
    for policy in each_policy() {
        plans.push((policy.name().into(), uniform(policy)));
    }
    for online in Allocators::default().iter() {
        if online.basis().is_online() {
            for policy in [policy("h2o", "{}"), policy("knorm", "{}")] {
                let name = format!("{} by {}", policy.name(), online.name());
                let mut plan = uniform(policy);
                plan.online = Some(online.clone());
                plans.push((name, plan));
            }
        }
    }
    plans
}

fn assert_same(found: &Run, wanted: &Run, what: &str) {
    assert_eq!(found.logits.len(), wanted.logits.len());
    let pairs = found.logits.iter().zip(&wanted.logits);
    let apart = pairs.map(|(a, b)| max_difference(a, b)).fold(0.0, f64::max);
    println!("{what:30} logits differ by {apart:.1e}");
    assert!(apart <= 1e-3, "{what}: {apart}");
    assert_eq!(found.kept, wanted.kept, "{what}");
}

#[test]
fn a_model_agrees_with_the_cpu_under_every_policy_and_allocator() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama31");
    let devices = devices();
    let models: Vec<_> = devices
        .iter()
        .map(|(_, device)| load::load_weights(&folder, Storage::F32, device).unwrap())
        .collect();
    let plans = plans();
    let alone: Vec<Vec<Run>> = models
        .iter()
        .map(|model| {
            let each = plans.iter();
            each.map(|(_, plan)| run(&**model, plan, Spans::default()))
                .collect()
        })
        .collect();
    for (index, (name, _)) in plans.iter().enumerate() {
        for (device, own) in devices.iter().zip(&alone).skip(1) {
            assert_same(
                &own[index],
                &alone[0][index],
                &format!("{}, {name}", device.0),
            );
        }
    }
    for ((device, _), (model, alone)) in devices.iter().zip(models.iter().zip(&alone)) {
        // One prompt under all plans.
        let of_all = plans.iter().map(|(_, plan)| plan.clone()).collect();
        let shared = SharedPrefill::new(of_all, model.cache_shape(1), model.device());
        let mut shared = shared.unwrap();
        let first = prefill(&**model, &mut shared, PROMPT);
        for (index, mut fork) in shared.into_caches().into_iter().enumerate() {
            let found = go_on(&**model, &mut fork, first.clone());
            assert_same(
                &found,
                &alone[index],
                &format!("{device}, {}, shared", plans[index].0),
            );
        }
        // Positions that no policy may evict.
        let (_, mixed) = &plans[1];
        let spans = Spans::new([1..4, 20..22]);
        let found = run(&**model, mixed, spans.clone());
        for heads in &found.kept {
            for head in heads {
                let safe = (1..4).chain(20..22).all(|p| head.contains(&p));
                assert!(safe && head.len() == 14, "{device}: {head:?}");
            }
        }
        if *device != "cpu" {
            let wanted = run(&*models[0], mixed, spans);
            assert_same(&found, &wanted, &format!("{device}, protected"));
        }
    }
}

/// A sequence goes on from its session bit for bit, and on another device as on its own.
#[test]
fn sessions_go_on_on_every_device() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama31");
    let devices = devices();
    let models: Vec<_> = devices
        .iter()
        .map(|(_, device)| load::load_weights(&folder, Storage::F32, device).unwrap())
        .collect();
    let coded = plans()
        .into_iter()
        .skip(1)
        .take(2)
        .flat_map(|(name, plan)| {
            Codes::ALL.map(|codes| (format!("{name} in {codes}"), plan.clone().with_kv(codes)))
        });
    for (name, plan) in plans().into_iter().chain(coded) {
        let info = SessionInfo {
            model: "tiny".into(),
            plan: PlanFile::of(&plan, &Registry::default()),
            tokens: Vec::new(),
            pending: Vec::new(),
        };
        let mut sessions = Vec::new();
        for ((device, _), model) in devices.iter().zip(&models) {
            let empty = || {
                let shape = model.cache_shape(1);
                let mut cache = KvCache::new(plan.clone(), shape, model.device()).unwrap();
                cache.set_facts(&model.facts());
                cache
            };
            let mut cache = empty();
            let first = prefill(&**model, &mut cache, PROMPT);
            let content = cache.to_session(&info).unwrap();
            let session = Session::from_bytes("session", content).unwrap();
            let mut loaded = empty();
            loaded.load(&session, "tiny").unwrap();
            sessions.push(session);
            let wanted = go_on(&**model, &mut cache, first.clone());
            let found = go_on(&**model, &mut loaded, first.clone());
            let bits = |run: &Run| {
                run.logits
                    .concat()
                    .into_iter()
                    .map(f32::to_bits)
                    .collect::<Vec<_>>()
            };
            assert!(bits(&found) == bits(&wanted), "{device}, {name}");
            assert_eq!(found.kept, wanted.kept, "{device}, {name}");
            // The first device's.
            let mut moved = empty();
            moved.load(&sessions[0], "tiny").unwrap();
            let found = go_on(&**model, &mut moved, first);
            assert_same(&found, &wanted, &format!("{device}, {name}, moved"));
        }
    }
}

/// Keys that move to consecutive positions give what they give on the CPU.
#[test]
fn packed_keys_agree_with_the_cpu() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama31");
    let mut wanted: Option<Run> = None;
    for (name, device) in devices() {
        let model = load::load_weights(&folder, Storage::F32, &device).unwrap();
        let plan = uniform(3, "snapkv", Budget::Tokens(36), &BOTH);
        let mut cache = KvCache::new(plan, model.cache_shape(1), &device).unwrap();
        prefill(&*model, &mut cache, 0..50);
        let mut logits = Vec::new();
        for at in 50..56 {
            cache.pack().unwrap();
            assert_eq!(cache.next_positions(), [36]);
            let step = model.decode(ids(at..at + 1, &device), &mut cache);
            logits.push(read(step.unwrap()));
        }
        let kept = (0..3).map(|layer| kept(&cache, layer).unwrap()).collect();
        let found = Run { logits, kept };
        match &wanted {
            Some(wanted) => assert_same(&found, wanted, &format!("{name}, packed")),
            None => wanted = Some(found),
        }
    }
}

/// The block of each family on each device, with everything kept and with eviction.
#[test]
fn a_model_of_each_family_agrees_with_the_cpu() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let devices = devices();
    for family in [
        "tiny-mistral",
        "tiny-qwen2",
        "tiny-qwen3",
        "tiny-qwen3-moe",
        "tiny-gemma2",
        "tiny-gemma3",
        "tiny-phi3",
        "tiny-smollm3",
    ] {
        let runs = |device: &Device| {
            let model = load::load_weights(&fixtures.join(family), Storage::F32, device).unwrap();
            let layers = model.config().layers.len();
            let evicting = uniform(layers, "tova", Budget::Tokens(12), &BOTH);
            [Plan::full(layers), evicting].map(|plan| run(&*model, &plan, Spans::default()))
        };
        let wanted = runs(&devices[0].1);
        for (name, device) in &devices[1..] {
            for (found, wanted) in runs(device).iter().zip(&wanted) {
                assert_same(found, wanted, &format!("{name}, {family}"));
            }
        }
    }
}

#[test]
fn entries_in_codes_agree_with_the_host() {
    for (name, device) in devices() {
        codes::vectors(&name, &device);
        codes::attention(&name, &device);
    }
}

#[test]
fn a_model_with_entries_in_codes_agrees_with_the_cpu() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama31");
    let devices = devices();
    let models: Vec<_> = devices
        .iter()
        .map(|(_, device)| load::load_weights(&folder, Storage::F32, device).unwrap())
        .collect();
    for ((name, plan), codes) in plans().into_iter().zip(Codes::ALL.into_iter().cycle()) {
        let plan = plan.with_kv(codes);
        let runs: Vec<Run> = models
            .iter()
            .map(|model| run(&**model, &plan, Spans::default()))
            .collect();
        for ((device, _), found) in devices.iter().zip(&runs).skip(1) {
            assert_same(found, &runs[0], &format!("{device}, {name} in {codes}"));
        }
    }
}
