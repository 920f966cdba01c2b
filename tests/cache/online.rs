//! Budgets by allocators that see the layers first.

use crate::reference::harness::{Case, Inputs, cache, inputs, kept, small, tensor};
use crate::reference::{HEADS, KV_HEADS, Token};
use burn::tensor::Device;
use polykv::policy::{self, Params};
use polykv::{Budget, KvCache, Phase, Plan, Rule};

const LAYERS: usize = 5;
const PROMPT: usize = 60;
const AVERAGE: usize = 14;
const BOTH: [Phase; 2] = [Phase::Prefill, Phase::Decode];

fn plan(policy: &str, online: Option<&str>, phases: &[Phase]) -> Plan {
    let budget = Budget::Tokens(AVERAGE);
    let plan = Plan::uniform(LAYERS, policy, small(policy), budget, phases);
    Plan {
        online: online.map(String::from),
        ..plan
    }
}

/// Later layers have ever larger queries and keys, so that their attention is sharper.
fn data(steps: usize) -> Vec<Inputs> {
    let case = Case {
        plan: Plan::full(LAYERS),
        prompt: PROMPT,
        chunk: PROMPT,
        steps,
        seed: 9,
    };
    let grown = |layer: usize| {
        let mut own = inputs(&case, layer);
        let factor = 0.5 + 0.3 * layer as f64;
        let numbers = own.q.iter_mut().flatten().flatten();
        numbers.for_each(|number| *number *= factor);
        own
    };
    (0..LAYERS).map(grown).collect()
}

fn lengths(cache: &KvCache) -> Vec<usize> {
    cache
        .layers()
        .iter()
        .map(|own| own.lengths().first().map_or(0, |row| row[0]))
        .collect()
}

/// Runs the prompt; `after` sees the cache after each layer.
fn prefill(cache: &mut KvCache, data: &[Inputs], after: &mut dyn FnMut(usize, &KvCache)) {
    cache.begin_prefill(PROMPT).unwrap();
    for (layer, own) in data.iter().enumerate() {
        let part = |all: &[Token]| tensor(&all[..PROMPT], &Device::flex());
        cache
            .prefill(layer, part(&own.q), part(&own.k), part(&own.v))
            .unwrap();
        cache.end_prefill(layer).unwrap();
        after(layer, cache);
    }
}

fn narrowing() -> impl Iterator<Item = &'static str> {
    let narrows = |name: &&str| {
        let policy = policy::build("test", name, &small(name)).unwrap();
        policy.evicts() && policy.narrows()
    };
    policy::names().into_iter().filter(narrows)
}

#[test]
fn cutting_in_steps_equals_one_cut_at_the_budgets_found() {
    let data = data(0);
    let mut uneven = 0;
    for online in ["cake", "dynamic"] {
        for name in narrowing() {
            let mut own = cache(plan(name, Some(online), &BOTH), &Device::flex());
            prefill(&mut own, &data, &mut |layer, cache| {
                let held: usize = lengths(cache).iter().sum();
                let total = match online {
                    "cake" => LAYERS * AVERAGE,
                    _ if layer + 1 < LAYERS => (layer + 1) * PROMPT,
                    _ => LAYERS * AVERAGE,
                };
                assert!(
                    held <= total,
                    "{online}, {name}: {held} after layer {layer}"
                );
            });
            let budgets = lengths(&own);
            let what = format!("{online}, {name}: {budgets:?}");
            assert_eq!(budgets.iter().sum::<usize>(), LAYERS * AVERAGE, "{what}");
            uneven += usize::from(budgets.iter().any(|&budget| budget != AVERAGE));

            let mut fixed = plan(name, None, &BOTH);
            for rules in [&mut fixed.prefill, &mut fixed.decode] {
                let rule = |(layer, &tokens): (usize, &usize)| Rule {
                    layers: polykv::plan::LayerRange {
                        first: layer,
                        last: layer,
                    },
                    tokens: Some(tokens),
                    ..rules[0].clone()
                };
                *rules = budgets.iter().enumerate().map(rule).collect();
            }
            let mut alone = cache(fixed, &Device::flex());
            prefill(&mut alone, &data, &mut |_, _| ());
            for layer in 0..LAYERS {
                assert_eq!(
                    kept(&own, layer),
                    kept(&alone, layer),
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
    let mut own = cache(plan("knorm", Some("cake"), &BOTH), &Device::flex());
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
    let mut own = cache(plan("knorm", Some("dynamic"), &BOTH), &Device::flex());
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
    for online in ["cake", "dynamic"] {
        for phases in [&BOTH[..1], &BOTH[1..], &BOTH[..]] {
            let mut own = cache(plan("tova", Some(online), phases), &Device::flex());
            prefill(&mut own, &data, &mut |_, _| ());
            for i in PROMPT..PROMPT + steps / 2 {
                for (layer, data) in data.iter().enumerate() {
                    let one = |all: &[Token]| tensor(&all[i..=i], &Device::flex());
                    own.decode(layer, one(&data.q), one(&data.k), one(&data.v))
                        .unwrap();
                }
            }
            own.check().unwrap();
            let held: usize = lengths(&own).iter().sum();
            let grown = if phases.contains(&Phase::Decode) {
                0
            } else {
                LAYERS * steps / 2
            };
            assert_eq!(held, LAYERS * AVERAGE + grown, "{online}, {phases:?}");
            // Another prompt on the same cache.
            let range = PROMPT + steps / 2..PROMPT + steps;
            own.begin_prefill(range.len()).unwrap();
            for (layer, data) in data.iter().enumerate() {
                let part = |all: &[Token]| tensor(&all[range.clone()], &Device::flex());
                own.prefill(layer, part(&data.q), part(&data.k), part(&data.v))
                    .unwrap();
                own.end_prefill(layer).unwrap();
            }
            let held: usize = lengths(&own).iter().sum();
            let wanted = match phases.contains(&Phase::Prefill) {
                true => LAYERS * AVERAGE,
                false => LAYERS * (AVERAGE + steps / 2),
            };
            assert_eq!(held, wanted, "{online}, {phases:?}");
        }
    }
}

#[test]
fn policies_that_cannot_be_cut_in_steps_are_refused() {
    for name in ["blend", "criticalkv", "d2o", "cam"] {
        let error = plan(name, Some("cake"), &BOTH)
            .validate("p.yaml")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("p.yaml: online is cake") && error.contains(name),
            "{error}"
        );
        plan(name, Some("pyramid"), &BOTH)
            .validate("p.yaml")
            .unwrap();
        plan(name, Some("cake"), &BOTH[1..])
            .validate("p.yaml")
            .unwrap();
    }
    let wrong = Plan {
        online: Some("calibrated".into()),
        ..Plan::uniform(2, "tova", Params::new(), Budget::Tokens(4), &BOTH)
    };
    let error = wrong.validate("p.yaml").unwrap_err().to_string();
    assert!(error.contains("pyramid, cake, dynamic"), "{error}");
}
