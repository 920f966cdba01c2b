//! Prompts that run a second time behind themselves, for policies that ask for it.

use super::protocol::refused;
use super::{assert_equal, cache, plan};
use crate::common::{policy, rule};
use burn::tensor::{Device, Tensor};
use polykv::plan::LayerPlan;
use polykv::testing::{Case, Inputs, Windows, kept};
use polykv::{Budget, ErrorKind, KvCache, Phase, Plan, Prompt};

const PROMPT: usize = 20;

/// Policies of the prefill in two layers, the first without a repetition.
fn two_layers() -> Plan {
    let mut plan = Plan::new(vec![LayerPlan::KEEP; 3], Budget::Tokens(12));
    let of = |name| match name {
        "kvzip" => polykv::Rule::evict(policy("kvzip", "{sinks: 1, recent: 2, window: 0}")),
        other => rule(other),
    };
    plan.set_rules(Phase::Prefill, ["tova", "kvzip", "tova"].map(of));
    plan
}

fn part(layer: usize) -> [Tensor<4>; 3] {
    Inputs::seeded(PROMPT, 3, layer).part(0..PROMPT, &Device::flex())
}

/// A prompt whose layer `layer` is next and has been given everything.
fn given(cache: &mut KvCache, layer: usize) -> Prompt<&mut KvCache> {
    let mut prompt = cache.prompt(PROMPT).unwrap();
    for before in 0..=layer {
        let [q, k, v] = part(before);
        prompt.attend(before, q, k, v).unwrap();
        if before < layer {
            let [q, k, v] = part(before);
            prompt.repeat(before, q, k, v).unwrap();
            prompt.end_layer(before).unwrap();
        }
    }
    prompt
}

#[test]
fn what_is_asked_for_must_come_and_nothing_else() {
    let mut own = cache(two_layers(), &Device::flex()).unwrap();
    let mut prompt = given(&mut own, 1);
    assert_eq!(prompt.layers_to_repeat(), 2);
    let parts = ["repeated tokens of layer 1 is 0", "Prompt::repeat"];
    refused(prompt.end_layer(1).unwrap_err(), ErrorKind::Order, &parts);
    let [q, k, v] = part(1);
    prompt.repeat(1, q, k, v).unwrap();
    prompt.end_layer(1).unwrap();
    let [q, k, v] = part(2);
    let early = prompt.repeat(2, q.clone(), k.clone(), v.clone());
    refused(
        early.unwrap_err(),
        ErrorKind::Order,
        &["tokens of layer 2 is 0"],
    );
    prompt.attend(2, q.clone(), k.clone(), v.clone()).unwrap();
    let more = prompt.repeat(2, q, k, v).unwrap_err();
    refused(more, ErrorKind::Order, &["layer 2", "layers below 2"]);
    prompt.end_layer(2).unwrap();
    prompt.finish().unwrap();

    let mut other = cache(plan(policy("h2o", "{}"), 12), &Device::flex()).unwrap();
    let mut prompt = given(&mut other, 0);
    assert_eq!(prompt.layers_to_repeat(), 0);
    let [q, k, v] = part(0);
    let asked = prompt.repeat(0, q, k, v).unwrap_err();
    refused(asked, ErrorKind::Order, &["none, as no policy asks for it"]);
}

#[test]
fn nothing_is_repeated_where_nothing_would_go() {
    let to_repeat = |budget, phases: &[Phase]| {
        let plan = Plan::uniform(1, policy("kvzip", "{}"), Budget::Tokens(budget), phases);
        let mut cache = cache(plan, &Device::flex()).unwrap();
        let prompt = cache.prompt(PROMPT + 30).unwrap();
        prompt.layers_to_repeat()
    };
    assert_eq!(to_repeat(PROMPT + 29, &[Phase::Prefill]), 1);
    assert_eq!(to_repeat(PROMPT + 30, &[Phase::Prefill]), 0);
    // Later tokens may exceed it.
    assert_eq!(to_repeat(PROMPT + 30, &Phase::BOTH), 1);
}

#[test]
fn members_of_other_policies_are_told() {
    for (name, params) in [
        (
            "adakv",
            "{base: {policy: kvzip, sinks: 1, recent: 2, window: 3}}",
        ),
        (
            "criticalkv",
            "{base: {policy: kvzip, sinks: 1, recent: 2, window: 3}}",
        ),
        (
            "refit",
            "{base: {policy: kvzip, sinks: 1, recent: 2, window: 3}, queries: 4}",
        ),
        (
            "blend",
            "{policies: [{policy: kvzip, sinks: 1, recent: 2, window: 3}, tova]}",
        ),
    ] {
        for window in [None, Some(9), Some(30)] {
            let case = Case {
                chunk: 7,
                rounds: 2,
                windows: Windows {
                    layers: vec![window],
                    softcap: None,
                },
                ..Case::new(plan(policy(name, params), 14))
            };
            assert_equal(&case);
        }
    }
}

#[test]
fn parts_are_independent_and_leave_nothing() {
    let run = |order: [u64; 2]| {
        let mut own = cache(
            plan(policy("kvzip", "{sinks: 0, recent: 1, window: 0}"), 6),
            &Device::flex(),
        );
        let own = own.as_mut().unwrap();
        let mut prompt = given(own, 0);
        for seed in order {
            let [q, k, v] = Inputs::seeded(5, seed, 0).part(0..5, &Device::flex());
            prompt.repeat(0, q, k, v).unwrap();
        }
        prompt.end_layer(0).unwrap();
        prompt.finish().unwrap();
        assert_eq!(own.seen(), PROMPT);
        kept(own, 0).unwrap()
    };
    assert_eq!(run([7, 8]), run([8, 7]));
    assert_ne!(run([7, 7]), run([8, 8]));
}
