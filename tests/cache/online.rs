//! Budgets by allocators that see the layers first.

use super::{BOTH, decode, length};
use crate::common::{each_policy, policy, repeat, uniform};
use burn::tensor::Device;
use polykv::allocate::Allocators;
use polykv::plan::Share;
use polykv::policy::HeadBudgets;
use polykv::testing::{HEADS, Inputs, KV_HEADS, cache, kept};
use polykv::{Allocator, Budget, ErrorKind, KvCache, Phase, Plan, Policy, Rule, Spans};
use std::sync::Arc;

const LAYERS: usize = 5;
const PROMPT: usize = 60;
const AVERAGE: usize = 14;

fn allocator(name: &str) -> Arc<dyn Allocator> {
    Allocators::default().get(name).unwrap()
}

/// Allocators that see the layers first.
fn seeing() -> Vec<Arc<dyn Allocator>> {
    let allocators = Allocators::default();
    let seeing = allocators.iter().filter(|own| own.online().is_some());
    seeing.cloned().collect()
}

fn plan(policy: Arc<dyn Policy>, online: Option<Arc<dyn Allocator>>, phases: &[Phase]) -> Plan {
    let mut plan = Plan::uniform(LAYERS, policy, Budget::Tokens(AVERAGE), phases);
    plan.online = online;
    plan
}

/// Later layers have ever larger queries and keys, so that their attention is sharper.
fn data(steps: usize) -> Vec<Inputs> {
    let grown = |layer: usize| {
        let mut own = Inputs::seeded(PROMPT + steps, 9, layer);
        let factor = 0.5 + 0.3 * layer as f64;
        let numbers = own.q.iter_mut().flatten().flatten();
        numbers.for_each(|number| *number *= factor);
        own
    };
    (0..LAYERS).map(grown).collect()
}

fn lengths(cache: &KvCache) -> Vec<usize> {
    (0..LAYERS).map(|layer| length(cache, layer)).collect()
}

/// Runs the prompt; `after` sees the cache after each layer.
fn prefill(cache: &mut KvCache, data: &[Inputs], after: &mut dyn FnMut(usize, &KvCache)) {
    let mut prompt = cache.prompt(PROMPT).unwrap();
    for (layer, own) in data.iter().enumerate() {
        let [q, k, v] = own.part(0..PROMPT, &Device::flex());
        prompt.attend(layer, q, k, v).unwrap();
        let parts = own.part(0..PROMPT, &Device::flex());
        repeat(&mut prompt, layer, parts).unwrap();
        prompt.end_layer(layer).unwrap();
        after(layer, prompt.cache());
    }
    prompt.finish().unwrap();
}

#[test]
fn cutting_in_steps_equals_one_cut_at_the_budgets_found() {
    let data = data(0);
    let mut uneven = 0;
    for online in seeing() {
        let allocator = online.name();
        for policy in each_policy()
            .into_iter()
            .filter(|own| own.can_cut_in_steps())
        {
            let name = policy.name().to_string();
            let own_plan = plan(policy.clone(), Some(online.clone()), &BOTH);
            let mut own = cache(own_plan, &Device::flex()).unwrap();
            prefill(&mut own, &data, &mut |layer, cache| {
                let held: usize = lengths(cache).iter().sum();
                let total = match allocator {
                    "cake" => LAYERS * AVERAGE,
                    _ if layer + 1 < LAYERS => (layer + 1) * PROMPT,
                    _ => LAYERS * AVERAGE,
                };
                assert!(
                    held <= total,
                    "{allocator}, {name}: {held} after layer {layer}"
                );
            });
            let budgets = lengths(&own);
            let what = format!("{allocator}, {name}: {budgets:?}");
            assert_eq!(budgets.iter().sum::<usize>(), LAYERS * AVERAGE, "{what}");
            uneven += usize::from(budgets.iter().any(|&budget| budget != AVERAGE));

            let mut fixed = plan(policy, None, &BOTH);
            for (layer, &budget) in fixed.layers.iter_mut().zip(&budgets) {
                for phase in BOTH {
                    let rule = layer.rule(phase).clone();
                    *layer.rule_mut(phase) = rule.with_share(Share::Entries(budget));
                }
            }
            let mut alone = cache(fixed, &Device::flex()).unwrap();
            prefill(&mut alone, &data, &mut |_, _| ());
            for layer in 0..LAYERS {
                assert_eq!(
                    kept(&own, layer).unwrap(),
                    kept(&alone, layer).unwrap(),
                    "{what}, layer {layer}"
                );
            }
        }
    }
    assert!(uneven > 10, "{uneven}");
}

/// Attention of query `i` of a head over positions `0..=i`, in f64.
fn attention(own: &Inputs, head: usize, i: usize) -> Vec<f64> {
    let q = &own.q[i][head];
    let dots = own.k[..=i].iter().map(|key| {
        let dot: f64 = q
            .iter()
            .zip(&key[head * KV_HEADS / HEADS])
            .map(|(a, b)| a * b)
            .sum();
        (dot / (q.len() as f64).sqrt()).exp()
    });
    let weights: Vec<f64> = dots.collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

#[test]
fn cake_splits_by_entropy_times_variance() {
    const WINDOW: usize = 32;
    let data = data(0);
    let claim = |own: &Inputs| {
        let old = PROMPT - WINDOW;
        let (mut entropy, mut variance) = (0.0, 0.0);
        for head in 0..HEADS {
            let rows: Vec<Vec<f64>> = (old..PROMPT).map(|i| attention(own, head, i)).collect();
            for at in 0..old {
                let column: Vec<f64> = rows.iter().map(|row| row[at]).collect();
                let mean = column.iter().sum::<f64>() / WINDOW as f64;
                entropy -= column.iter().map(|a| a * a.ln()).sum::<f64>();
                let squares = column.iter().map(|a| (a - mean).powi(2)).sum::<f64>();
                variance += squares / (WINDOW - 1) as f64;
            }
        }
        entropy * variance
    };
    let claims: Vec<f64> = data.iter().map(claim).collect();
    let plan = plan(policy("knorm", "{}"), Some(allocator("cake")), &BOTH);
    let mut own = cache(plan, &Device::flex()).unwrap();
    prefill(&mut own, &data, &mut |_, _| ());
    // Without anything protected, one entry each comes first.
    let rest = (LAYERS * AVERAGE - LAYERS) as f64;
    let sum: f64 = claims.iter().sum();
    for (found, claim) in lengths(&own).into_iter().zip(&claims) {
        let wanted = 1.0 + rest * claim / sum;
        assert!(
            (found as f64 - wanted).abs() <= 1.0,
            "{found}, not {wanted}"
        );
    }
}

#[test]
fn dynamic_splits_by_a_contest_of_all_entries() {
    let data = data(0);
    // Norms of the keys, on a scale of its own in each layer, all KV heads together.
    let mut all: Vec<(f64, usize)> = Vec::new();
    for (layer, own) in data.iter().enumerate() {
        let norm = |key: &Vec<f64>| -key.iter().map(|x| x * x).sum::<f64>().sqrt();
        let scores: Vec<f64> = own.k[..PROMPT].iter().flatten().map(norm).collect();
        let lowest = scores.iter().copied().fold(f64::INFINITY, f64::min);
        let sum: f64 = scores.iter().map(|score| score - lowest).sum();
        all.extend(scores.iter().map(|score| ((score - lowest) / sum, layer)));
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut wins = [0; LAYERS];
    all[..LAYERS * AVERAGE * KV_HEADS]
        .iter()
        .for_each(|&(_, layer)| wins[layer] += 1);
    let plan = plan(policy("knorm", "{}"), Some(allocator("dynamic")), &BOTH);
    let mut own = cache(plan, &Device::flex()).unwrap();
    prefill(&mut own, &data, &mut |_, _| ());
    for (found, wins) in lengths(&own).into_iter().zip(wins) {
        let wanted = wins as f64 / KV_HEADS as f64;
        assert!(
            (found as f64 - wanted).abs() <= 1.0,
            "{found}, not {wanted}"
        );
    }
}

#[test]
fn decode_and_later_prompts_stay_within_the_total() {
    let steps = 40;
    let data = data(steps);
    for online in seeing() {
        for phases in [&BOTH[..1], &BOTH[1..], &BOTH[..]] {
            let what = format!("{}, {phases:?}", online.name());
            let plan = plan(policy("tova", "{}"), Some(online.clone()), phases);
            let mut own = cache(plan, &Device::flex()).unwrap();
            prefill(&mut own, &data, &mut |_, _| ());
            decode(&mut own, &data, PROMPT..PROMPT + steps / 2).unwrap();
            let held: usize = lengths(&own).iter().sum();
            let grown = if phases.contains(&Phase::Decode) {
                0
            } else {
                LAYERS * steps / 2
            };
            assert_eq!(held, LAYERS * AVERAGE + grown, "{what}");
            // Another prompt on the same cache.
            let range = PROMPT + steps / 2..PROMPT + steps;
            let (own, _) = super::prefill(own, &data, range, PROMPT).unwrap();
            let held: usize = lengths(&own).iter().sum();
            let wanted = match phases.contains(&Phase::Prefill) {
                true => LAYERS * AVERAGE,
                false => LAYERS * (AVERAGE + steps / 2),
            };
            assert_eq!(held, wanted, "{what}");
        }
    }
}

#[test]
fn policies_that_cannot_be_cut_in_steps_are_refused() {
    let cannot: Vec<_> = each_policy()
        .into_iter()
        .filter(|own| !own.can_cut_in_steps())
        .collect();
    assert!(cannot.len() >= 4);
    for policy in cannot {
        for online in seeing() {
            let error = plan(policy.clone(), Some(online.clone()), &BOTH).check();
            let error = error.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Plan);
            let wanted = format!(
                "online is {} beside policy {}",
                online.name(),
                policy.name()
            );
            assert!(error.to_string().contains(&wanted), "{error}");
            // In the decode it does not matter, unless heads have budgets of their own.
            let decode = plan(policy.clone(), Some(online), &BOTH[1..]).check();
            assert_eq!(decode.is_ok(), policy.heads() == HeadBudgets::Even);
        }
        plan(policy, Some(allocator("pyramid")), &BOTH)
            .check()
            .unwrap();
    }
    let mut wrong = uniform(2, "tova", Budget::Tokens(4), &BOTH);
    wrong.online = Some(allocator("calibrated"));
    let error = wrong.check().unwrap_err().to_string();
    assert!(error.contains("online is 'calibrated'"), "{error}");
}

/// A layer that claims little still has what its policies protect in each phase, beside what the caller protects. What the policy
/// protects may grow with the budget, and the two phases may protect different numbers of entries.
#[test]
fn every_phase_has_what_it_protects() {
    let data = data(24);
    for online in seeing() {
        for (prefill_by, decode_by) in [("tova", "snapkv"), ("h2o", "h2o"), ("full", "h2o")] {
            let params = |name| match name {
                "snapkv" => "{window: 5}",
                _ => "{}",
            };
            let mut plan = plan(policy("h2o", "{}"), Some(online.clone()), &BOTH);
            plan.allow_full_extra = true;
            for (index, layer) in plan.layers.iter_mut().enumerate() {
                layer.decode = Rule::evict(policy(decode_by, params(decode_by)));
                layer.prefill = match (prefill_by, index) {
                    // One layer evicts in one phase only, so that the phases do not have the same layers.
                    ("full", 0) | ("full", 1) => Rule::Keep,
                    ("full", _) => Rule::evict(policy("tova", "{}")),
                    _ => Rule::evict(policy(prefill_by, params(prefill_by))),
                };
            }
            let mut cache = cache(plan, &Device::flex()).unwrap();
            cache.protect(Spans::new([3..6, PROMPT + 4..PROMPT + 7]));
            prefill(&mut cache, &data, &mut |_, _| ());
            decode(&mut cache, &data, PROMPT..PROMPT + 24).unwrap_or_else(|error| {
                panic!("{prefill_by}, {decode_by} under {}: {error}", online.name())
            });
            for layer in 0..LAYERS {
                for head in kept(&cache, layer).unwrap() {
                    let spans = [3, 4, 5, PROMPT + 4, PROMPT + 5, PROMPT + 6];
                    assert!(spans.iter().all(|position| head.contains(position)));
                }
            }
        }
    }
}
