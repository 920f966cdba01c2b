//! What policies add to a layer.

use crate::layer::Layer;
use crate::{DIM, HEADS, KV_HEADS, Setup, medians, timed};
use burn::tensor::DType;
use polykv::policy::{Params, Policies};
use polykv::{Budget, KvCache, LayerShape, Phase, Plan};
use std::hint::black_box;

fn cache(policy: &str, setup: &Setup) -> KvCache {
    let plan = match policy {
        Policies::KEEP => Plan::full(1),
        name => {
            let policy = Policies::default().build(name, &Params::new());
            let policy = policy.expect("a policy of ours");
            Plan::uniform(1, policy, Budget::Tokens(setup.budget), &Phase::BOTH)
        }
    };
    let shape = LayerShape {
        batch: 1,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: DIM,
        dtype: DType::F32,
    };
    KvCache::new(plan, shape, &setup.device).expect("a valid shape")
}

/// What each policy adds to the attention and MLP of one layer's prefill.
pub fn prefill(setup: &Setup) {
    let (device, n) = (&setup.device, setup.prompt);
    let layer = Layer::new(n, device);
    let run = |policy: &'static str| {
        let layer = &layer;
        move || {
            let mut cache = cache(policy, setup);
            timed(device, || layer.prefill(&mut cache, n, 0))
        }
    };
    for policy in [
        "streaming-llm",
        "snapkv",
        "pyramidkv",
        "cake",
        "tova",
        "knorm",
        "keydiff",
        "h2o",
        "d2o",
        "scissorhands",
    ] {
        let mut mlp = || timed(device, || layer.mlp(0, n));
        let works: &mut [&mut dyn FnMut() -> f64] =
            &mut [&mut run("full"), &mut run(policy), &mut mlp];
        let times = medians(setup.turns, works);
        println!(
            "{:5} {:6.1} %  {policy} beside attention and MLP of a {n}-token prefill ({:.0} ms)",
            setup.name,
            (times[1] - times[0]) / (times[0] + times[2]) * 100.0,
            (times[0] + times[2]) * 1e3,
        );
    }
}

/// What each policy adds to one layer's decode step at the budget.
pub fn decode(setup: &Setup) {
    let (device, steps) = (&setup.device, setup.steps);
    let start = setup.budget;
    let layer = Layer::new(start + 1 + steps, device);
    let run = |policy: &'static str| {
        let layer = &layer;
        move || {
            let mut cache = cache(policy, setup);
            // Where nobody evicts there is room from the start, and over all steps as much is attended to.
            let (start, room) = match policy {
                "full" => (start - steps / 2, steps + 1),
                _ => (start, 0),
            };
            layer.prefill(&mut cache, start, room);
            // The first step may make room.
            let [q, k, v] = layer.part(start, 1);
            cache.decode(0, q, k, v).expect("shapes match");
            let seconds = timed(device, || {
                for step in start + 1..start + 1 + steps {
                    // In the order of a model: what evicting leaves to the next product, idle threads too, counts.
                    layer.project(step);
                    let [q, k, v] = layer.part(step, 1);
                    black_box(cache.decode(0, q, k, v).expect("shapes match"));
                    layer.mlp(step, 1);
                }
            });
            seconds / steps as f64
        }
    };
    for policy in ["streaming-llm", "tova", "h2o", "cake", "snapkv"] {
        let works: &mut [&mut dyn FnMut() -> f64] = &mut [&mut run("full"), &mut run(policy)];
        let times = medians(3 * setup.turns, works);
        println!(
            "{:5} {:6.1} %  {policy} beside a layer's decode step at {start} entries ({:.3} ms)",
            setup.name,
            (times[1] / times[0] - 1.0) * 100.0,
            times[0] * 1e3,
        );
    }
}
