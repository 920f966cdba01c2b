//! Layers with a sliding window, beside others without one.

use super::{BOTH, ENTRY, assert_equal, data, decode, length, prefill};
use crate::common::{all_variants, policy, uniform, written};
use burn::tensor::Device;
use polykv::allocate::Allocators;
use polykv::plan::Share;
use polykv::testing::{Case, Inputs, Windows, cache, facts, kept, max_difference, shape};
use polykv::{Budget, KvCache, Phase, Plan, Prompt, PromptCache, Rule, SharedPrefill, Spans};

/// The tokens that a layer with a window takes at a time.
const PIECE: usize = 512;

fn windows(layers: &[Option<usize>]) -> Windows {
    Windows {
        layers: layers.to_vec(),
        softcap: Some(3.0),
    }
}

fn with_windows(plan: Plan, windows: &Windows) -> KvCache {
    let layers = plan.layers.len();
    let device = Device::flex();
    let mut cache = cache(plan, &device).unwrap();
    cache.set_facts(&windows.in_facts(facts(layers, &device)));
    cache
}

#[test]
fn every_policy_equals_the_reference_over_two_prompts() {
    for policy in all_variants() {
        for phases in [&BOTH[..1], &BOTH[1..], &BOTH[..]] {
            for window in [5, 24, 60] {
                let budget = polykv::allocate::least_budget(&*policy).unwrap().max(16);
                assert_equal(&Case {
                    prompt: 25,
                    chunk: 16,
                    steps: 17,
                    rounds: 3,
                    windows: windows(&[Some(window)]),
                    ..Case::new(Plan::uniform(
                        1,
                        policy.clone(),
                        Budget::Tokens(budget),
                        phases,
                    ))
                });
            }
        }
    }
}

/// So long that what has left the window goes while the prompt still runs.
#[test]
fn prompts_of_many_windows_equal_the_reference() {
    let keep = Plan::full(1);
    let evicting = ["h2o", "scissorhands", "snapkv"];
    let evicting = evicting.map(|name| uniform(1, name, Budget::Tokens(40), &BOTH));
    for plan in evicting.into_iter().chain([keep]) {
        for (window, chunk) in [(30, 1300), (30, 90), (300, 700)] {
            assert_equal(&Case {
                prompt: 1300,
                chunk,
                steps: 3,
                windows: windows(&[Some(window)]),
                ..Case::new(plan.clone())
            });
        }
    }
}

#[test]
fn a_layer_keeps_its_window_even_without_a_policy() {
    let mut cache = with_windows(Plan::full(2), &windows(&[Some(20), None]));
    let data = data(2, 80, 1);
    prefill(&mut cache, &data, 0..45, 45).unwrap();
    assert_eq!(kept(&cache, 0).unwrap()[0], Vec::from_iter(26..45));
    assert_eq!(length(&cache, 1), 45);
    let layer = cache.layers()[0].kv_bytes();
    assert_eq!(layer, 20 * ENTRY, "a slot for the next token");
    cache.reserve(1000);
    decode(&mut cache, &data, 45..80).unwrap();
    assert_eq!(kept(&cache, 0).unwrap()[0], Vec::from_iter(61..80));
    assert_eq!(cache.layers()[0].kv_bytes(), layer);
    let report = cache.report().unwrap();
    assert_eq!(report.full_bytes, (19 + 80) * ENTRY);
    assert_eq!(report.kept, [19.0, 80.0]);
}

#[test]
fn while_decoding_what_has_left_goes_before_any_policy_is_asked() {
    // knorm keeps keys of small norm, however old they are.
    let plan = uniform(1, "knorm", Budget::Tokens(12), &BOTH);
    let mut cache = with_windows(plan, &windows(&[Some(30)]));
    let data = data(1, 145, 1);
    prefill(&mut cache, &data, 0..45, 45).unwrap();
    for i in 45..145 {
        decode(&mut cache, &data, i..i + 1).unwrap();
        for head in kept(&cache, 0).unwrap() {
            assert_eq!(head.len(), 12);
            assert!(head[0] > i + 1 - 30, "{head:?} after token {i}");
        }
    }
}

#[test]
fn what_windows_do_not_use_goes_to_the_other_layers() {
    let all = [Some(33), None, Some(33), None];
    let cost = shape().cost(&all);
    let budgets = |plan: &Plan, prompt| -> Vec<usize> {
        let resolved = plan.resolve(prompt, &cost).unwrap();
        let both = BOTH.map(|phase| resolved.layers.iter().map(move |layer| layer.budget(phase)));
        let [prefill, decode] = both.map(|all| all.map(Option::unwrap).collect::<Vec<_>>());
        assert_eq!(prefill, decode);
        prefill
    };
    let plan = |budget| uniform(4, "tova", budget, &BOTH);
    assert_eq!(
        budgets(&plan(Budget::Tokens(100)), 1000),
        [32, 168, 32, 168]
    );
    assert_eq!(budgets(&plan(Budget::Tokens(20)), 1000), [20; 4]);
    // A quarter of 2 · 32 + 2 · 1000.
    assert_eq!(
        budgets(&plan(Budget::Ratio(0.25)), 1000),
        [32, 226, 32, 226]
    );
    assert_eq!(
        budgets(&plan(Budget::Ratio(1.0)), 1000),
        [32, 1000, 32, 1000]
    );
    assert_eq!(budgets(&plan(Budget::Total(403)), 1000), [32, 170, 32, 169]);
    let mut stated = plan(Budget::Total(400));
    for (layer, tokens) in stated.layers.iter_mut().zip([132, 68, 100, 100]) {
        for phase in BOTH {
            let rule = layer.rule(phase).clone();
            *layer.rule_mut(phase) = rule.with_share(Share::Entries(tokens));
        }
    }
    // 168 more in proportion to 68 and 100.
    assert_eq!(budgets(&stated, 1000), [32, 136, 32, 200]);
    for online in Allocators::default().iter() {
        if online.basis().is_online() {
            let mut plan = plan(Budget::Tokens(100));
            plan.online = Some(online.clone());
            let found = budgets(&plan, 1000);
            assert_eq!(
                found.iter().sum::<usize>(),
                400,
                "{}: {found:?}",
                online.name()
            );
            assert!(
                found[0] <= 32 && found[2] <= 32,
                "{}: {found:?}",
                online.name()
            );
        }
    }
    // Only layers with windows: what they cannot hold is nobody's.
    let cost = shape().cost(&[Some(33); 4]);
    let resolved = plan(Budget::Tokens(100)).resolve(1000, &cost).unwrap();
    assert_eq!(resolved.total(Phase::Decode), 4 * 32);
    // A layer that keeps everything is charged what its window holds.
    let mut kept = plan(Budget::Tokens(100));
    for layer in [0, 2] {
        for phase in BOTH {
            *kept.layers[layer].rule_mut(phase) = Rule::Keep;
        }
    }
    let cost = shape().cost(&all);
    let resolved = kept.resolve(1000, &cost).unwrap();
    assert_eq!(resolved.total(Phase::Prefill), 400 - 64);
}

#[test]
fn estimates_are_exact_with_windows() {
    let layers = [Some(20), None, Some(60)];
    let uniform = |budget, phases| uniform(3, "tova", budget, phases);
    let mut mixed = uniform(Budget::Tokens(30), &BOTH);
    mixed.layers[0].prefill = Rule::Keep;
    mixed.allow_full_extra = true;
    let plans = [
        Plan::full(3),
        uniform(Budget::Tokens(12), &BOTH),
        uniform(Budget::Tokens(40), &BOTH),
        uniform(Budget::Tokens(40), &BOTH[..1]),
        uniform(Budget::Tokens(12), &BOTH[1..]),
        uniform(Budget::Tokens(500), &BOTH),
        uniform(Budget::Ratio(0.4), &BOTH),
        mixed,
    ];
    let windows = windows(&layers);
    for plan in &plans {
        for (prompt, chunk) in [
            (8, 8),
            (20, 20),
            (45, 16),
            (100, 100),
            (PIECE + 40, 200),
            (2 * PIECE + 70, 2000),
            (2 * PIECE + 70, 100),
        ] {
            for steps in [0, 1, 40] {
                let data = data(3, prompt + steps, 1);
                let mut cache = with_windows(plan.clone(), &windows);
                prefill(&mut cache, &data, 0..prompt, chunk).unwrap();
                decode(&mut cache, &data, prompt..prompt + steps).unwrap();
                let wanted = cache.report().unwrap();
                let cost = shape().cost(&layers);
                let found = plan.estimate(prompt, steps, &cost).unwrap();
                let what = format!("{prompt} in {chunk} + {steps}\n{}", written(plan));
                let kept: Vec<f64> = found.kept.iter().map(|&n| n as f64).collect();
                assert_eq!(kept, wanted.kept, "{what}");
                assert_eq!(found.steady_bytes, wanted.bytes, "{what}");
                assert_eq!(found.peak_bytes, wanted.peak_bytes, "{what}");
                if prompt > 100 {
                    // However long the prompt is.
                    let most = (59 + PIECE + 60) * ENTRY;
                    let beside = prompt + 100;
                    assert!(wanted.peak_bytes <= most + 3 * beside * ENTRY, "{what}");
                }
            }
        }
    }
}

#[test]
fn one_prompt_for_many_plans_is_that_of_each_alone() {
    let windows = windows(&[Some(24), None]);
    let mut plans: Vec<Plan> = ["h2o", "scissorhands", "d2o", "snapkv", "tova"]
        .into_iter()
        .map(|name| uniform(2, name, Budget::Tokens(36), &BOTH))
        .collect();
    plans.push(Plan::full(2));
    for online in Allocators::default().iter() {
        if online.online().is_some() {
            let mut plan = uniform(2, "tova", Budget::Tokens(36), &BOTH);
            plan.online = Some(online.clone());
            plans.push(plan);
        }
    }
    let device = Device::flex();
    for prompt in [45, PIECE + 80] {
        let data = data(2, prompt + 30, 5);
        let mut shared = SharedPrefill::new(plans.clone(), shape(), &device).unwrap();
        shared.set_facts(&windows.in_facts(facts(2, &device)));
        let (shared, outputs) = prefill(shared, &data, 0..prompt, 100).unwrap();
        for (mut fork, plan) in shared.into_caches().into_iter().zip(&plans) {
            let mut alone = with_windows(plan.clone(), &windows);
            let (_, own) = prefill(&mut alone, &data, 0..prompt, 100).unwrap();
            assert!(max_difference(&outputs, &own) < 1e-5);
            let tokens = prompt..prompt + 30;
            let found = decode(&mut fork, &data, tokens.clone()).unwrap();
            let wanted = decode(&mut alone, &data, tokens).unwrap();
            assert_eq!(found, wanted, "{}", written(plan));
            for layer in 0..2 {
                assert_eq!(kept(&fork, layer).unwrap(), kept(&alone, layer).unwrap());
            }
            let bytes = |cache: &KvCache| cache.layers()[0].kv_bytes();
            assert_eq!(bytes(&fork), bytes(&alone), "{}", written(plan));
            let [fork, alone] = [fork, alone].map(|mut cache| cache.report().unwrap());
            assert_eq!(fork.kept, alone.kept);
            assert_eq!(fork.full_bytes, alone.full_bytes);
        }
    }
}

#[test]
fn what_is_taken_in_without_eviction_still_leaves_the_window() {
    let plan = uniform(2, "tova", Budget::Tokens(12), &BOTH);
    let mut cache = with_windows(plan, &windows(&[Some(30), None]));
    let data = data(2, 200, 1);
    prefill(&mut cache, &data, 0..45, 45).unwrap();
    let mut prompt = Prompt::new(cache.untrimmed(), 100).unwrap();
    for (layer, own) in data.iter().enumerate() {
        let [q, k, v] = own.part(45..145, &Device::flex());
        prompt.attend(layer, q, k, v).unwrap();
        prompt.end_layer(layer).unwrap();
    }
    prompt.finish().unwrap();
    assert_eq!((length(&cache, 0), length(&cache, 1)), (29, 112));
    decode(&mut cache, &data, 145..146).unwrap();
    assert_eq!((length(&cache, 0), length(&cache, 1)), (12, 12));
}

/// Sinks and protected positions are kept while they are in the window, and take no place of the budget afterwards.
#[test]
fn protection_ends_with_the_window() {
    let plan = uniform(1, "streaming-llm", Budget::Tokens(12), &BOTH);
    let mut cache = with_windows(plan.clone(), &windows(&[Some(30)]));
    cache.protect(Spans::new([0..10, 20..24]));
    let data = data(1, 90, 1);
    prefill(&mut cache, &data, 0..40, 40).unwrap();
    // 20 to 23 and the latest; of the first ten nothing is in the window.
    let first = &kept(&cache, 0).unwrap()[0];
    assert_eq!(first[..4], [20, 21, 22, 23]);
    assert_eq!(first[4..], Vec::from_iter(32..40));
    decode(&mut cache, &data, 40..60).unwrap();
    assert_eq!(kept(&cache, 0).unwrap()[0], Vec::from_iter(48..60));
    // In a shorter prompt they are charged, and do not fit.
    let mut short = with_windows(plan, &windows(&[Some(30)]));
    short.protect(Spans::new([0..10, 20..24]));
    let message = short.prompt(26).unwrap_err().to_string();
    assert!(
        message.contains("12") && message.contains("at least"),
        "{message}"
    );
}

#[test]
fn a_policy_that_protects_more_than_the_window_needs_no_more() {
    let plan = Plan::uniform(
        1,
        policy("snapkv", "{window: 32}"),
        Budget::Tokens(40),
        &BOTH,
    );
    let mut cache = with_windows(plan, &windows(&[Some(16)]));
    let data = data(1, 70, 1);
    prefill(&mut cache, &data, 0..60, 60).unwrap();
    decode(&mut cache, &data, 60..70).unwrap();
    assert_eq!(kept(&cache, 0).unwrap()[0], Vec::from_iter(55..70));
}

#[test]
fn facts_out_of_range_are_refused_by_name() {
    let refused = |windows: &Windows| {
        let mut cache = with_windows(Plan::full(1), windows);
        cache.prompt(5).unwrap_err().to_string()
    };
    let message = refused(&windows(&[Some(0)]));
    assert!(message.contains("window of layer 0"), "{message}");
    for softcap in [0.0, f64::NAN, -1.0] {
        let message = refused(&Windows {
            layers: Vec::new(),
            softcap: Some(softcap),
        });
        assert!(message.contains("soft-cap"), "{message}");
    }
}

/// Rows whose first tokens are at other positions: windows count back from each row's own token.
#[test]
fn windows_do_not_depend_on_where_a_row_starts() {
    let windows = windows(&[Some(20)]);
    let data: Vec<Inputs> = data(1, 60, 1);
    let run = |start: usize| {
        let plan = uniform(1, "h2o", Budget::Tokens(12), &BOTH);
        let mut cache = with_windows(plan, &windows).starting_at(&[start]).unwrap();
        prefill(&mut cache, &data, 0..45, 45).unwrap();
        let outputs = decode(&mut cache, &data, 45..60).unwrap();
        (outputs, kept(&cache, 0).unwrap())
    };
    assert_eq!(run(0), run(1000));
}
