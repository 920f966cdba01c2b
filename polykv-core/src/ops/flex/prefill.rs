//! Causal attention of many queries, in tiles that stay in cache, and the sums of its columns. Neither ever holds a
//! row of scores, let alone the matrix.

use super::simd::{Level, Vector, dispatch, exp, exp_sum, fma, max};
use super::view::Heads;
use rayon::prelude::*;
use std::borrow::Cow;

/// Queries per tile. With `WIDTH` it makes a register tile that fits AVX2's 16 registers, AVX-512's and NEON's.
pub(super) const ROWS: usize = 6;
/// Keys per tile, a multiple of `WIDTH`.
pub(super) const KEYS: usize = 64;
/// Elements that a register tile is wide.
const WIDTH: usize = 16;

/// `sums[r] += Σ_s a[s][r] · b[s]`: the one loop that all time is spent in.
#[inline(always)]
fn multiply<'b, V: Vector>(
    sums: &mut [[f32; WIDTH]; ROWS],
    a: &[[f32; ROWS]],
    b: impl Iterator<Item = &'b [f32; WIDTH]>,
) {
    let mut local = *sums;
    for (a, b) in a.iter().zip(b) {
        for r in 0..ROWS {
            for i in 0..WIDTH {
                local[r][i] = fma::<V>(a[r], b[i], local[r][i]);
            }
        }
    }
    *sums = local;
}

/// Keys of one KV head in tiles of `KEYS`, each `[KEYS / WIDTH][dim][WIDTH]`, zeros beyond the last.
fn pack_keys(k: &Heads<'_>, batch: usize, head: usize) -> Vec<f32> {
    let tiles = k.tokens.div_ceil(KEYS);
    let mut output = vec![0.0; tiles * KEYS * k.dim];
    for t in 0..k.tokens {
        let (part, i) = (t / WIDTH, t % WIDTH);
        let output = &mut output[part * k.dim * WIDTH..(part + 1) * k.dim * WIDTH];
        for (d, x) in k.row(batch, head, t).iter().enumerate() {
            output[d * WIDTH + i] = *x;
        }
    }
    output
}

pub(super) fn pack_all(k: &Heads<'_>) -> Vec<Vec<f32>> {
    (0..k.batch * k.heads)
        .into_par_iter()
        .map(|i| pack_keys(k, i / k.heads, i % k.heads))
        .collect()
}

/// A tile of consecutive queries of one head.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub batch: usize,
    pub head: usize,
    /// First query and how many, at most `ROWS`.
    pub first: usize,
    pub rows: usize,
    /// Keys that the first query sees; each later one sees one more.
    pub visible: usize,
}

impl Tile {
    fn last_visible(&self) -> usize {
        self.visible + self.rows - 1
    }

    /// The queries, scaled and transposed: `[dim][ROWS]`. Missing rows repeat the last one.
    pub fn pack(&self, q: &Heads<'_>) -> Vec<[f32; ROWS]> {
        let scale = 1.0 / (q.dim as f32).sqrt();
        let mut packed = vec![[0.0; ROWS]; q.dim];
        for r in 0..ROWS {
            let row = q.row(self.batch, self.head, self.first + r.min(self.rows - 1));
            for (packed, x) in packed.iter_mut().zip(row) {
                packed[r] = x * scale;
            }
        }
        packed
    }
}

/// Scores of a tile against `KEYS` keys, one row per query.
pub(super) type Scores = [[f32; KEYS]; ROWS];

#[inline(always)]
pub(super) fn scores<V: Vector>(
    tile: Tile,
    queries: &[[f32; ROWS]],
    keys: &[f32],
    start: usize,
) -> Scores {
    let mut scores = [[0.0; KEYS]; ROWS];
    let parts = keys.chunks_exact(queries.len() * WIDTH);
    for (part, keys) in parts.enumerate() {
        let mut sums = [[0.0f32; WIDTH]; ROWS];
        multiply::<V>(&mut sums, queries, keys.as_chunks::<WIDTH>().0.iter());
        for r in 0..ROWS {
            scores[r][part * WIDTH..(part + 1) * WIDTH].copy_from_slice(&sums[r]);
        }
    }
    if start + KEYS > tile.visible {
        for (r, row) in scores.iter_mut().enumerate() {
            let seen = (tile.visible + r).saturating_sub(start).min(KEYS);
            row[seen..].fill(HIDDEN);
        }
    }
    scores
}

/// Finite, so that a row without visible keys in a tile gives zeros and not NaN.
pub(super) const HIDDEN: f32 = -1e30;

/// `q [batch, heads, t, dim]` over `k`, `v [batch, kv_heads, n, dim]`, aligned at the end. Returns
/// `[batch, t, heads, dim]` and per query the logarithm of the sum of its exponentials, `[batch, heads, t]`.
pub fn attend(level: Level, q: &Heads<'_>, k: &Heads<'_>, v: &Heads<'_>) -> (Vec<f32>, Vec<f32>) {
    let keys = pack_all(k);
    let group = q.heads / k.heads;
    let values: Vec<Cow<'_, [f32]>> = (0..v.batch * v.heads)
        .into_par_iter()
        .map(|i| v.dense(i / v.heads, i % v.heads))
        .collect();
    let blocks = q.tokens.div_ceil(ROWS);
    let mut output = vec![0.0; q.batch * q.tokens * q.heads * q.dim];
    let mut log_sums = vec![0.0; q.batch * q.heads * q.tokens];
    let shared = (Shared(output.as_mut_ptr()), Shared(log_sums.as_mut_ptr()));
    // The longest tiles first, so that no thread is left with one at the end.
    let tiles = (0..q.batch * q.heads * blocks).into_par_iter().rev();
    tiles.for_each(|i| {
        let (batch, head, block) = (i / (q.heads * blocks), i % q.heads, i / q.heads % blocks);
        let first = block * ROWS;
        let tile = Tile {
            batch,
            head,
            first,
            rows: ROWS.min(q.tokens - first),
            visible: k.tokens - q.tokens + first + 1,
        };
        let kv = batch * k.heads + head / group;
        let (keys, values) = (&keys[kv][..], &values[kv][..]);
        let result = &mut vec![0.0; ROWS * q.dim][..];
        let logs = dispatch!(level, fn tile_attention(
            tile: Tile, q: &Heads<'_>, keys: &[f32], values: &[f32], result: &mut [f32],
        ) -> [f32; ROWS]);
        for r in 0..tile.rows {
            let token = first + r;
            let at = ((batch * q.tokens + token) * q.heads + head) * q.dim;
            // SAFETY: each (batch, head, token) belongs to exactly one tile.
            unsafe {
                shared.0.write(at, &result[r * q.dim..(r + 1) * q.dim]);
                let at = (batch * q.heads + head) * q.tokens + token;
                shared.1.write(at, &logs[r..=r]);
            }
        }
    });
    (output, log_sums)
}

#[inline(always)]
fn tile_attention<V: Vector>(
    tile: Tile,
    q: &Heads<'_>,
    keys: &[f32],
    values: &[f32],
    result: &mut [f32],
) -> [f32; ROWS] {
    let dim = q.dim;
    let queries = tile.pack(q);
    let mut most = [HIDDEN; ROWS];
    let mut totals = [0.0f32; ROWS];
    let tiles = keys
        .chunks_exact(KEYS * dim)
        .zip(values.chunks(KEYS * dim))
        .take(tile.last_visible().div_ceil(KEYS));
    for (index, (keys, values)) in tiles.enumerate() {
        let start = index * KEYS;
        let mut scores = scores::<V>(tile, &queries, keys, start);
        let mut decay = [0.0; ROWS];
        for r in 0..ROWS {
            let top = most[r].max(max(&scores[r]));
            decay[r] = exp::<V>(most[r] - top);
            most[r] = top;
            totals[r] = totals[r] * decay[r] + exp_sum::<V>(&mut scores[r], top);
        }
        let count = KEYS.min(tile.last_visible() - start);
        accumulate::<V>(&scores, decay, &values[..count * dim], result);
    }
    for (row, total) in result.chunks_exact_mut(dim).zip(totals) {
        row.iter_mut().for_each(|x| *x /= total);
    }
    std::array::from_fn(|r| most[r] + totals[r].ln())
}

/// `result [ROWS][dim] = decay · result + weights · values`, with `values [..][dim]`.
#[inline(always)]
fn accumulate<V: Vector>(weights: &Scores, decay: [f32; ROWS], values: &[f32], result: &mut [f32]) {
    let dim = result.len() / ROWS;
    let full = dim / WIDTH * WIDTH;
    for first in (0..full).step_by(WIDTH) {
        let mut sums = [[0.0f32; WIDTH]; ROWS];
        for (j, value) in values.chunks_exact(dim).enumerate().take(KEYS) {
            let value = &value[first..first + WIDTH];
            for r in 0..ROWS {
                for i in 0..WIDTH {
                    sums[r][i] = fma::<V>(weights[r][j], value[i], sums[r][i]);
                }
            }
        }
        for r in 0..ROWS {
            let result = &mut result[r * dim + first..][..WIDTH];
            for i in 0..WIDTH {
                result[i] = fma::<V>(decay[r], result[i], sums[r][i]);
            }
        }
    }
    if full == dim {
        return;
    }
    // Head sizes that are no multiple of the width leave a rest.
    for (r, result) in result.chunks_exact_mut(dim).enumerate() {
        let rest = &mut result[full..];
        rest.iter_mut().for_each(|x| *x *= decay[r]);
        for (value, weight) in values.chunks_exact(dim).zip(&weights[r]) {
            for (x, v) in rest.iter_mut().zip(&value[full..]) {
                *x = fma::<V>(*weight, *v, *x);
            }
        }
    }
}

/// Attention received per key: sum over the queries, mean over the query group. `log_sums` is what [`attend`]
/// returned for the same `q` and `k`. Returns `[batch, kv_heads, n]`.
pub fn column_sums(level: Level, q: &Heads<'_>, k: &Heads<'_>, log_sums: &[f32]) -> Vec<f32> {
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
        };
        let keys = &keys[kv][index * KEYS * k.dim..(index + 1) * KEYS * k.dim];
        dispatch!(level, fn tile_columns(
            at: Columns, q: &Heads<'_>, keys: &[f32], log_sums: &[f32], sums: &mut [f32],
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
}

#[inline(always)]
fn tile_columns<V: Vector>(
    at: Columns,
    q: &Heads<'_>,
    keys: &[f32],
    log_sums: &[f32],
    sums: &mut [f32],
) {
    // Earlier queries see none of these keys.
    let first_query = at.start.saturating_sub(at.hidden) / ROWS * ROWS;
    for g in 0..at.group {
        let head = at.kv_head * at.group + g;
        for first in (first_query..q.tokens).step_by(ROWS) {
            let tile = Tile {
                batch: at.batch,
                head,
                first,
                rows: ROWS.min(q.tokens - first),
                visible: at.hidden + first + 1,
            };
            let scores = scores::<V>(tile, &tile.pack(q), keys, at.start);
            for (r, row) in scores.iter().enumerate().take(tile.rows) {
                let log_sum = log_sums[(at.batch * q.heads + head) * q.tokens + first + r];
                for i in 0..KEYS {
                    // exp clamps at e⁻⁸⁷, which is nothing beside a probability.
                    sums[i] += exp::<V>(row[i] - log_sum);
                }
            }
        }
    }
    for sum in sums {
        *sum /= at.group as f32;
    }
}

/// A buffer that threads write disjoint parts of.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: writers of the same element never overlap, see the call.
unsafe impl Sync for Shared {}
unsafe impl Send for Shared {}

impl Shared {
    /// # Safety
    /// `at + values.len()` is inside the buffer and no other thread writes there.
    unsafe fn write(&self, at: usize, values: &[f32]) {
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.0.add(at), values.len()) };
    }
}
