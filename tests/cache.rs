//! The cache's invariants and every policy in both phases against the naive reference, on the CPU backend.

#![cfg(feature = "flex")]

#[path = "cache/by_hand.rs"]
mod by_hand;
#[path = "cache/coded.rs"]
mod coded;
mod common;
#[path = "cache/copies.rs"]
mod copies;
#[path = "cache/estimate.rs"]
mod estimate;
#[path = "cache/every.rs"]
mod every;
#[path = "cache/facts.rs"]
mod facts;
#[path = "cache/harness.rs"]
mod harness;
#[path = "cache/heads.rs"]
mod heads;
#[path = "cache/machine.rs"]
mod machine;
#[path = "cache/online.rs"]
mod online;
#[path = "cache/pack.rs"]
mod pack;
#[path = "cache/plans.rs"]
mod plans;
#[path = "cache/properties.rs"]
mod properties;
#[path = "cache/protect.rs"]
mod protect;
#[path = "cache/protocol.rs"]
mod protocol;
#[path = "cache/repetition.rs"]
mod repetition;
#[path = "cache/session.rs"]
mod session;
#[path = "cache/shared.rs"]
mod shared;
#[path = "cache/windows.rs"]
mod windows;
#[path = "cache/world.rs"]
mod world;

use burn::tensor::Device;
use common::{all_variants, each_policy, policy, repeat, rule, uniform, written};
use polykv::policy::Policies;
use polykv::testing::{Case, Inputs, cache, check, compare, kept};
use polykv::{Budget, KvCache, Phase, Plan, Policy, Prompt, PromptCache, Result};
use std::ops::Range;
use std::sync::Arc;

const BOTH: [Phase; 2] = Phase::BOTH;

/// Bytes of an entry of the synthetic layers.
const ENTRY: usize = 2 * 2 * 16 * 4;

fn plan(policy: Arc<dyn Policy>, budget: usize) -> Plan {
    Plan::uniform(1, policy, Budget::Tokens(budget), &BOTH)
}

fn assert_equal(case: &Case) {
    let difference = compare(case, &Device::flex()).unwrap();
    assert!(
        difference.output < 1e-5 && difference.kept == 0,
        "{difference:?}\n{}",
        written(&case.plan)
    );
}

/// Runs a prompt of tokens in chunks, one layer's inputs each; the outputs in order.
fn prefill<C: PromptCache>(
    cache: C,
    data: &[Inputs],
    range: Range<usize>,
    chunk: usize,
) -> Result<(C, Vec<f32>)> {
    let mut outputs = Vec::new();
    let mut prompt = Prompt::new(cache, range.len())?;
    for (layer, own) in data.iter().enumerate() {
        for start in range.clone().step_by(chunk) {
            let [q, k, v] = own.part(start..range.end.min(start + chunk), &Device::flex());
            let output = prompt.attend(layer, q, k, v)?;
            outputs.extend(output.try_into_vec_as::<f32>().unwrap());
        }
        repeat(&mut prompt, layer, own.part(range.clone(), &Device::flex()))?;
        prompt.end_layer(layer)?;
    }
    Ok((prompt.finish()?, outputs))
}

/// Runs tokens one by one through all layers; the outputs in order.
fn decode(cache: &mut KvCache, data: &[Inputs], range: Range<usize>) -> Result<Vec<f32>> {
    let mut outputs = Vec::new();
    for i in range {
        for (layer, own) in data.iter().enumerate() {
            let [q, k, v] = own.part(i..i + 1, &Device::flex());
            let output = cache.decode(layer, q, k, v)?;
            outputs.extend(output.try_into_vec_as::<f32>().unwrap());
        }
    }
    cache.check()?;
    Ok(outputs)
}

/// Entries that every row and head of a layer holds, on average.
fn length(cache: &KvCache, layer: usize) -> usize {
    cache.layers()[layer].entries_mean() as usize
}

fn data(layers: usize, tokens: usize, seed: u64) -> Vec<Inputs> {
    (0..layers)
        .map(|layer| Inputs::seeded(tokens, seed, layer))
        .collect()
}

#[test]
fn every_policy_passes_the_checks_and_has_a_reference() {
    let policies = Policies::default();
    for entry in policies.iter() {
        check(&policies, &entry.name, &Device::flex()).unwrap();
    }
    for policy in all_variants() {
        assert!(policy.oracle().is_some(), "{}", policy.key());
    }
}

#[test]
fn any_two_policies_can_share_a_layer() {
    for prefill in each_policy() {
        for decode in each_policy() {
            let mut plan = plan(prefill.clone(), 14);
            plan.layers[0].decode = polykv::Rule::evict(decode);
            assert_equal(&Case {
                prompt: 30,
                chunk: 30,
                steps: 20,
                ..Case::new(plan)
            });
        }
    }
}

#[test]
fn prompts_longer_than_a_block_of_queries_equal_the_reference() {
    for name in ["h2o", "snapkv"] {
        assert_equal(&Case {
            prompt: 300,
            chunk: 290,
            steps: 3,
            ..Case::new(plan(policy(name, "{}"), 80))
        });
    }
}

/// Its slots are out of order of position, since decode steps came before.
#[test]
fn a_second_prompt_equals_the_reference() {
    for policy in all_variants() {
        assert_equal(&Case {
            prompt: 25,
            chunk: 16,
            steps: 17,
            rounds: 2,
            ..Case::new(plan(policy, 16))
        });
    }
}

#[test]
fn a_second_prompt_continues_and_is_trimmed_too() {
    let data = data(1, 80, 1);
    let mut cache = cache(plan(policy("h2o", "{}"), 16), &Device::flex()).unwrap();
    let mut run = |range: Range<usize>| {
        prefill(&mut cache, &data, range, 45).unwrap();
        kept(&cache, 0).unwrap()
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
    assert_eq!((cache.seen(), cache.report().unwrap().bytes), (0, 0));
}

#[test]
fn a_decode_budget_below_the_prefill_budget_compacts_once() {
    let mut plan = uniform(1, "tova", Budget::Tokens(20), &BOTH);
    plan.layers[0].prefill = polykv::Rule::Keep;
    assert_equal(&Case {
        steps: 3,
        ..Case::new(plan.clone())
    });
    let data = data(1, 46, 1);
    let mut cache = cache(plan, &Device::flex()).unwrap();
    prefill(&mut cache, &data, 0..45, 45).unwrap();
    assert_eq!(length(&cache, 0), 45);
    decode(&mut cache, &data, 45..46).unwrap();
    assert_eq!(length(&cache, 0), 20);
    assert_eq!(cache.report().unwrap().bytes, 21 * ENTRY);
}

#[test]
fn the_report_is_what_the_tensors_occupy() {
    let plan = uniform(2, "tova", Budget::Tokens(10), &BOTH);
    let mut cache = cache(plan, &Device::flex()).unwrap();
    prefill(&mut cache, &data(2, 45, 1), 0..45, 45).unwrap();
    let report = cache.report().unwrap();
    assert_eq!(report.seen, 45);
    assert_eq!(report.kept, [10.0, 10.0]);
    assert_eq!(report.bytes, 2 * 11 * ENTRY);
    assert_eq!(report.full_bytes, 2 * 45 * ENTRY);
    // The second layer's full cache beside both trimmed ones: one layer's full cache plus the budgets.
    assert_eq!(report.peak_bytes, (45 + 2 * 11) * ENTRY);
}

#[test]
fn rules_of_layers_are_their_own() {
    // Each layer differs from the others in both phases.
    let mut plan = uniform(3, "tova", Budget::Tokens(14), &BOTH);
    plan.layers[1].prefill = rule("h2o");
    plan.layers[1].decode = rule("knorm");
    plan.layers[2].prefill = polykv::Rule::evict(policy("snapkv", "{window: 4, kernel: 3}"));
    assert_equal(&Case::new(plan));
}
