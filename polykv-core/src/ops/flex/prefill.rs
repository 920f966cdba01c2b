//! Causal attention of many queries, in tiles that stay in cache, and the sums of its columns. Neither ever holds a
//! row of scores, let alone the matrix.

use super::simd::{Level, dispatch, exp, exp_sum, fma, max};
use super::view::Heads;
use rayon::prelude::*;

/// Queries per tile.
const ROWS: usize = 8;
/// Keys per tile, a multiple of `WIDTH`.
const KEYS: usize = 64;
/// Elements that a register tile is wide.
const WIDTH: usize = 32;

/// Keys of one KV head, transposed in tiles of `[dim][KEYS]`, zeros beyond the last.
fn transpose_keys(k: &Heads<'_>, batch: usize, head: usize) -> Vec<f32> {
    let tiles = k.tokens.div_ceil(KEYS);
    let mut output = vec![0.0; tiles * KEYS * k.dim];
    for (tile, output) in output.chunks_exact_mut(KEYS * k.dim).enumerate() {
        for j in 0..KEYS.min(k.tokens - tile * KEYS) {
            for (d, x) in k.row(batch, head, tile * KEYS + j).iter().enumerate() {
                output[d * KEYS + j] = *x;
            }
        }
    }
    output
}

fn transpose_all(k: &Heads<'_>) -> Vec<Vec<f32>> {
    (0..k.batch * k.heads)
        .into_par_iter()
        .map(|i| transpose_keys(k, i / k.heads, i % k.heads))
        .collect()
}

/// A tile of consecutive queries of one head.
#[derive(Clone, Copy)]
struct Tile {
    batch: usize,
    head: usize,
    /// First query and how many, at most `ROWS`.
    first: usize,
    rows: usize,
    /// Keys that the first query sees; each later one sees one more.
    visible: usize,
}

impl Tile {
    fn last_visible(&self) -> usize {
        self.visible + self.rows - 1
    }
}

/// Scores of a tile against `KEYS` keys, one row per query.
type Scores = [[f32; KEYS]; ROWS];

#[inline(always)]
fn scores<const FMA: bool>(tile: Tile, q: &Heads<'_>, keys: &[f32], start: usize, scale: f32) -> Scores {
    let mut scores = [[0.0; KEYS]; ROWS];
    let row = |r: usize| q.row(tile.batch, tile.head, tile.first + r.min(tile.rows - 1));
    let queries: [&[f32]; ROWS] = std::array::from_fn(row);
    for part in 0..KEYS / WIDTH {
        let mut sums = [[0.0f32; WIDTH]; ROWS];
        for (d, keys) in keys.chunks_exact(KEYS).enumerate() {
            let keys = &keys[part * WIDTH..(part + 1) * WIDTH];
            for r in 0..ROWS {
                let x = queries[r][d];
                for i in 0..WIDTH {
                    sums[r][i] = fma::<FMA>(x, keys[i], sums[r][i]);
                }
            }
        }
        for r in 0..ROWS {
            for i in 0..WIDTH {
                scores[r][part * WIDTH + i] = sums[r][i] * scale;
            }
        }
    }
    for (r, row) in scores.iter_mut().enumerate() {
        let seen = (tile.visible + r).saturating_sub(start).min(KEYS);
        for score in &mut row[seen..] {
            *score = HIDDEN;
        }
    }
    scores
}

/// Finite, so that a row without visible keys in a tile gives zeros and not NaN.
const HIDDEN: f32 = -1e30;

/// `q [batch, heads, t, dim]` over `k`, `v [batch, kv_heads, n, dim]`, aligned at the end. Returns
/// `[batch, t, heads, dim]` and per query the logarithm of the sum of its exponentials, `[batch, heads, t]`.
pub fn attend(level: Level, q: &Heads<'_>, k: &Heads<'_>, v: &Heads<'_>) -> (Vec<f32>, Vec<f32>) {
    let keys = transpose_all(k);
    let group = q.heads / k.heads;
    let blocks = q.tokens.div_ceil(ROWS);
    let mut output = vec![0.0; q.batch * q.tokens * q.heads * q.dim];
    let mut log_sums = vec![0.0; q.batch * q.heads * q.tokens];
    let shared = (Shared(output.as_mut_ptr()), Shared(log_sums.as_mut_ptr()));
    // The longest tiles first, so that no thread is left with one at the end.
    (0..q.batch * q.heads * blocks).into_par_iter().rev().for_each(|i| {
        let (batch, head, block) = (i / (q.heads * blocks), i % q.heads, i / q.heads % blocks);
        let first = block * ROWS;
        let tile = Tile {
            batch,
            head,
            first,
            rows: ROWS.min(q.tokens - first),
            visible: k.tokens - q.tokens + first + 1,
        };
        let keys = &keys[batch * k.heads + head / group][..];
        let result = &mut vec![0.0; ROWS * q.dim][..];
        let logs = dispatch!(level, fn tile_attention(
            tile: Tile, q: &Heads<'_>, keys: &[f32], v: &Heads<'_>, result: &mut [f32],
        ) -> [f32; ROWS]);
        for r in 0..tile.rows {
            let token = first + r;
            let at = ((batch * q.tokens + token) * q.heads + head) * q.dim;
            // SAFETY: each (batch, head, token) belongs to exactly one tile.
            unsafe {
                shared.0.write(at, &result[r * q.dim..(r + 1) * q.dim]);
                shared.1.write((batch * q.heads + head) * q.tokens + token, &logs[r..=r]);
            }
        }
    });
    (output, log_sums)
}

#[inline(always)]
fn tile_attention<const FMA: bool>(
    tile: Tile,
    q: &Heads<'_>,
    keys: &[f32],
    v: &Heads<'_>,
    result: &mut [f32],
) -> [f32; ROWS] {
    let dim = q.dim;
    let scale = 1.0 / (dim as f32).sqrt();
    let kv_head = tile.head / (q.heads / v.heads);
    let mut most = [HIDDEN; ROWS];
    let mut totals = [0.0f32; ROWS];
    for (index, keys) in keys.chunks_exact(KEYS * dim).enumerate() {
        let start = index * KEYS;
        if start >= tile.last_visible() {
            break;
        }
        let count = KEYS.min(tile.last_visible() - start);
        let mut scores = scores::<FMA>(tile, q, keys, start, scale);
        let mut decay = [0.0; ROWS];
        for r in 0..ROWS {
            let top = most[r].max(max(&scores[r]));
            decay[r] = exp::<FMA>(most[r] - top);
            most[r] = top;
            totals[r] = totals[r] * decay[r] + exp_sum::<FMA>(&mut scores[r], top);
        }
        accumulate::<FMA>(tile, &scores, &decay, v, kv_head, start, count, result);
    }
    for r in 0..ROWS {
        for x in &mut result[r * dim..(r + 1) * dim] {
            *x /= totals[r];
        }
    }
    std::array::from_fn(|r| most[r] + totals[r].ln())
}

/// `result = result · decay + scores · values`
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn accumulate<const FMA: bool>(
    tile: Tile,
    scores: &Scores,
    decay: &[f32; ROWS],
    v: &Heads<'_>,
    kv_head: usize,
    start: usize,
    count: usize,
    result: &mut [f32],
) {
    let dim = v.dim;
    let full = dim / WIDTH * WIDTH;
    for first in (0..full).step_by(WIDTH) {
        let mut sums = [[0.0f32; WIDTH]; ROWS];
        for r in 0..ROWS {
            for i in 0..WIDTH {
                sums[r][i] = result[r * dim + first + i] * decay[r];
            }
        }
        for j in 0..count {
            let value = &v.row(tile.batch, kv_head, start + j)[first..first + WIDTH];
            for r in 0..ROWS {
                let p = scores[r][j];
                for i in 0..WIDTH {
                    sums[r][i] = fma::<FMA>(p, value[i], sums[r][i]);
                }
            }
        }
        for r in 0..ROWS {
            result[r * dim + first..r * dim + first + WIDTH].copy_from_slice(&sums[r]);
        }
    }
    // Head sizes such as 80 leave a narrower rest.
    for r in 0..ROWS {
        let rest = &mut result[r * dim + full..(r + 1) * dim];
        for x in rest.iter_mut() {
            *x *= decay[r];
        }
        for j in 0..count {
            let value = &v.row(tile.batch, kv_head, start + j)[full..];
            for (x, v) in rest.iter_mut().zip(value) {
                *x = fma::<FMA>(scores[r][j], *v, *x);
            }
        }
    }
}

/// Attention received per key: sum over the queries, mean over the query group. `log_sums` is what [`attend`]
/// returned for the same `q` and `k`. Returns `[batch, kv_heads, n]`.
pub fn column_sums(level: Level, q: &Heads<'_>, k: &Heads<'_>, log_sums: &[f32]) -> Vec<f32> {
    let keys = transpose_all(k);
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
    sums.chunks_exact(tiles * KEYS).flat_map(|row| row[..k.tokens].to_vec()).collect()
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
fn tile_columns<const FMA: bool>(
    at: Columns,
    q: &Heads<'_>,
    keys: &[f32],
    log_sums: &[f32],
    sums: &mut [f32],
) {
    let scale = 1.0 / (q.dim as f32).sqrt();
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
            let scores = scores::<FMA>(tile, q, keys, at.start, scale);
            for (r, row) in scores.iter().enumerate().take(tile.rows) {
                let log_sum = log_sums[(at.batch * q.heads + head) * q.tokens + first + r];
                for i in 0..KEYS {
                    // exp clamps at e⁻⁸⁷, which is nothing beside a probability.
                    sums[i] += exp::<FMA>(row[i] - log_sum);
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
