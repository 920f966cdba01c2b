//! One prompt under many plans at once equals each plan alone.

use crate::reference::harness::{Case, Inputs, cache, facts, inputs, kept, shape, small, tensor};
use burn::tensor::{Device, Tensor};
use polykv::policy::{self, Params};
use polykv::{Budget, KvCache, Phase, Plan, PromptCache, SharedPrefill};
use std::ops::Range;

const LAYERS: usize = 2;
const PROMPT: usize = 45;
const STEPS: usize = 30;
const ENTRY: usize = 2 * 2 * 16 * 4;

/// Every policy in the prefill, the decode and both, and everything kept.
fn plans() -> Vec<Plan> {
    let phases = [Phase::Prefill, Phase::Decode];
    let mut plans = vec![Plan::full(LAYERS)];
    for name in policy::names().into_iter().filter(|name| *name != "full") {
        let params = small(name);
        for phases in [&phases[..1], &phases[1..], &phases[..]] {
            let budget = Budget::Tokens(12);
            plans.push(Plan::uniform(LAYERS, name, params.clone(), budget, phases));
        }
    }
    // Two policies in one layer, and a budget above the length.
    let mut mixed = Plan::uniform(
        LAYERS,
        "h2o",
        Params::new(),
        Budget::Ratio(0.4),
        &phases[..],
    );
    mixed.decode[0].policy = "tova".into();
    plans.push(mixed.clone());
    // The same again in one layer, and in both.
    let mut again = mixed.clone();
    again.set_layers(Phase::Decode, {
        let mut rules = again.by_layer(Phase::Decode);
        rules[1].policy = "knorm".into();
        rules
    });
    plans.extend([again, mixed]);
    let roomy = Budget::Tokens(100);
    plans.push(Plan::uniform(
        LAYERS,
        "keydiff",
        Params::new(),
        roomy,
        &phases[..],
    ));
    plans
}

fn data() -> Vec<Inputs> {
    let case = Case {
        plan: Plan::full(LAYERS),
        prompt: PROMPT,
        chunk: PROMPT,
        steps: STEPS,
        seed: 5,
    };
    (0..LAYERS).map(|layer| inputs(&case, layer)).collect()
}

fn part(inputs: &Inputs, range: Range<usize>) -> [Tensor<4>; 3] {
    let device = Device::flex();
    [&inputs.q, &inputs.k, &inputs.v].map(|all| tensor(&all[range.clone()], &device))
}

fn prefill(cache: &mut dyn PromptCache, data: &[Inputs], range: Range<usize>) -> Vec<f32> {
    let mut outputs = Vec::new();
    cache.begin_prefill(range.len()).unwrap();
    for (layer, inputs) in data.iter().enumerate() {
        for start in range.clone().step_by(20) {
            let [q, k, v] = part(inputs, start..range.end.min(start + 20));
            let output = cache.prefill(layer, q, k, v).unwrap();
            outputs.extend(output.try_into_vec_as::<f32>().unwrap());
        }
        cache.end_prefill(layer).unwrap();
    }
    outputs
}

fn decode(cache: &mut KvCache, data: &[Inputs], range: Range<usize>) -> Vec<f32> {
    let mut outputs = Vec::new();
    for i in range {
        for (layer, inputs) in data.iter().enumerate() {
            let [q, k, v] = part(inputs, i..i + 1);
            let output = cache.decode(layer, q, k, v).unwrap();
            outputs.extend(output.try_into_vec_as::<f32>().unwrap());
        }
    }
    cache.check().unwrap();
    outputs
}

fn near(found: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(found.len(), wanted.len());
    let pairs = found.iter().zip(wanted);
    let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-6, "{what}: {worst}");
}

fn same_entries(found: &KvCache, wanted: &KvCache, what: &str) {
    for layer in 0..LAYERS {
        assert_eq!(
            kept(found, layer),
            kept(wanted, layer),
            "{what}, layer {layer}"
        );
    }
}

#[test]
fn each_fork_equals_its_plan_alone() {
    let (plans, data) = (plans(), data());
    let mut shared = SharedPrefill::new(plans.clone(), shape(), &Device::flex()).unwrap();
    shared.set_facts(&facts(LAYERS, &Device::flex()));
    let outputs = prefill(&mut shared, &data, 0..PROMPT);
    assert_eq!(shared.seen(), PROMPT);
    for (plan, mut fork) in plans.into_iter().zip(shared.finish()) {
        let what = plan.to_yaml();
        let mut alone = cache(plan, &Device::flex());
        near(&outputs, &prefill(&mut alone, &data, 0..PROMPT), &what);
        same_entries(&fork, &alone, &what);
        // A clone goes its own way and leaves the original as it is.
        let mut copy = fork.clone();
        let wanted = decode(&mut alone, &data, PROMPT..PROMPT + STEPS);
        for cache in [&mut copy, &mut fork] {
            let found = decode(cache, &data, PROMPT..PROMPT + STEPS);
            near(&found, &wanted, &what);
            same_entries(cache, &alone, &what);
        }
    }
}

#[test]
fn forks_take_more_prompt() {
    let (plans, data) = (plans(), data());
    let mut shared = SharedPrefill::new(plans.clone(), shape(), &Device::flex()).unwrap();
    shared.set_facts(&facts(LAYERS, &Device::flex()));
    prefill(&mut shared, &data, 0..PROMPT);
    for (plan, mut fork) in plans.into_iter().zip(shared.finish()) {
        let what = plan.to_yaml();
        let mut alone = cache(plan, &Device::flex());
        prefill(&mut alone, &data, 0..PROMPT);
        let wanted = prefill(&mut alone, &data, PROMPT..70);
        near(&prefill(&mut fork, &data, PROMPT..70), &wanted, &what);
        same_entries(&fork, &alone, &what);
    }
}

#[test]
fn untrimmed_tokens_see_what_was_kept_and_evict_nothing() {
    let data = data();
    for plan in plans() {
        let what = plan.to_yaml();
        let mut cache = cache(plan, &Device::flex());
        prefill(&mut cache, &data, 0..PROMPT);
        let before: Vec<_> = (0..LAYERS).map(|layer| kept(&cache, layer)).collect();
        // Eviction comes after the last query, so the outputs are the same with it.
        let mut trimmed = cache.clone();
        let found = prefill(&mut cache.untrimmed(), &data, PROMPT..60);
        near(&found, &prefill(&mut trimmed, &data, PROMPT..60), &what);
        for (layer, before) in before.iter().enumerate() {
            for (head, before) in kept(&cache, layer).iter().zip(before) {
                let wanted: Vec<usize> = before.iter().copied().chain(PROMPT..60).collect();
                assert_eq!(*head, wanted, "{what}");
            }
        }
        assert_eq!(cache.seen(), 60);
    }
}

#[test]
fn the_peak_is_one_full_layer_beside_the_budgets() {
    let data = data();
    let phases = [Phase::Prefill, Phase::Decode];
    let plans: Vec<Plan> = ["tova", "h2o", "knorm"]
        .iter()
        .map(|name| Plan::uniform(LAYERS, name, Params::new(), Budget::Tokens(10), &phases))
        .collect();
    let mut shared = SharedPrefill::new(plans, shape(), &Device::flex()).unwrap();
    prefill(&mut shared, &data, 0..PROMPT);
    // The layer at hand may have a few free slots, and each trimmed layer has one.
    let budgets = 3 * LAYERS * 11 * ENTRY;
    let peak = shared.peak_bytes();
    assert!(
        (PROMPT * ENTRY + budgets..=(PROMPT + 16) * ENTRY + budgets).contains(&peak),
        "{peak}"
    );
    for fork in shared.finish() {
        assert_eq!(fork.report().bytes, LAYERS * 11 * ENTRY);
    }
}

#[test]
fn misuse_is_refused_by_name() {
    let device = Device::flex();
    let message = |error: polykv::Error| error.to_string();
    let none = SharedPrefill::new(vec![], shape(), &device).unwrap_err();
    assert!(message(none).contains("plans is 0; allowed: at least 1"));
    let uneven = vec![Plan::full(2), Plan::full(3)];
    let uneven = SharedPrefill::new(uneven, shape(), &device).unwrap_err();
    assert!(message(uneven).contains("layers is 3; allowed: 2"));
    let data = data();
    let mut shared = SharedPrefill::new(vec![Plan::full(2)], shape(), &device).unwrap();
    let run = |shared: &mut SharedPrefill, layer| {
        let [q, k, v] = part(&data[0], 0..5);
        shared.prefill(layer, q, k, v).map(|_| ())
    };
    let early = run(&mut shared, 0).unwrap_err();
    assert!(message(early).contains("begin_prefill first"));
    shared.begin_prefill(5).unwrap();
    let beyond = run(&mut shared, 2).unwrap_err();
    assert!(message(beyond).contains("layer is 2; allowed: 0 to 1"));
    run(&mut shared, 0).unwrap();
    let second = shared.begin_prefill(5).unwrap_err();
    assert!(message(second).contains("prompts is 2; allowed: one"));
    let wrong = run(&mut shared, 1).unwrap_err();
    assert!(message(wrong).contains("layer is 1; allowed: 0, until its end_prefill"));
}
