//! Caches in arenas, in plain tensor operations on the CPU, against each by itself.

use super::*;
use crate::phase::Phase;
use crate::policy::{Params, Policies};
use crate::{Budget, LayerFacts, ModelFacts, Plan, Spans};
use burn::tensor::{Device, TensorData};
use proptest::prelude::*;

const SHAPE: LayerShape = LayerShape {
    batch: 1,
    heads: 4,
    kv_heads: 2,
    head_dim: 4,
    dtype: DType::F32,
};

/// Numbers of one token or of several, the same for the same seed.
fn numbers(heads: usize, tokens: usize, seed: u64) -> Tensor<4> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let values: Vec<f32> = (0..heads * tokens * SHAPE.head_dim)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        })
        .collect();
    let dims = [1, heads, tokens, SHAPE.head_dim];
    Tensor::from_data(TensorData::new(values, dims), &Device::flex())
}

fn parts(tokens: usize, seed: u64) -> [Tensor<4>; 3] {
    let heads = [SHAPE.heads, SHAPE.kv_heads, SHAPE.kv_heads];
    let mut seed = seed * 4;
    heads.map(|heads| {
        seed += 1;
        numbers(heads, tokens, seed)
    })
}

/// A plan of one layer, by its number.
fn plan(number: usize) -> Plan {
    let policy = |name: &str, params: &str| {
        let params = Params::from_yaml(params).unwrap();
        Policies::default().build(name, &params).unwrap()
    };
    let budget = Budget::Tokens(9);
    let uniform =
        |name: &str, params: &str| Plan::uniform(1, policy(name, params), budget, &Phase::BOTH);
    let every = |tokens: usize, mut plan: Plan| {
        plan.every = tokens;
        plan
    };
    match number % 11 {
        0 | 1 => Plan::full(1),
        2 => uniform("streaming-llm", "{sinks: 2}"),
        3 => uniform("tova", "{}"),
        4 => uniform("h2o", "{}"),
        5 => uniform("h2o", "{normalize: true, recent_fraction: 0.0}"),
        6 => Plan::uniform(1, policy("h2o", "{}"), budget, &[Phase::Prefill]),
        7 => every(4, uniform("h2o", "{}")),
        8 => every(3, uniform("snapkv", "{window: 2}")),
        9 => every(5, uniform("tova", "{}")),
        _ => {
            let mut plan = uniform("h2o", "{}");
            plan.layers[0].heads = Some([3.0, 1.0].into());
            plan
        }
    }
}

/// A cache that shares slots, and the same by itself.
#[derive(Clone)]
struct Pair {
    shared: KvCache,
    alone: KvCache,
    seed: u64,
}

impl Pair {
    fn new(number: usize, tokens: usize, seed: u64) -> Self {
        let window = (number % 11 == 1).then_some(7);
        Self::under(plan(number), window, tokens, seed)
    }

    fn under(plan: Plan, window: Option<usize>, tokens: usize, seed: u64) -> Self {
        let mut cache = KvCache::new(plan, SHAPE, &Device::flex()).unwrap();
        let facts = LayerFacts {
            window,
            ..LayerFacts::default()
        };
        cache.set_facts(&ModelFacts {
            layers: vec![facts],
            ..ModelFacts::default()
        });
        if seed % 3000 == 1000 {
            cache.protect(Spans::prefix(1));
        }
        let mut prompt = cache.prompt(tokens).unwrap();
        let [q, k, v] = parts(tokens, seed);
        prompt.attend(0, q, k, v).unwrap();
        prompt.end_layer(0).unwrap();
        prompt.finish().unwrap();
        Self {
            alone: cache.clone(),
            shared: cache,
            seed,
        }
    }

    fn next(&mut self) -> [Tensor<4>; 3] {
        self.seed += 1;
        parts(1, self.seed)
    }
}

fn close(found: Tensor<4>, wanted: Tensor<4>) {
    let most = (found - wanted).abs().max().into_scalar::<f32>();
    assert!(most < 1e-5, "{most}");
}

fn step(pairs: &mut [Pair]) {
    let tokens: Vec<[Tensor<4>; 3]> = pairs.iter_mut().map(Pair::next).collect();
    let of = |part: usize| Tensor::cat(tokens.iter().map(|own| own[part].clone()).collect(), 0);
    let all = [of(0), of(1), of(2)];
    let mut caches: Vec<&mut KvCache> = pairs.iter_mut().map(|pair| &mut pair.shared).collect();
    let (output, errors) = in_arenas(&mut caches, 0, all);
    assert!(errors.iter().all(Option::is_none), "{errors:?}");
    for (row, (pair, [q, k, v])) in pairs.iter_mut().zip(tokens).enumerate() {
        let wanted = pair.alone.decode_alone(0, q, k, v).unwrap();
        close(output.clone().narrow(0, row, 1), wanted);
    }
}

/// The entries in slot order and what the report says; slots of both are the same.
fn same(pair: &mut Pair) {
    let positions = |cache: &KvCache| -> Vec<i64> {
        let positions = cache.layers[0].positions().unwrap();
        positions.try_into_vec_as().unwrap()
    };
    assert_eq!(positions(&pair.shared), positions(&pair.alone));
    let [shared, alone] = [&mut pair.shared, &mut pair.alone].map(|own| own.report().unwrap());
    assert_eq!(shared.kept_heads, alone.kept_heads);
    assert_eq!(shared.full_bytes, alone.full_bytes);
}

fn slots_of(pair: &Pair) -> Option<usize> {
    let arena = pair.shared.layers[0].arena()?;
    Some(arena.lock().unwrap().slots())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn sequences_come_and_go(
        operations in proptest::collection::vec((0usize..9, any::<prop::sample::Index>(), 1usize..30), 1..120)
    ) {
        let mut pairs: Vec<Pair> = Vec::new();
        for (seed, (operation, pick, size)) in operations.into_iter().enumerate() {
            match operation {
                0 | 1 if pairs.len() < 8 => {
                    // Some leave as much as copies share.
                    let more = if size % 11 == 0 { 52 } else { 3 };
                    let pair = Pair::new(size, size + more, 1000 * seed as u64);
                    if operation == 0 {
                        let mut copy = pair.clone();
                        copy.seed += 500;
                        pairs.push(copy);
                    }
                    pairs.push(pair);
                }
                2 if !pairs.is_empty() => drop(pairs.swap_remove(pick.index(pairs.len()))),
                // A copy goes on beside what it is of.
                3 if !pairs.is_empty() && pairs.len() < 9 => {
                    let mut copy = pairs[pick.index(pairs.len())].clone();
                    copy.seed += 500;
                    pairs.push(copy);
                }
                // Alone, or another prompt.
                4 if !pairs.is_empty() => {
                    let index = pick.index(pairs.len());
                    let pair = &mut pairs[index];
                    let [q, k, v] = pair.next();
                    let found = pair.shared.decode_alone(0, q.clone(), k.clone(), v.clone()).unwrap();
                    close(found, pair.alone.decode_alone(0, q, k, v).unwrap());
                }
                5 if !pairs.is_empty() => {
                    let index = pick.index(pairs.len());
                    let pair = &mut pairs[index];
                    pair.seed += 1;
                    for cache in [&mut pair.shared, &mut pair.alone] {
                        let [q, k, v] = parts(size, pair.seed);
                        let mut prompt = cache.prompt(size).unwrap();
                        prompt.attend(0, q, k, v).unwrap();
                        prompt.end_layer(0).unwrap();
                        prompt.finish().unwrap();
                    }
                }
                _ if !pairs.is_empty() => {
                    let first = pick.index(pairs.len());
                    step(&mut pairs[first..]);
                    step(&mut pairs);
                }
                _ => {}
            }
        }
        pairs.iter_mut().for_each(same);
    }
}

/// Slots are those of the sequences that are there: they do not grow with those that have gone.
#[test]
fn slots_stay_as_many_while_sequences_come_and_go() {
    let mut pairs: Vec<Pair> = (2..6)
        .map(|number| Pair::new(number, 20, number as u64))
        .collect();
    step(&mut pairs);
    let before = slots_of(&pairs[0]).unwrap();
    // A head holds 9 entries and the newest.
    assert_eq!(before, 4 * 2 * 10);
    for round in 0..400 {
        let number = 2 + round % 4;
        pairs[round % 4] = Pair::new(number, 12 + round % 20, 7 * round as u64);
        step(&mut pairs);
    }
    let after = slots_of(&pairs[0]).unwrap();
    assert!(after <= before + before / 4 + 20, "{after} after {before}");
    pairs.iter_mut().for_each(same);
}

/// Sequences of very different lengths under a budget take as much memory side by side as each by itself, but for the room of one
/// that is still shorter.
#[test]
fn eight_sequences_take_what_each_takes() {
    let tova = Policies::default()
        .build("tova", &Params::default())
        .unwrap();
    let plan = Plan::uniform(1, tova, Budget::Tokens(256), &Phase::BOTH);
    let lengths = [100, 300, 700, 1_500, 2_500, 4_000, 6_000, 8_000];
    let mut pairs: Vec<Pair> = lengths
        .iter()
        .map(|&tokens| Pair::under(plan.clone(), None, tokens, tokens as u64))
        .collect();
    let bytes = |pairs: &[Pair]| {
        let held = KvCache::holdings(pairs.iter().map(|pair| &pair.shared));
        let alone: usize = pairs.iter().map(|pair| pair.alone.kv_bytes()).sum();
        (held, alone)
    };
    (0..10).for_each(|_| step(&mut pairs));
    let (held, alone) = bytes(&pairs);
    assert!(
        100 * held.bytes <= 103 * alone,
        "{held:?}, alone {alone} bytes"
    );
    // The range that the shortest has left is free for others.
    (0..160).for_each(|_| step(&mut pairs));
    let (held, alone) = bytes(&pairs);
    assert_eq!(held.bytes - held.free_bytes, alone, "{held:?}");
    assert!(held.free_run_bytes <= held.free_bytes);
    pairs.iter_mut().for_each(same);
}

/// What copies share lies there once, however many there are, and is free when the last has gone.
#[test]
fn copies_share_slots() {
    let first = Pair::new(0, 100, 1);
    let mut pairs = vec![first.clone(), first.clone(), first];
    for (index, pair) in pairs.iter_mut().enumerate() {
        pair.seed += 100 * index as u64;
    }
    let bytes = |slots: usize| slots * 2 * SHAPE.head_dim * 4;
    step(&mut pairs);
    let held = |pairs: &[Pair]| KvCache::holdings(pairs.iter().map(|pair| &pair.shared));
    // Room for 64 more in each of two heads.
    let now = held(&pairs);
    assert_eq!(now.shared_bytes, bytes(2 * 100));
    assert_eq!(now.bytes, bytes(2 * (100 + 3 * 64)));
    assert_eq!(now.free_bytes, 0);
    let one = pairs[0].shared.kv_bytes();
    assert_eq!(one, bytes(2 * 164));
    // Their own ranges move, what they share does not.
    (0..70).for_each(|_| step(&mut pairs));
    let now = held(&pairs);
    assert_eq!(now.shared_bytes, bytes(2 * 100));
    assert_eq!(now.bytes - now.free_bytes, bytes(2 * (100 + 3 * 129)));
    pairs.iter_mut().for_each(same);
    let arena = pairs[0].shared.layers[0].arena().unwrap().clone();
    pairs.truncate(1);
    (0..3).for_each(|_| step(&mut pairs));
    let mut copy = pairs[0].clone();
    copy.seed += 9;
    pairs.push(copy);
    (0..3).for_each(|_| step(&mut pairs));
    pairs.iter_mut().for_each(same);
    drop(pairs);
    let arena = arena.lock().unwrap();
    assert_eq!(arena.free_slots(), arena.slots());
}

#[test]
fn rows_that_do_not_fit_are_refused_alone() {
    let mut pairs: Vec<Pair> = (3..5)
        .map(|number| Pair::new(number, 20, number as u64))
        .collect();
    let mut empty = KvCache::new(plan(0), SHAPE, &Device::flex()).unwrap();
    let all = parts(1, 1).map(|part| Tensor::cat(vec![part; 3], 0));
    let mut caches: Vec<&mut KvCache> = pairs.iter_mut().map(|pair| &mut pair.shared).collect();
    caches.insert(1, &mut empty);
    let (output, errors) = in_arenas(&mut caches, 0, all.clone());
    let failed: Vec<bool> = errors.iter().map(Option::is_some).collect();
    assert_eq!(failed, [false, true, false]);
    assert_eq!(output.dims(), [3, 4, 1, 4]);
    let refused = KvCache::decode_together(&mut caches[..2], 0, all).unwrap_err();
    assert!(
        refused.to_string().contains("rows is 3; allowed: 2"),
        "{refused}"
    );
}
