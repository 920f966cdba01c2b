//! What policies want to know, at every level, against plain tensors.

use super::*;
use crate::ops::Pool;
use burn::tensor::{Int, s};

fn integers(values: &[i64], case: &Case) -> Tensor<3, Int> {
    let dims = [
        case.batch,
        case.kv_heads,
        values.len() / case.batch / case.kv_heads,
    ];
    Tensor::from_data(TensorData::new(values.to_vec(), dims), &Device::flex())
}

/// Slots in another order for each head.
fn shuffled(case: &Case) -> Vec<i64> {
    let n = case.entries;
    let step = (1..).map(|i| 2 * n / 3 + i).find(|step| gcd(*step, n) == 1);
    let heads = 0..case.batch * case.kv_heads;
    heads
        .flat_map(|head| (0..n).map(move |i| ((i * step.unwrap() + head) % n) as i64))
        .collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[test]
fn window_scores_equal_the_oracle() {
    for case in &CASES {
        // More and fewer queries than a vector has lanes.
        for window in [1, 5, 16, 35, 70] {
            let window = window.min(case.tokens);
            let [q, k, _] = case.tensors();
            let q = q.narrow(2, case.tokens - window, window);
            let places = shuffled(case);
            let positions = integers(&places, case);
            let (sums, variances) =
                oracle::window_score(q.clone(), k.clone(), positions, case.entries);
            let (sums, variances) = (values(sums), values(variances));
            let (q, k) = (flex(&q), flex(&k));
            let (q, k) = (Heads::of(&q), Heads::of(&k));
            for level in Level::available() {
                let what = format!("{level:?}, window {window}, dim {}", case.dim);
                let found = window::score(level, &q, &k, &places, case.entries);
                assert_close(&found.0, &sums, 1e-5, &what);
                assert_close(&found.1, &variances, 1e-5, &what);
            }
        }
    }
}

#[test]
fn hits_equal_the_oracle() {
    for case in &CASES {
        let [q, k, v] = case.tensors();
        let group = case.heads / case.kv_heads;
        let bits = (usize::BITS - group.leading_zeros()) as usize;
        let count = case.tokens.min(24 / bits);
        for first in [0, (case.tokens - count) / 2, case.tokens - count] {
            let queries = first..first + count;
            // The oracle hands queries over in blocks: here those up to the last that is looked at are one.
            let upto = first + count;
            let hidden = case.entries - case.tokens;
            let seen = hidden + upto;
            let part = q.clone().narrow(2, first, count);
            let mut wanted = None;
            let mut look = |rows| {
                wanted = Some(oracle::attention_hits(rows, group, 0..count, bits));
                Ok(())
            };
            let keys = k.clone().slice(s![.., .., 0..seen, ..]);
            let vectors = v.clone().slice(s![.., .., 0..seen, ..]);
            oracle::attend(part, keys, vectors, Some(&mut look)).unwrap();
            let (digits, counts) = wanted.unwrap();
            let (digits, counts) = (values(digits), values(counts));
            let (q, k, v) = (flex(&q), flex(&k), flex(&v));
            let (q, k, v) = (Heads::of(&q), Heads::of(&k), Heads::of(&v));
            for level in Level::available() {
                let what = format!(
                    "{level:?}, {queries:?} of {}, dim {}",
                    case.tokens, case.dim
                );
                let (_, logs) = prefill::attend(level, &q, &k, &v);
                let found = hits::hits(level, &q, &k, &logs, first, count, bits);
                assert_eq!(found.0, digits, "{what}");
                assert_eq!(found.1, counts, "{what}");
            }
        }
    }
}

#[test]
fn pooling_equals_the_oracle() {
    for case in &CASES {
        let scores = random(case.batch, case.kv_heads, case.entries, 1);
        let dims = [case.batch, case.kv_heads, case.entries];
        let scores: Tensor<3> = scores.reshape(dims);
        let places = shuffled(case);
        let ranks = integers(&places, case);
        for (tail, width, mode) in [(0, 3, Pool::Max), (7, 5, Pool::Avg), (30, 31, Pool::Max)] {
            if tail >= case.entries {
                continue;
            }
            let wanted = oracle::pool::pool(scores.clone(), Some(&ranks), tail, width, mode);
            let (wanted, scores) = (values(wanted), values(scores.clone()));
            for level in Level::available() {
                let what = format!("{level:?}, {mode:?} of {width}");
                let n = case.entries;
                let found = order::pool(level, &scores, &places, n, tail, width, mode);
                assert_close(&found, &wanted, 1e-6, &what);
            }
        }
    }
}

#[test]
fn comparing_and_merging_keys_equals_the_oracle() {
    for case in CASES.iter().filter(|case| case.entries > 1) {
        let [_, k, _] = case.tensors();
        let anchor = random(case.batch, case.kv_heads, 1, case.dim);
        let norms = oracle::keys::norms(k.clone());
        let cosines = oracle::keys::cosines(k.clone(), norms.clone(), anchor.clone());
        let slots = shuffled(case);
        for going in [1, case.entries / 2, case.entries - 1] {
            let part = |range: std::ops::Range<usize>| -> Vec<i64> {
                let heads = slots.chunks(case.entries);
                heads
                    .flat_map(|slots| slots[range.clone()].to_vec())
                    .collect()
            };
            let (evicted, kept) = (part(0..going), part(going..case.entries));
            let (gone, stay) = (integers(&evicted, case), integers(&kept, case));
            let wanted =
                oracle::keys::closest(k.clone(), norms.clone(), gone.clone(), stay.clone());
            let parts = wanted.0.clone();
            let merged = oracle::keys::merge_into(k.clone(), gone, stay, wanted.1.clone(), parts);
            let places: Vec<i64> = wanted.1.try_into_vec_as().unwrap();
            let best = values(wanted.0);
            let (cosines, norms) = (values(cosines.clone()), values(norms.clone()));
            let (k, anchor) = (flex(&k), flex(&anchor));
            let (k, anchor) = (Heads::of(&k), Heads::of(&anchor));
            for level in Level::available() {
                let what = format!("{level:?}, {going} of {}, dim {}", case.entries, case.dim);
                assert_close(&keys::norms(level, &k), &norms, 1e-6, &what);
                let found = keys::cosines(level, &k, &norms, &anchor);
                assert_close(&found, &cosines, 1e-6, &what);
                let found = keys::closest(level, &k, &norms, &evicted, &kept);
                assert_close(&found.0, &best, 1e-6, &what);
                assert_eq!(found.1, places, "{what}");
            }
            let found = merge::merge_into(&k, &evicted, &kept, &places, &best);
            assert_close(&found, &values(merged), 1e-5, "merged");
        }
    }
}

/// Windows of one entry, of some, and of more than there are.
#[test]
fn what_is_spread_equals_the_oracle() {
    for case in CASES.iter().filter(|case| case.entries > 1) {
        let [_, v, _] = case.tensors();
        let n = case.entries;
        // A permutation per head: which slot has which position, and which positions go.
        let (positions, mixed) = (shuffled(case), shuffled(case));
        let mut ordered = positions.clone();
        for (order, positions) in ordered.chunks_mut(n).zip(positions.chunks(n)) {
            positions
                .iter()
                .enumerate()
                .for_each(|(slot, &position)| order[position as usize] = slot as i64);
        }
        for (going, window) in [(1, 1), (n / 2, 3), (n / 2, 2 * n), (n - 1, 4)] {
            let part = |goes: bool| -> Vec<i64> {
                let heads = ordered.chunks(n).zip(mixed.chunks(n));
                let of_head = |(order, mixed): (&[i64], &[i64])| {
                    let chosen = (0..n).filter(|&at| (mixed[at] < going as i64) == goes);
                    chosen.map(|at| order[at]).collect::<Vec<_>>()
                };
                heads.flat_map(of_head).collect()
            };
            let (evicted, kept) = (part(true), part(false));
            let dims = [case.batch, case.kv_heads, going];
            let parts = Tensor::<3>::random(dims, Distribution::Default, &Device::flex());
            let wanted = oracle::keys::spread_into(
                v.clone(),
                integers(&positions, case),
                integers(&evicted, case),
                integers(&kept, case),
                parts.clone(),
                window,
            );
            let v = flex(&v);
            let (v, parts) = (Heads::of(&v), values(parts));
            let found = merge::spread_into(&v, &positions, &evicted, &kept, &parts, window);
            assert_close(&found, &values(wanted), 1e-5, "spread");
        }
    }
}
