//! One prompt under many plans at once equals each plan alone.

use super::{BOTH, ENTRY, decode, prefill};
use crate::common::{each_policy, policy, rule, uniform, written};
use burn::tensor::Device;
use polykv::allocate::Allocators;
use polykv::testing::{Inputs, cache, facts, kept, max_difference, shape};
use polykv::{Budget, Codes, ErrorKind, KvCache, Plan, PromptCache, Rule, SharedPrefill};

const LAYERS: usize = 2;
const PROMPT: usize = 45;
const STEPS: usize = 30;

/// Every policy in the prefill, the decode and both, everything kept, and every allocator that a plan can name.
fn plans() -> Vec<Plan> {
    // Twice, because plans with the same rules share their cuts.
    let mut plans = vec![Plan::full(LAYERS), Plan::full(LAYERS)];
    for policy in each_policy() {
        for phases in [&BOTH[..1], &BOTH[1..], &BOTH[..]] {
            let budget = Budget::Tokens(12);
            plans.push(Plan::uniform(LAYERS, policy.clone(), budget, phases));
        }
    }
    // Two policies in one layer, and a budget above the length.
    let mut mixed = uniform(LAYERS, "h2o", Budget::Ratio(0.4), &BOTH);
    mixed.layers[0].decode = rule("tova");
    plans.push(mixed);
    for layers in [["h2o", "tova"], ["tova", "h2o"], ["h2o", "tova"]] {
        let mut routed = Plan::new(vec![polykv::plan::LayerPlan::KEEP; 2], Budget::Tokens(12));
        routed.set_rules(polykv::Phase::Prefill, layers.map(rule));
        plans.push(routed);
    }
    plans.push(uniform(LAYERS, "keydiff", Budget::Tokens(100), &BOTH));
    for online in Allocators::default().iter() {
        if online.basis().is_online() {
            let mut plan = uniform(LAYERS, "tova", Budget::Tokens(12), &BOTH);
            plan.online = Some(online.clone());
            plans.push(plan);
        }
    }
    for every in [1, 4] {
        let mut plan = uniform(LAYERS, "tova", Budget::Tokens(12), &BOTH);
        plan.every = every;
        plans.push(plan);
    }
    let coded = |plan: &Plan| Codes::ALL.map(|codes| plan.clone().with_kv(codes));
    plans.extend(plans.clone().iter().step_by(7).flat_map(coded));
    plans
}

fn data() -> Vec<Inputs> {
    super::data(LAYERS, PROMPT + STEPS, 5)
}

fn shared(plans: Vec<Plan>) -> SharedPrefill {
    let mut shared = SharedPrefill::new(plans, shape(), &Device::flex()).unwrap();
    PromptCache::set_facts(&mut shared, &facts(LAYERS, &Device::flex()));
    shared
}

fn alone(plan: Plan) -> KvCache {
    cache(plan, &Device::flex()).unwrap()
}

fn near(found: &[f32], wanted: &[f32], what: &str) {
    let apart = max_difference(found, wanted);
    assert!(apart <= 1e-6, "{what}: {apart}");
}

fn same_entries(found: &KvCache, wanted: &KvCache, what: &str) {
    for layer in 0..LAYERS {
        assert_eq!(
            kept(found, layer).unwrap(),
            kept(wanted, layer).unwrap(),
            "{what}, layer {layer}"
        );
    }
}

#[test]
fn each_fork_equals_its_plan_alone() {
    let (plans, data) = (plans(), data());
    let (shared, outputs) = prefill(shared(plans.clone()), &data, 0..PROMPT, 20).unwrap();
    assert_eq!(PromptCache::seen(&shared), PROMPT);
    for (plan, mut fork) in plans.into_iter().zip(shared.into_caches()) {
        let what = written(&plan);
        let (mut alone, wanted) = prefill(alone(plan), &data, 0..PROMPT, 20).unwrap();
        near(&outputs, &wanted, &what);
        same_entries(&fork, &alone, &what);
        // A clone goes its own way and leaves the original as it is.
        let mut copy = fork.clone();
        let wanted = decode(&mut alone, &data, PROMPT..PROMPT + STEPS).unwrap();
        for cache in [&mut copy, &mut fork] {
            let found = decode(cache, &data, PROMPT..PROMPT + STEPS).unwrap();
            near(&found, &wanted, &what);
            same_entries(cache, &alone, &what);
        }
    }
}

#[test]
fn forks_take_more_prompt() {
    let (plans, data) = (plans(), data());
    let (shared, _) = prefill(shared(plans.clone()), &data, 0..PROMPT, 20).unwrap();
    for (plan, fork) in plans.into_iter().zip(shared.into_caches()) {
        let what = written(&plan);
        let (alone, _) = prefill(alone(plan), &data, 0..PROMPT, 20).unwrap();
        let (alone, wanted) = prefill(alone, &data, PROMPT..70, 20).unwrap();
        let (fork, found) = prefill(fork, &data, PROMPT..70, 20).unwrap();
        near(&found, &wanted, &what);
        same_entries(&fork, &alone, &what);
    }
}

#[test]
fn untrimmed_tokens_see_what_was_kept_and_evict_nothing() {
    let data = data();
    for plan in plans() {
        let what = written(&plan);
        let (mut cache, _) = prefill(alone(plan), &data, 0..PROMPT, 20).unwrap();
        let of = |cache: &KvCache, layer| kept(cache, layer).unwrap();
        let before: Vec<_> = (0..LAYERS).map(|layer| of(&cache, layer)).collect();
        // Eviction comes after the last query, so the outputs are the same with it.
        let (_, trimmed) = prefill(cache.clone(), &data, PROMPT..60, 20).unwrap();
        let (_, found) = prefill(cache.untrimmed(), &data, PROMPT..60, 20).unwrap();
        near(&found, &trimmed, &what);
        for (layer, before) in before.iter().enumerate() {
            for (head, before) in of(&cache, layer).iter().zip(before) {
                let wanted: Vec<usize> = before.iter().copied().chain(PROMPT..60).collect();
                assert_eq!(*head, wanted, "{what}");
            }
        }
        assert_eq!(cache.seen(), 60);
    }
}

#[test]
fn the_peak_is_one_full_layer_beside_the_budgets() {
    let plans = ["tova", "h2o", "knorm"];
    let plans = plans.map(|name| uniform(LAYERS, name, Budget::Tokens(10), &BOTH));
    let (shared, _) = prefill(shared(plans.to_vec()), &data(), 0..PROMPT, 20).unwrap();
    // The layer at hand may have a few free slots, and each trimmed layer has one.
    let budgets = 3 * LAYERS * 11 * ENTRY;
    let peak = shared.peak_bytes();
    assert!(
        (PROMPT * ENTRY + budgets..=(PROMPT + 16) * ENTRY + budgets).contains(&peak),
        "{peak}"
    );
    for mut fork in shared.into_caches() {
        assert_eq!(fork.report().unwrap().bytes, LAYERS * 11 * ENTRY);
    }
}

/// A cache may be put together from layers of others.
#[test]
fn layers_of_several_plans_make_one_cache() {
    let data = data();
    let names = ["tova", "h2o"];
    let plans = names.map(|name| uniform(LAYERS, name, Budget::Tokens(12), &BOTH));
    let caches = plans.each_ref().map(|plan| {
        prefill(alone(plan.clone()), &data, 0..PROMPT, 20)
            .unwrap()
            .0
    });
    let mut plan = plans[0].clone();
    plan.layers[0] = plans[1].layers[0].clone();
    let mut mixed = KvCache::of_layers(plan.clone(), &caches, &[1, 0]).unwrap();
    let (mut wanted, _) = prefill(alone(plan.clone()), &data, 0..PROMPT, 20).unwrap();
    same_entries(&mixed, &wanted, "of layers");
    let steps = PROMPT..PROMPT + STEPS;
    let found = decode(&mut mixed, &data, steps.clone()).unwrap();
    near(&found, &decode(&mut wanted, &data, steps).unwrap(), "steps");
    same_entries(&mixed, &wanted, "after steps");
    let mut within = caches.clone();
    let _ = within[1].prompt(3).unwrap();
    for (caches, picks, kind) in [
        (&caches, &[1, 2][..], ErrorKind::Shape),
        (&caches, &[1], ErrorKind::Shape),
        (&within, &[1, 0], ErrorKind::Order),
    ] {
        let error = KvCache::of_layers(plan.clone(), caches, picks).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
}

#[test]
fn misuse_is_refused_by_name() {
    let new = |plans| SharedPrefill::new(plans, shape(), &Device::flex());
    let none = new(vec![]).unwrap_err().to_string();
    assert!(none.contains("plans is 0; allowed: at least 1"), "{none}");
    let uneven = new(vec![Plan::full(2), Plan::full(3)]).unwrap_err();
    let uneven = uneven.to_string();
    assert!(uneven.contains("layers is 3; allowed: 2"), "{uneven}");
    let small = Plan::uniform(2, policy("snapkv", "{}"), Budget::Tokens(8), &BOTH);
    let error = polykv::Prompt::new(shared(vec![Plan::full(2), small]), 40);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Budget);
    assert!(matches!(Plan::full(2).layers[1].decode, Rule::Keep));
}
