//! Which queries gave a key an even part of their attention or more.

use super::simd::{Level, Vector, dispatch};
use super::tiles::{KEYS, ROWS, Tile, pack_all, scores};
use super::view::Heads;
use crate::ops::kernels::HIT_SLACK;
use rayon::prelude::*;

/// As [`KvOps::attention_hits`](crate::ops::kernels::KvOps::attention_hits), for the queries from `first` on, `count` of
/// them: the digits and the counts, `[batch, kv_heads, seen]` each.
pub fn hits(
    level: Level,
    q: &Heads<'_>,
    k: &Heads<'_>,
    log_sums: &[f32],
    first: usize,
    count: usize,
    bits: usize,
) -> (Vec<f32>, Vec<f32>) {
    let keys = pack_all(k);
    let hidden = k.tokens - q.tokens;
    let seen = hidden + first + count;
    let tiles = seen.div_ceil(KEYS);
    let heads = k.batch * k.heads;
    let found: Vec<Hits> = (0..heads * tiles)
        .into_par_iter()
        .map(|i| {
            let (kv, index) = (i / tiles, i % tiles);
            let at = Columns {
                batch: kv / k.heads,
                kv_head: kv % k.heads,
                group: q.heads / k.heads,
                start: index * KEYS,
                hidden,
                queries: [first, first + count],
                bits,
            };
            let (at, keys) = (
                &at,
                &keys[kv][index * KEYS * k.dim..(index + 1) * KEYS * k.dim],
            );
            dispatch!(level, fn tile_hits(
                at: &Columns, q: &Heads<'_>, keys: &[f32], log_sums: &[f32],
            ) -> Hits)
        })
        .collect();
    let mut digits = Vec::with_capacity(heads * seen);
    let mut counts = Vec::with_capacity(heads * seen);
    for head in found.chunks_exact(tiles) {
        for (index, tile) in head.iter().enumerate() {
            let keys = KEYS.min(seen - index * KEYS);
            digits.extend_from_slice(&tile.digits[..keys]);
            counts.extend_from_slice(&tile.counts[..keys]);
        }
    }
    (digits, counts)
}

/// A tile of keys of one KV head, and the queries that are looked at.
struct Columns {
    batch: usize,
    kv_head: usize,
    group: usize,
    start: usize,
    /// Keys before the first query's own.
    hidden: usize,
    queries: [usize; 2],
    bits: usize,
}

struct Hits {
    digits: [f32; KEYS],
    counts: [f32; KEYS],
}

#[inline(always)]
fn tile_hits<V: Vector>(at: &Columns, q: &Heads<'_>, keys: &[f32], log_sums: &[f32]) -> Hits {
    let mut hits = Hits {
        digits: [0.0; KEYS],
        counts: [0.0; KEYS],
    };
    let [start, end] = at.queries;
    for g in 0..at.group {
        let head = at.kv_head * at.group + g;
        for first in (start..end).step_by(ROWS) {
            let tile = Tile {
                batch: at.batch,
                head,
                first,
                rows: ROWS.min(end - first),
                visible: at.hidden + first + 1,
            };
            // These queries see none of the keys.
            if tile.visible + tile.rows <= at.start {
                continue;
            }
            let scores = scores::<V>(tile, &tile.pack(q), keys, at.start);
            for (r, row) in scores.iter().enumerate().take(tile.rows) {
                let log_sum = log_sums[(at.batch * q.heads + head) * q.tokens + first + r];
                let least = log_sum - ((tile.visible + r) as f32).ln() - HIT_SLACK;
                let digit = ((at.bits * (first + r - start)) as f32).exp2();
                for (i, &score) in row.iter().enumerate().take(KEYS) {
                    let hit = if score >= least { 1.0 } else { 0.0 };
                    hits.counts[i] += hit;
                    hits.digits[i] += hit * digit;
                }
            }
        }
    }
    hits
}
