//! The cache's invariants and every policy in both phases against the naive reference, on the CPU backend.

#![cfg(feature = "flex")]

#[path = "cache/batch.rs"]
mod batch;
#[path = "cache/by_hand.rs"]
mod by_hand;
#[path = "cache/estimate.rs"]
mod estimate;
#[path = "cache/online.rs"]
mod online;
#[path = "cache/plans.rs"]
mod plans;
#[path = "cache/protect.rs"]
mod protect;
mod reference;

#[path = "cache/shared.rs"]
mod shared;
#[path = "cache/variants.rs"]
mod variants;

use burn::tensor::{Device, Tensor};
use polykv::policy::{self, Params};
use polykv::{Budget, KvCache, Phase, Plan, Rule};
use proptest::prelude::*;
use reference::harness::{Case, cache, compare, inputs, kept, shape, small, tensor};
use reference::{Reference, Token};
use variants::variants;

const BOTH: [Phase; 2] = [Phase::Prefill, Phase::Decode];

fn case(plan: Plan) -> Case {
    Case {
        plan,
        prompt: 45,
        chunk: 45,
        steps: 40,
        seed: 1,
    }
}

fn assert_equal(case: &Case) {
    let difference = compare(case, &Device::flex());
    assert!(
        difference.output < 1e-5 && difference.kept == 0,
        "{difference:?}\n{}",
        case.plan.to_yaml()
    );
}

#[test]
fn every_policy_equals_the_reference_in_both_phases() {
    let named: Vec<_> = variants().iter().map(|(name, _)| *name).collect();
    for name in policy::names().iter().filter(|name| **name != "full") {
        assert!(named.contains(name), "policy {name} is not tested");
    }
    for (name, params) in variants() {
        for phases in [&BOTH[..1], &BOTH[1..], &BOTH[..]] {
            // 40 steps are more than three times the budget.
            let plan = Plan::uniform(2, name, params.clone(), Budget::Tokens(12), phases);
            assert_equal(&case(plan));
        }
    }
}

#[test]
fn any_two_policies_can_share_a_layer() {
    let policies = || policy::names().into_iter().filter(|name| *name != "full");
    for prefill in policies() {
        for decode in policies() {
            let mut plan = Plan::uniform(1, prefill, small(prefill), Budget::Tokens(14), &BOTH);
            plan.decode[0].policy = decode.into();
            plan.decode[0].params = small(decode);
            assert_equal(&Case {
                prompt: 30,
                chunk: 30,
                steps: 20,
                ..case(plan)
            });
        }
    }
}

#[test]
fn chunked_prefill_equals_one_shot() {
    for (name, params) in variants() {
        for chunk in [1, 7, 44] {
            let plan = Plan::uniform(1, name, params.clone(), Budget::Tokens(16), &BOTH);
            assert_equal(&Case {
                chunk,
                steps: 4,
                ..case(plan)
            });
        }
    }
}

#[test]
fn prompts_longer_than_a_block_of_queries_equal_the_reference() {
    for name in ["h2o", "snapkv"] {
        let plan = Plan::uniform(1, name, Params::new(), Budget::Tokens(80), &BOTH);
        assert_equal(&Case {
            prompt: 300,
            chunk: 290,
            steps: 3,
            ..case(plan)
        });
    }
}

#[test]
fn a_budget_that_covers_everything_changes_nothing() {
    for (name, params) in variants() {
        let full = Plan::full(1);
        let plan = Plan::uniform(1, name, params, Budget::Tokens(85), &BOTH);
        let outputs: Vec<Vec<f32>> = [full, plan]
            .into_iter()
            .map(|plan| {
                let case = case(plan);
                let data = inputs(&case, 0);
                let device = Device::flex();
                let mut cache = cache(case.plan.clone(), &device);
                cache.begin_prefill(45).unwrap();
                let part = |t: &[Vec<Vec<f64>>]| tensor(&t[..45], &device);
                cache
                    .prefill(0, part(&data.q), part(&data.k), part(&data.v))
                    .unwrap();
                cache.end_prefill(0).unwrap();
                let steps = (45..85).flat_map(|i| {
                    let one = |t: &[Vec<Vec<f64>>]| tensor(&t[i..=i], &device);
                    let output = cache
                        .decode(0, one(&data.q), one(&data.k), one(&data.v))
                        .unwrap();
                    output.try_into_vec_as::<f32>().unwrap()
                });
                steps.collect()
            })
            .collect();
        let worst = outputs[0]
            .iter()
            .zip(&outputs[1])
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst <= 1e-6, "{name}: {worst}");
    }
}

#[test]
fn a_decode_budget_below_the_prefill_budget_compacts_once() {
    let mut plan = Plan::uniform(1, "tova", Params::new(), Budget::Tokens(20), &BOTH);
    plan.prefill[0] = Rule::new(plan.prefill[0].layers, "full");
    let case = Case {
        steps: 3,
        ..case(plan.clone())
    };
    assert_equal(&case);
    let device = Device::flex();
    let data = inputs(&case, 0);
    let mut cache = cache(plan, &device);
    cache.begin_prefill(45).unwrap();
    let part = |t: &[Vec<Vec<f64>>], r: std::ops::Range<usize>| tensor(&t[r], &device);
    cache
        .prefill(
            0,
            part(&data.q, 0..45),
            part(&data.k, 0..45),
            part(&data.v, 0..45),
        )
        .unwrap();
    cache.end_prefill(0).unwrap();
    assert_eq!(cache.layers()[0].lengths(), [[45, 45]]);
    cache
        .decode(
            0,
            part(&data.q, 45..46),
            part(&data.k, 45..46),
            part(&data.v, 45..46),
        )
        .unwrap();
    assert_eq!(cache.layers()[0].lengths(), [[20, 20]]);
    let entry = 2 * 2 * 16 * 4;
    assert_eq!(cache.report().bytes, 21 * entry);
}

#[test]
fn the_report_is_what_the_tensors_occupy() {
    let plan = Plan::uniform(2, "tova", Params::new(), Budget::Tokens(10), &BOTH);
    let case = case(plan.clone());
    let device = Device::flex();
    let mut cache = cache(plan, &device);
    cache.begin_prefill(45).unwrap();
    for layer in 0..2 {
        let data = inputs(&case, layer);
        let part = |t: &[Vec<Vec<f64>>]| tensor(&t[..45], &device);
        cache
            .prefill(layer, part(&data.q), part(&data.k), part(&data.v))
            .unwrap();
        cache.end_prefill(layer).unwrap();
    }
    let entry = 2 * 2 * 16 * 4;
    let report = cache.report();
    assert_eq!(report.seen, 45);
    assert_eq!(report.kept, [10.0, 10.0]);
    assert_eq!(report.bytes, 2 * 11 * entry);
    assert_eq!(report.full_bytes, 2 * 45 * entry);
    // The second layer's full cache beside both trimmed ones: one layer's full cache plus the budgets.
    assert_eq!(report.peak_bytes, (45 + 2 * 11) * entry);
}

#[test]
fn a_second_prompt_continues_and_is_trimmed_too() {
    let device = Device::flex();
    let plan = Plan::uniform(1, "h2o", Params::new(), Budget::Tokens(16), &BOTH);
    let case = Case {
        steps: 35,
        ..case(plan.clone())
    };
    let data = inputs(&case, 0);
    let mut cache = cache(plan, &device);
    let mut run = |range: std::ops::Range<usize>| {
        cache.begin_prefill(range.len()).unwrap();
        let part = |t: &[Vec<Vec<f64>>]| tensor(&t[range.clone()], &device);
        cache
            .prefill(0, part(&data.q), part(&data.k), part(&data.v))
            .unwrap();
        cache.end_prefill(0).unwrap();
        kept(&cache, 0)
    };
    let first = run(0..45);
    let second = run(45..80);
    for (before, after) in first.iter().zip(&second) {
        assert_eq!((before.len(), after.len()), (16, 16));
        assert!(
            after[8..].iter().copied().eq(72..80),
            "the latest half stays: {after:?}"
        );
        assert!(
            after.iter().all(|p| *p >= 45 || before.contains(p)),
            "an evicted entry came back"
        );
    }
    assert_eq!(cache.seen(), 80);
    cache.clear();
    assert_eq!((cache.seen(), cache.report().bytes), (0, 0));
}

/// Its slots are out of order of position, since decode steps came before.
#[test]
fn a_second_prompt_is_merged_too() {
    let device = Device::flex();
    for (name, params) in variants() {
        if !["cam", "d2o"].contains(&name) {
            continue;
        }
        let plan = Plan::uniform(1, name, params, Budget::Tokens(16), &BOTH);
        let case = case(plan.clone());
        let data = inputs(&case, 0);
        let mut cache = cache(plan.clone(), &device);
        let mut reference = Reference::new(&plan, 0, 30);
        for (prompt, steps) in [(0..30, 30..47), (47..67, 67..85)] {
            cache.begin_prefill(prompt.len()).unwrap();
            let part = |t: &[Token]| tensor(&t[prompt.clone()], &device);
            let (q, k, v) = (part(&data.q), part(&data.k), part(&data.v));
            cache.prefill(0, q, k, v).unwrap();
            cache.end_prefill(0).unwrap();
            for i in prompt.clone() {
                reference.step(&data.q[i], &data.k[i], &data.v[i]);
            }
            reference.evict(Phase::Prefill);
            for i in steps {
                let one = |t: &[Token]| tensor(&t[i..=i], &device);
                let output = cache.decode(0, one(&data.q), one(&data.k), one(&data.v));
                let found: Vec<f32> = output.unwrap().try_into_vec_as().unwrap();
                let wanted = reference.step(&data.q[i], &data.k[i], &data.v[i]).concat();
                for (found, wanted) in found.iter().zip(&wanted) {
                    let apart = (f64::from(*found) - wanted).abs();
                    assert!(apart < 1e-5, "{name}, step {i}: {found} for {wanted}");
                }
                reference.evict(Phase::Decode);
                assert_eq!(kept(&cache, 0), reference.positions(), "{name}, step {i}");
            }
        }
    }
}

#[test]
fn nan_scores_are_errors_in_both_phases() {
    let device = Device::flex();
    let nan = |heads| Tensor::<4>::full([1, heads, 1, 16], f32::NAN, &device);
    let some = |heads, n| Tensor::<4>::ones([1, heads, n, 16], &device);
    let plan = Plan::uniform(1, "tova", Params::new(), Budget::Tokens(4), &BOTH);
    let mut cache = cache(plan, &device);
    cache.begin_prefill(9).unwrap();
    cache
        .prefill(0, some(6, 8), some(2, 8), some(2, 8))
        .unwrap();
    cache.prefill(0, nan(6), nan(2), nan(2)).unwrap();
    let error = cache.end_prefill(0).unwrap_err().to_string();
    assert!(
        error.contains("layer 0, prefill, policy tova") && error.contains("NaN"),
        "{error}"
    );

    cache.clear();
    cache.begin_prefill(8).unwrap();
    cache
        .prefill(0, some(6, 8), some(2, 8), some(2, 8))
        .unwrap();
    cache.end_prefill(0).unwrap();
    cache.check().unwrap();
    cache.decode(0, nan(6), nan(2), nan(2)).unwrap();
    assert!(cache.check().unwrap_err().to_string().contains("NaN"));
}

#[test]
fn a_model_that_tells_too_little_is_refused_before_the_prompt() {
    let begin = |name: &str, phases: &[Phase]| {
        let plan = Plan::uniform(2, name, small(name), Budget::Tokens(16), phases);
        let mut cache = KvCache::new(plan, shape(), &Device::flex()).unwrap();
        cache.begin_prefill(40).map_err(|error| error.to_string())
    };
    for (name, missing) in [
        ("expected-attention", "rotary frequencies"),
        ("criticalkv", "the output projection's weights"),
    ] {
        let error = begin(name, &BOTH[1..]).unwrap_err();
        let wanted = format!("decode policy of layer 0 is {name}, which needs {missing}");
        assert!(error.contains(&wanted), "{error}");
    }
    begin("snapkv", &BOTH).unwrap();
}

#[test]
fn misuse_is_refused_by_name() {
    let device = Device::flex();
    let some = |heads, n| Tensor::<4>::ones([1, heads, n, 16], &device);
    let mut cache = cache(Plan::full(1), &device);
    let message = cache
        .decode(0, some(6, 1), some(2, 1), some(2, 1))
        .unwrap_err()
        .to_string();
    assert!(message.contains("begin_prefill"), "{message}");
    cache.begin_prefill(2).unwrap();
    let message = cache
        .prefill(0, some(6, 2), some(3, 2), some(2, 2))
        .unwrap_err()
        .to_string();
    assert!(message.contains("shape of k is [1, 3, 2, 16]"), "{message}");
    let message = cache
        .prefill(1, some(6, 2), some(2, 2), some(2, 2))
        .unwrap_err()
        .to_string();
    assert!(message.contains("layer is 1; allowed: 0 to 0"), "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Kept entries are unique, contain the protected ones and number exactly min(n, b).
    #[test]
    fn kept_sets_are_exact(
        which in 0..variants().len(),
        prompt in 1usize..90,
        budget in 12usize..60,
        steps in 0usize..12,
        seed in 0u64..1000,
    ) {
        let (name, params) = variants()[which].clone();
        let plan = Plan::uniform(1, name, params.clone(), Budget::Tokens(budget), &BOTH);
        let case = Case { plan: plan.clone(), prompt, chunk: 32, steps, seed };
        let device = Device::flex();
        let data = inputs(&case, 0);
        let mut cache = cache(plan, &device);
        cache.begin_prefill(prompt).unwrap();
        let part = |t: &[Vec<Vec<f64>>], r: std::ops::Range<usize>| tensor(&t[r], &device);
        let all = 0..prompt;
        cache.prefill(0, part(&data.q, all.clone()), part(&data.k, all.clone()), part(&data.v, all)).unwrap();
        cache.end_prefill(0).unwrap();
        for i in prompt..prompt + steps {
            let one = i..i + 1;
            cache.decode(0, part(&data.q, one.clone()), part(&data.k, one.clone()), part(&data.v, one)).unwrap();
        }
        let seen = prompt + steps;
        let protect = policy::build("test", name, &params).unwrap().protect(budget);
        for head in kept(&cache, 0) {
            prop_assert_eq!(head.len(), seen.min(budget));
            prop_assert!(head.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!((0..protect.sinks.min(seen)).all(|p| head.contains(&p)));
            prop_assert!((seen.saturating_sub(protect.recent)..seen).all(|p| head.contains(&p)));
        }
    }
}
