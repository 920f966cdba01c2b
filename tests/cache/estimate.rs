//! Computed sizes against measured ones.

use super::BOTH;
use crate::reference::harness::{cache, shape};
use burn::tensor::{Device, Distribution, Tensor};
use polykv::policy::Params;
use polykv::{Budget, CacheReport, Plan, Rule};

const LAYERS: usize = 3;

fn measured(plan: &Plan, prompt: usize, chunk: usize, steps: usize) -> CacheReport {
    let device = Device::flex();
    let random =
        |heads, tokens| Tensor::<4>::random([1, heads, tokens, 16], Distribution::Default, &device);
    let mut cache = cache(plan.clone(), &device);
    cache.begin_prefill(prompt).unwrap();
    for layer in 0..LAYERS {
        for start in (0..prompt).step_by(chunk) {
            let n = chunk.min(prompt - start);
            cache
                .prefill(layer, random(6, n), random(2, n), random(2, n))
                .unwrap();
        }
        cache.end_prefill(layer).unwrap();
    }
    for _ in 0..steps {
        for layer in 0..LAYERS {
            cache
                .decode(layer, random(6, 1), random(2, 1), random(2, 1))
                .unwrap();
        }
    }
    cache.report()
}

#[test]
fn estimates_equal_what_the_cache_measures() {
    let uniform = |budget, phases| Plan::uniform(LAYERS, "tova", Params::new(), budget, phases);
    let mut mixed = uniform(Budget::Tokens(30), &BOTH);
    mixed.prefill = vec![
        Rule {
            layers: "0-1".parse().unwrap(),
            share: Some(3.0),
            ..mixed.prefill[0].clone()
        },
        Rule {
            layers: "2".parse().unwrap(),
            ..mixed.prefill[0].clone()
        },
    ];
    let mut extra = mixed.clone();
    extra.decode = vec![
        Rule::new("0".parse().unwrap(), "full"),
        Rule::new("1-2".parse().unwrap(), "random"),
    ];
    extra.allow_full_extra = true;
    let plans = [
        Plan::full(LAYERS),
        uniform(Budget::Tokens(12), &BOTH),
        uniform(Budget::Tokens(12), &BOTH[..1]),
        uniform(Budget::Tokens(12), &BOTH[1..]),
        uniform(Budget::Tokens(50), &BOTH),
        uniform(Budget::Tokens(300), &BOTH),
        uniform(Budget::Ratio(0.4), &BOTH),
        mixed,
        extra,
    ];
    for plan in &plans {
        for (prompt, chunk) in [(1, 1), (45, 45), (60, 16)] {
            for steps in [0, 1, 2, 40] {
                let cost = shape().cost(LAYERS);
                // One token cannot be split by a ratio over three layers.
                let Ok(found) = plan.estimate("test", prompt, steps, cost) else {
                    assert_eq!(prompt, 1);
                    continue;
                };
                let wanted = measured(plan, prompt, chunk, steps);
                let what = format!("{prompt} + {steps}\n{}", plan.to_yaml());
                let kept: Vec<f64> = found.kept.iter().map(|&n| n as f64).collect();
                assert_eq!(kept, wanted.kept, "{what}");
                assert_eq!(found.steady_bytes, wanted.bytes, "{what}");
                assert_eq!(found.peak_bytes, wanted.peak_bytes, "{what}");
            }
        }
    }
}
