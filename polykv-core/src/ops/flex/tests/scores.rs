//! What policies want to know, at every level, against plain tensors.

use super::*;
use crate::ops::Pool;

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
            let positions = shuffled(case);
            let (q, k) = (q.clone(), k.clone());
            let (q2, k2) = (flex(&q), flex(&k));
            let (q2, k2) = (Heads::of(&q2), Heads::of(&k2));
            for (sliding, softcap) in [(None, None), (Some(30), None), (Some(3), Some(2.0f32))] {
                let places = Places {
                    positions: integers(&positions, case),
                    seen: case.entries,
                    window: sliding,
                };
                let softcap64 = softcap.map(f64::from);
                let (sums, variances) =
                    oracle::window_score(q.clone(), k.clone(), &places, softcap64);
                let (sums, variances) = (values(sums), values(variances));
                let places = window::Places {
                    positions: &positions,
                    seen: case.entries,
                    window: sliding,
                };
                for level in Level::available() {
                    let what = format!("{level:?}, {window} of {sliding:?}, dim {}", case.dim);
                    let found = window::score(level, &q2, &k2, places, softcap);
                    assert_close(&found.0, &sums, 1e-5, &what);
                    assert_close(&found.1, &variances, 1e-5, &what);
                }
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
        let of_kernel = [flex(&q), flex(&k), flex(&v)];
        let [q2, k2, v2] = of_kernel.each_ref().map(Heads::of);
        for (plain, mask) in masks(case) {
            for first in [0, (case.tokens - count) / 2, case.tokens - count] {
                let queries = first..first + count;
                // The oracle hands queries over in blocks: here those up to the last that is looked at are one.
                let after = case.tokens - first - count;
                let seen = case.entries - after;
                let plain = plain.before(after);
                let part = q.clone().narrow(2, first, count);
                let counts = plain.counts(seen, count, 0..count, &Device::flex());
                let mut wanted = None;
                let mut look = |rows| {
                    let counts = counts.clone();
                    wanted = Some(oracle::attention_hits(rows, group, 0..count, bits, counts));
                    Ok(())
                };
                let keys = k.clone().slice(s![.., .., 0..seen, ..]);
                let vectors = v.clone().slice(s![.., .., 0..seen, ..]);
                oracle::attend(part, keys, vectors, &plain, Some(&mut look)).unwrap();
                let (digits, counted) = wanted.unwrap();
                let (digits, counted) = (values(digits), values(counted));
                let dims = [case.batch, case.kv_heads, group, count];
                let averages = counts.clone().unsqueeze_dim::<4>(2).expand(dims);
                let averages = values(averages.log());
                for level in Level::available() {
                    let what = format!(
                        "{level:?}, {queries:?} of {}, dim {}",
                        case.tokens, case.dim
                    );
                    let (_, logs) = prefill::attend(level, &q2, &k2, &v2, &mask);
                    let logs = logs
                        .chunks_exact(case.tokens)
                        .flat_map(|head| &head[queries.clone()]);
                    let least = logs
                        .zip(&averages)
                        .map(|(log, average)| log - average - 1e-6);
                    let least: Vec<f32> = least.collect();
                    let found = hits::hits(level, &q2, &k2, &least, queries.clone(), bits, &mask);
                    assert_eq!(found.0, digits, "{what}");
                    assert_eq!(found.1, counted, "{what}");
                }
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
