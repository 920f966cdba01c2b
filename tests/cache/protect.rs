//! Spans that no policy may evict.

use super::variants::variants;
use super::{BOTH, case};
use crate::reference::harness::{Case, cache, inputs, kept, tensor};
use burn::tensor::Device;
use polykv::policy::Params;
use polykv::{Budget, Plan, Spans};
use std::ops::Range;

const SPANS: [Range<usize>; 2] = [0..5, 20..23];
const BUDGET: usize = 24;

/// The entries that each head keeps after the prompt and after every step.
fn history(case: &Case, spans: Spans) -> Vec<Vec<Vec<usize>>> {
    let device = Device::flex();
    let data = inputs(case, 0);
    let mut cache = cache(case.plan.clone(), &device);
    cache.protect(spans);
    cache.begin_prefill(case.prompt).unwrap();
    let part = |t: &[Vec<Vec<f64>>], range: Range<usize>| tensor(&t[range], &device);
    let all = 0..case.prompt;
    cache
        .prefill(
            0,
            part(&data.q, all.clone()),
            part(&data.k, all.clone()),
            part(&data.v, all),
        )
        .unwrap();
    cache.end_prefill(0).unwrap();
    let mut history = vec![kept(&cache, 0)];
    for i in case.prompt..case.prompt + case.steps {
        let one = i..i + 1;
        cache
            .decode(
                0,
                part(&data.q, one.clone()),
                part(&data.k, one.clone()),
                part(&data.v, one),
            )
            .unwrap();
        history.push(kept(&cache, 0));
    }
    history
}

fn holds_spans(head: &[usize]) -> bool {
    SPANS.into_iter().flatten().all(|p| head.contains(&p))
}

#[test]
fn every_policy_keeps_protected_spans_in_both_phases() {
    let (mut cases, mut lost) = (0, 0);
    for (name, params) in variants() {
        for phases in [&BOTH[..1], &BOTH[1..], &BOTH[..]] {
            let plan = Plan::uniform(1, name, params.clone(), Budget::Tokens(BUDGET), phases);
            let case = case(plan);
            let without = history(&case, Spans::default());
            cases += 1;
            lost += usize::from(!without.iter().flatten().all(|head| holds_spans(head)));
            for (step, heads) in history(&case, Spans::new(SPANS)).iter().enumerate() {
                for head in heads {
                    assert!(
                        holds_spans(head),
                        "{name}, {phases:?}, step {step}: {head:?}"
                    );
                    // Charged to the budget: a protected entry takes another one's place.
                    if phases == BOTH {
                        assert_eq!(head.len(), BUDGET, "{name}, step {step}");
                    }
                }
            }
        }
    }
    // Left alone, some policies keep these positions for their scores (h2o: early ones have larger sums).
    assert!(lost * 2 > cases, "{lost} of {cases}");
}

#[test]
fn a_budget_below_the_protection_is_refused_before_the_prompt() {
    let begin = |policy: &str, budget, spans: Spans| {
        let plan = Plan::uniform(2, policy, Params::new(), Budget::Tokens(budget), &BOTH);
        let mut cache = cache(plan, &Device::flex());
        cache.protect(spans);
        cache.begin_prefill(100)
    };
    // Sinks inside the span count once.
    begin("streaming-llm", 9, Spans::new(SPANS)).unwrap();
    let error = begin("streaming-llm", 8, Spans::new(SPANS))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "plan: prefill budget of layer 0 is 8; allowed: at least 9, 8 protected positions and what policy \
         streaming-llm protects"
    );
    begin("snapkv", 42, Spans::prefix(10)).unwrap();
    let error = begin("snapkv", 41, Spans::prefix(10))
        .unwrap_err()
        .to_string();
    assert!(error.contains("is 41; allowed: at least 42"), "{error}");
    begin("full", 1, Spans::prefix(50)).unwrap();
}

#[test]
fn clearing_forgets_the_protection() {
    let plan = Plan::uniform(1, "tova", Params::new(), Budget::Tokens(4), &BOTH);
    let mut cache = cache(plan, &Device::flex());
    cache.protect(Spans::prefix(8));
    assert!(cache.begin_prefill(20).is_err());
    cache.clear();
    cache.begin_prefill(20).unwrap();
}
