//! Sums and maxima over the columns of a prompt's attention, from what the attention left.

use super::mask::Mask;
use super::simd::{Level, Vector, dispatch, exp};
use super::tiles::{KEYS, ROWS, Tile, pack_all, scores};
use super::view::Heads;
use rayon::prelude::*;

/// What is made of the attention that a key receives.
#[derive(Clone, Copy, PartialEq)]
pub enum Fold {
    /// The sum over the queries, mean over the query group.
    Sum,
    /// The most of all queries and all heads of the query group.
    Max,
}

/// Attention received per key. `log_sums` is what [`attend`](super::prefill::attend) returned for the same `q` and `k`.
/// Returns `[batch, kv_heads, n]`.
pub fn columns(
    level: Level,
    q: &Heads<'_>,
    k: &Heads<'_>,
    log_sums: &[f32],
    mask: &Mask,
    fold: Fold,
) -> Vec<f32> {
    let keys = pack_all(k);
    let group = q.heads / k.heads;
    let tiles = k.tokens.div_ceil(KEYS);
    let mut sums = vec![0.0; k.batch * k.heads * tiles * KEYS];
    sums.par_chunks_mut(KEYS).enumerate().for_each(|(i, sums)| {
        let (kv, index) = (i / tiles, i % tiles);
        let at = Columns {
            batch: kv / k.heads,
            kv_head: kv % k.heads,
            group,
            start: index * KEYS,
            hidden: k.tokens - q.tokens,
            fold,
        };
        let keys = &keys[kv][index * KEYS * k.dim..(index + 1) * KEYS * k.dim];
        dispatch!(level, fn tile_columns(
            at: Columns, q: &Heads<'_>, keys: &[f32], log_sums: &[f32], mask: &Mask, sums: &mut [f32],
        ));
    });
    sums.chunks_exact(tiles * KEYS)
        .flat_map(|row| row[..k.tokens].to_vec())
        .collect()
}

/// A tile of keys of one KV head.
#[derive(Clone, Copy)]
struct Columns {
    batch: usize,
    kv_head: usize,
    group: usize,
    start: usize,
    /// Keys before the first query's own.
    hidden: usize,
    fold: Fold,
}

#[inline(always)]
fn tile_columns<V: Vector>(
    at: Columns,
    q: &Heads<'_>,
    keys: &[f32],
    log_sums: &[f32],
    mask: &Mask,
    sums: &mut [f32],
) {
    let kv = at.batch * (q.heads / at.group) + at.kv_head;
    // Earlier queries see none of these keys, and later ones neither if they have left the window.
    let first_query = at.start.saturating_sub(at.hidden) / ROWS * ROWS;
    let end = match mask.sight(kv, 0) {
        Some(sight) => sight.queries(at.start / KEYS, q.tokens),
        None => q.tokens,
    };
    for g in 0..at.group {
        let head = at.kv_head * at.group + g;
        for first in (first_query..end).step_by(ROWS) {
            let tile = Tile {
                batch: at.batch,
                head,
                first,
                rows: ROWS.min(q.tokens - first),
                visible: at.hidden + first + 1,
                softcap: mask.softcap,
                sight: mask.sight(kv, first),
            };
            let scores = scores::<V>(tile, &tile.pack(q), keys, at.start);
            for (r, row) in scores.iter().enumerate().take(tile.rows) {
                let log_sum = log_sums[(at.batch * q.heads + head) * q.tokens + first + r];
                // exp clamps at e⁻⁸⁷, which is nothing beside a probability.
                match at.fold {
                    Fold::Sum => (0..KEYS).for_each(|i| sums[i] += exp::<V>(row[i] - log_sum)),
                    Fold::Max => {
                        (0..KEYS)
                            .for_each(|i| sums[i] = larger(sums[i], exp::<V>(row[i] - log_sum)));
                    }
                }
            }
        }
    }
    if at.fold == Fold::Sum {
        sums.iter_mut().for_each(|sum| *sum /= at.group as f32);
    }
}

/// The larger of two numbers, or NaN if one of them is.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a >= b || a.is_nan() { a } else { b }
}
