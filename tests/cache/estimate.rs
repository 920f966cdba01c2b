//! Computed sizes against measured ones.

use super::{BOTH, data, decode, prefill};
use crate::common::{policy, rule, uniform, written};
use burn::tensor::Device;
use polykv::plan::Share;
use polykv::testing::{cache, shape};
use polykv::{Budget, CacheReport, Codes, Phase, Plan, Rule};

const LAYERS: usize = 3;

fn measured(plan: &Plan, prompt: usize, chunk: usize, steps: usize) -> CacheReport {
    let data = data(LAYERS, prompt + steps, 1);
    let cache = cache(plan.clone(), &Device::flex()).unwrap();
    let (mut cache, _) = prefill(cache, &data, 0..prompt, chunk).unwrap();
    decode(&mut cache, &data, prompt..prompt + steps).unwrap();
    cache.report().unwrap()
}

#[test]
fn estimates_equal_what_the_cache_measures() {
    let uniform = |budget, phases| uniform(LAYERS, "tova", budget, phases);
    let mut mixed = uniform(Budget::Tokens(30), &BOTH);
    for layer in &mut mixed.layers[..2] {
        layer.prefill = rule("tova").with_share(Share::Part(3.0));
    }
    let mut extra = mixed.clone();
    let rules = [Rule::Keep, rule("random"), rule("random")];
    extra.set_rules(Phase::Decode, rules);
    extra.allow_full_extra = true;
    let by_heads = policy("adakv", "{base: h2o}");
    let divided = |phases| Plan::uniform(LAYERS, by_heads.clone(), Budget::Tokens(12), phases);
    // What does not divide goes to the first layers.
    let total = Budget::Total(32);
    let mut coded = mixed.clone();
    coded.layers[0].kv = Some(Codes::Q4);
    coded.layers[2].kv = Some(Codes::Q8);
    let apart = |mut plan: Plan, tokens| {
        plan.every = tokens;
        plan
    };
    let plans = [
        apart(uniform(Budget::Tokens(12), &BOTH), 5),
        apart(uniform(Budget::Tokens(12), &BOTH[1..]), 30),
        apart(coded.clone(), 3),
        coded,
        Plan::full(LAYERS).with_kv(Codes::Q8),
        uniform(Budget::Tokens(12), &BOTH).with_kv(Codes::Q4),
        uniform(Budget::Tokens(12), &BOTH[1..]).with_kv(Codes::Q8),
        divided(&BOTH).with_kv(Codes::Q4),
        Plan::full(LAYERS),
        uniform(Budget::Tokens(12), &BOTH),
        uniform(Budget::Tokens(12), &BOTH[..1]),
        uniform(Budget::Tokens(12), &BOTH[1..]),
        uniform(Budget::Tokens(50), &BOTH),
        uniform(Budget::Tokens(300), &BOTH),
        uniform(Budget::Ratio(0.4), &BOTH),
        uniform(total, &BOTH),
        mixed,
        extra,
        divided(&BOTH),
        divided(&BOTH[..1]),
        divided(&BOTH[1..]),
    ];
    for plan in &plans {
        for (prompt, chunk) in [(1, 1), (45, 45), (60, 16)] {
            for steps in [0, 1, 2, 40] {
                let cost = shape().cost(&[None; LAYERS]);
                // One token cannot be split by a ratio over three layers.
                let Ok(found) = plan.estimate(prompt, steps, &cost) else {
                    assert_eq!(prompt, 1);
                    continue;
                };
                let wanted = measured(plan, prompt, chunk, steps);
                let what = format!("{prompt} + {steps}\n{}", written(plan));
                let kept: Vec<f64> = found.kept.iter().map(|&n| n as f64).collect();
                assert_eq!(kept, wanted.kept, "{what}");
                assert_eq!(found.steady_bytes, wanted.bytes, "{what}");
                assert_eq!(found.peak_bytes, wanted.peak_bytes, "{what}");
            }
        }
    }
}
