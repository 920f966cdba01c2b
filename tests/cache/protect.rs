//! Spans that no policy may evict.

use super::{BOTH, assert_equal, data, decode, prefill};
use crate::common::{all_variants, uniform};
use burn::tensor::Device;
use polykv::testing::{Case, cache, kept};
use polykv::{Budget, ErrorKind, Plan, Spans};
use std::ops::Range;

const SPANS: [Range<usize>; 2] = [0..5, 20..23];
const BUDGET: usize = 24;

/// The entries that each head keeps after the prompt and after every step.
fn history(plan: Plan, spans: Spans) -> Vec<Vec<Vec<usize>>> {
    let data = data(1, 85, 1);
    let mut cache = cache(plan, &Device::flex()).unwrap();
    cache.protect(spans);
    prefill(&mut cache, &data, 0..45, 45).unwrap();
    let mut history = vec![kept(&cache, 0).unwrap()];
    for i in 45..85 {
        decode(&mut cache, &data, i..i + 1).unwrap();
        history.push(kept(&cache, 0).unwrap());
    }
    history
}

fn holds_spans(head: &[usize]) -> bool {
    SPANS.into_iter().flatten().all(|p| head.contains(&p))
}

#[test]
fn every_policy_keeps_protected_spans_in_both_phases() {
    let (mut cases, mut lost) = (0, 0);
    for policy in all_variants() {
        let name = policy.key();
        for phases in [&BOTH[..1], &BOTH[1..], &BOTH[..]] {
            let plan = Plan::uniform(1, policy.clone(), Budget::Tokens(BUDGET), phases);
            let without = history(plan.clone(), Spans::default());
            cases += 1;
            lost += usize::from(!without.iter().flatten().all(|head| holds_spans(head)));
            for (step, heads) in history(plan.clone(), Spans::new(SPANS)).iter().enumerate() {
                for head in heads {
                    assert!(
                        holds_spans(head),
                        "{name}, {phases:?}, step {step}: {head:?}"
                    );
                }
                // Charged to the budget: a protected entry takes another one's place.
                if phases == BOTH {
                    let held: usize = heads.iter().map(Vec::len).sum();
                    assert_eq!(held, BUDGET * heads.len(), "{name}, step {step}");
                }
            }
        }
    }
    // Left alone, some policies keep these positions for their scores (h2o: early ones have larger sums).
    assert!(lost * 2 > cases, "{lost} of {cases}");
}

/// They take places of others, whose order stays the policy's.
#[test]
fn what_stays_beside_protected_spans_equals_the_reference() {
    for policy in all_variants() {
        for phases in [&BOTH[..1], &BOTH[1..], &BOTH[..]] {
            assert_equal(&Case {
                spans: Spans::new(SPANS),
                rounds: 2,
                prompt: 40,
                chunk: 40,
                steps: 9,
                ..Case::new(Plan::uniform(
                    1,
                    policy.clone(),
                    Budget::Tokens(BUDGET),
                    phases,
                ))
            });
        }
    }
}

#[test]
fn a_budget_below_the_protection_is_refused_before_the_prompt() {
    let begin = |plan: Plan, spans: Spans| {
        let mut cache = cache(plan, &Device::flex()).unwrap();
        cache.protect(spans);
        cache.prompt(100).map(drop)
    };
    let of = |name, budget| uniform(2, name, Budget::Tokens(budget), &BOTH);
    // Sinks inside the span count once.
    begin(of("streaming-llm", 9), Spans::new(SPANS)).unwrap();
    let error = begin(of("streaming-llm", 8), Spans::new(SPANS)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Budget);
    assert_eq!(
        error.to_string(),
        "plan: prefill budget of layer 0 is 8; allowed: at least 9, 8 protected positions and what policy \
         streaming-llm protects"
    );
    begin(of("snapkv", 42), Spans::prefix(10)).unwrap();
    let error = begin(of("snapkv", 41), Spans::prefix(10)).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("is 41; allowed: at least 42"), "{error}");
    begin(Plan::full(2), Spans::prefix(50)).unwrap();
}

#[test]
fn clearing_forgets_the_protection() {
    let plan = uniform(1, "tova", Budget::Tokens(4), &BOTH);
    let mut cache = cache(plan, &Device::flex()).unwrap();
    cache.protect(Spans::prefix(8));
    assert!(cache.prompt(20).is_err());
    cache.clear();
    let _ = cache.prompt(20).unwrap();
}
