//! Which queries gave a key at least the average of their attention.

use super::bridge::{elements, inner_dense, tensor, widened};
use super::lanes::Lanes;
use super::mask::{Mask, cap};
use super::simd::{LANES, Level, Vector, dispatch};
use super::view::Heads;
use crate::ops::kernels::{self, HitOps};
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;
use std::ops::Range;

impl HitOps for Flex {
    fn attention_hits(
        q: FlexTensor,
        k: FlexTensor,
        least: FlexTensor,
        first: usize,
        count: usize,
        bits: usize,
        mask: kernels::Mask<Self>,
    ) -> (FlexTensor, FlexTensor) {
        let (q, k, least) = (inner_dense(q), widened(k), least.to_contiguous());
        let (q, k) = (Heads::of(&q), Heads::of(&k));
        let mask = Mask::of(mask, q.tokens);
        let queries = first..first + count;
        let least = elements(&least);
        let (digits, counts) = hits(Level::best(), &q, &k, least, queries, bits, &mask);
        let dims = [k.batch, k.heads, k.tokens - q.tokens + first + count];
        (tensor(digits, dims), tensor(counts, dims))
    }
}

/// Keys that one task looks at.
const KEYS: usize = 256;

/// For `queries`, with the least score of each that is a hit, `[batch, heads, queries]`: the digits and the counts,
/// `[batch, kv_heads, seen]` each.
pub fn hits(
    level: Level,
    q: &Heads<'_>,
    k: &Heads<'_>,
    least: &[f32],
    queries: Range<usize>,
    bits: usize,
    mask: &Mask,
) -> (Vec<f32>, Vec<f32>) {
    let hidden = k.tokens - q.tokens;
    let seen = hidden + queries.end;
    let group = q.heads / k.heads;
    let mut digits = vec![0.0; k.batch * k.heads * seen];
    let mut counts = digits.clone();
    let of_heads = digits
        .chunks_exact_mut(seen)
        .zip(counts.chunks_exact_mut(seen));
    let parts: Vec<_> = of_heads
        .enumerate()
        .flat_map(|(kv, (digits, counts))| {
            let parts = digits.chunks_mut(KEYS).zip(counts.chunks_mut(KEYS));
            parts
                .enumerate()
                .map(move |(part, found)| (kv, part * KEYS, found))
        })
        .collect();
    parts
        .into_par_iter()
        .for_each(|(kv, start, (digits, counts))| {
            let at = Part {
                lanes: Lanes {
                    batch: kv / k.heads,
                    head: kv % k.heads * group,
                    kv_head: kv % k.heads,
                    queries: queries.clone(),
                    keys: start..start + digits.len(),
                },
                group,
                hidden,
                bits,
            };
            dispatch!(level, fn part_hits(
                at: Part, q: &Heads<'_>, k: &Heads<'_>, least: &[f32], mask: &Mask,
                digits: &mut [f32], counts: &mut [f32],
            ));
        });
    (digits, counts)
}

/// Some keys of one KV head, and the queries that are looked at, of the group's first head.
struct Part {
    lanes: Lanes,
    group: usize,
    /// Keys before the first query's own.
    hidden: usize,
    bits: usize,
}

#[inline(always)]
fn part_hits<V: Vector>(
    mut at: Part,
    q: &Heads<'_>,
    k: &Heads<'_>,
    least: &[f32],
    mask: &Mask,
    digits: &mut [f32],
    counts: &mut [f32],
) {
    let (queries, keys) = (at.lanes.queries.clone(), at.lanes.keys.clone());
    let blocks = at.lanes.blocks();
    let mut rows = vec![[0.0; LANES]; keys.len() * blocks];
    // How many heads of the group hit, per key and query.
    let mut found = vec![[0.0; LANES]; keys.len() * blocks];
    for _ in 0..at.group {
        at.lanes.products::<V>(q, k, &mut rows);
        if let Some(softcap) = mask.softcap {
            cap::<V>(rows.as_flattened_mut(), softcap);
        }
        let mut bars = vec![[f32::MAX; LANES]; blocks];
        let head = (at.lanes.batch * q.heads + at.lanes.head) * queries.len();
        for i in 0..queries.len() {
            bars[i / LANES][i % LANES] = least[head + i];
        }
        for (rows, found) in rows
            .chunks_exact(blocks)
            .zip(found.chunks_exact_mut(blocks))
        {
            for block in 0..blocks {
                for i in 0..LANES {
                    let hit = rows[block][i] >= bars[block][i];
                    found[block][i] += if hit { 1.0 } else { 0.0 };
                }
            }
        }
        at.lanes.head += 1;
    }
    let mut powers = vec![[0.0; LANES]; blocks];
    for i in 0..queries.len() {
        powers[i / LANES][i % LANES] = ((at.bits * i) as f32).exp2();
    }
    let kv = at.lanes.batch * k.heads + at.lanes.kv_head;
    let sight = mask.sight(kv, queries.start);
    let results = digits.iter_mut().zip(counts);
    let found = keys.zip(found.chunks_exact_mut(blocks));
    for ((key, found), (digits, counts)) in found.zip(results) {
        // Queries before the key's own do not see it.
        let late = key.saturating_sub(at.hidden + queries.start);
        for i in 0..late.min(queries.len()) {
            found[i / LANES][i % LANES] = 0.0;
        }
        if let Some(sight) = &sight {
            for i in sight.queries_of_key(key, queries.len())..queries.len() {
                found[i / LANES][i % LANES] = 0.0;
            }
        }
        let (mut all, mut weighted) = (V::splat(0.0), V::splat(0.0));
        for block in 0..blocks {
            let hits = V::load(&found[block]);
            all = all.add(hits);
            weighted = hits.mul_add(V::load(&powers[block]), weighted);
        }
        *counts = all.sum();
        *digits = weighted.sum();
    }
}
