//! Evictions that are some decoded tokens apart.

use super::world::World;
use super::{BOTH, assert_equal};
use crate::common::{all_variants, uniform, written};
use polykv::allocate::least_budget;
use polykv::testing::{Case, Windows};
use polykv::{Budget, Codes, Phase, Plan, Spans};

fn every(mut plan: Plan, tokens: usize) -> Plan {
    plan.every = tokens;
    plan
}

#[test]
fn every_policy_equals_the_reference() {
    for policy in all_variants() {
        for phases in [&BOTH[1..], &BOTH[..]] {
            for (tokens, window) in [(3, None), (7, None), (100, None), (4, Some(24))] {
                let budget = least_budget(&*policy).unwrap() + 8;
                let plan = Plan::uniform(2, policy.clone(), Budget::Tokens(budget), phases);
                let windows = Windows {
                    layers: vec![window, None],
                    softcap: None,
                };
                let mut case = Case {
                    prompt: 30,
                    chunk: 16,
                    steps: 17,
                    rounds: 2,
                    windows,
                    ..Case::new(every(plan, tokens))
                };
                assert_equal(&case);
                case.spans = Spans::new(std::iter::once(3..5));
                assert_equal(&case);
            }
        }
    }
}

#[test]
fn a_layer_falls_below_its_budget_and_never_exceeds_it() {
    let world = World::new(2, 50, 40);
    let plan = |tokens| every(uniform(2, "tova", Budget::Tokens(20), &BOTH), tokens);
    let lengths = |tokens| -> Vec<usize> {
        let run = world.run(plan(tokens)).unwrap();
        run.lengths.iter().map(|layers| layers[0]).collect()
    };
    // The prompt is cut to the budget, and what exceeds it to fewer.
    let wanted = |tokens: usize| -> Vec<usize> {
        let after = |step: usize| 20 - (tokens - 1) + (step - 1) % tokens;
        (0..=40)
            .map(|step| if step == 0 { 20 } else { after(step) })
            .collect()
    };
    for tokens in [1, 2, 8] {
        assert_eq!(lengths(tokens), wanted(tokens));
    }
    // What the policy protects stays however many tokens are stated.
    let protecting = every(uniform(2, "snapkv", Budget::Tokens(40), &BOTH[1..]), 1000);
    let run = world.run(protecting).unwrap();
    let least = run.lengths[1..].iter().map(|layers| layers[0]).min();
    assert_eq!(least, Some(32));
}

#[test]
fn one_token_apart_is_as_without_it_and_codes_go_with_it() {
    let world = World::new(2, 50, 20);
    let plan = uniform(2, "h2o", Budget::Tokens(20), &BOTH);
    let (one, wanted) = (every(plan.clone(), 1), world.run(plan.clone()).unwrap());
    assert_eq!(one.fingerprint(), plan.fingerprint());
    assert_eq!(world.run(one).unwrap().outputs, wanted.outputs);
    let apart = every(plan.clone(), 6);
    assert_ne!(apart.fingerprint(), plan.fingerprint());
    assert!(written(&apart).contains("every: 6"));
    let floats = world.run(apart.clone()).unwrap();
    assert_ne!(floats.outputs, wanted.outputs);
    for codes in Codes::ALL {
        let coded = world.run(apart.clone().with_kv(codes)).unwrap();
        assert_eq!(coded.lengths, floats.lengths);
        let pairs = coded.outputs.iter().zip(&floats.outputs);
        let apart: f32 =
            pairs.map(|(a, b)| (a - b).abs()).sum::<f32>() / floats.outputs.len() as f32;
        assert!((1e-6..0.05).contains(&apart), "{apart}");
    }
}

#[test]
fn no_tokens_are_refused() {
    let plan = every(uniform(1, "tova", Budget::Tokens(20), &[Phase::Decode]), 0);
    let refused = plan.check().unwrap_err().to_string();
    assert!(refused.contains("every is 0; allowed: 1 to"), "{refused}");
}
