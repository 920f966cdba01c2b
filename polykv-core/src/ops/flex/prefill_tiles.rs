//! Causal attention of many queries by online softmax, with products in the tile instructions of bf16 (AMX). Every number is
//! the sum of two in bf16, its rounded value and what rounding left, and only the product of the two rests is dropped: that is
//! 16 bits of each number, twice what one in bf16 has. Keys and values that are stored in bf16 have no rest.

use super::blocks::gemm::Tiles;
use super::mask::{Mask, cap};
use super::shared::Shared;
use super::simd::{Level, Vector, dispatch, exp, fma, larger, max};
use super::tiles::{HIDDEN, KEYS, Tile};
use super::view::Heads;
use rayon::prelude::*;

/// Queries per block, which are four tiles of sums.
const QUERIES: usize = 64;
/// Tiles of `KEYS` keys whose scores exist at a time.
const TOGETHER: usize = 2;
/// Rows and columns of a tile of sums.
const SIDE: usize = 16;
/// Numbers that one instruction multiplies and adds up for each sum.
const STEP: usize = 32;
/// Numbers of a tile of weights.
const WEIGHTS: usize = SIDE * STEP;

/// Numbers in two parts, each in bf16.
struct Halves {
    high: Vec<u16>,
    /// `None` where all are zero.
    low: Option<Vec<u16>>,
}

/// The nearest number in bf16, and the nearest to what is left.
#[inline(always)]
fn split(x: f32) -> [u16; 2] {
    let [high, low] = split_finite(x);
    match x.is_finite() {
        true => [high, low],
        false => [if x.is_nan() { 0x7fc0 } else { high }, 0],
    }
}

/// The same of a number whose nearest one in bf16 is finite.
#[inline(always)]
fn split_finite(x: f32) -> [u16; 2] {
    let high = round(x);
    [high, round(x - f32::from_bits(u32::from(high) << 16))]
}

#[inline(always)]
fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

impl Halves {
    fn zeros(count: usize, exact: bool) -> Self {
        Self {
            high: vec![0; count],
            low: (!exact).then(|| vec![0; count]),
        }
    }

    fn set(&mut self, at: usize, x: f32) {
        let [high, low] = split(x);
        self.high[at] = high;
        if let Some(all) = &mut self.low {
            all[at] = low;
        }
    }

    /// Keys as weights of the scores: per 16 keys and 32 elements a tile of pairs of elements by keys.
    fn of_keys(k: &Heads<'_>, batch: usize, head: usize, exact: bool) -> Self {
        let padded = k.tokens.next_multiple_of(KEYS);
        let mut all = Self::zeros(padded * k.dim, exact);
        for token in 0..k.tokens {
            let first = token / SIDE * SIDE * k.dim + token % SIDE * 2;
            for (d, &x) in k.row(batch, head, token).iter().enumerate() {
                let tile = d / STEP * WEIGHTS + d % STEP / 2 * 2 * SIDE;
                all.set(first + tile + d % 2, x);
            }
        }
        all
    }

    /// Values as weights of the output: per 32 values and 16 elements a tile of pairs of values by elements.
    fn of_values(v: &Heads<'_>, batch: usize, head: usize, exact: bool) -> Self {
        let padded = v.tokens.next_multiple_of(KEYS);
        let mut all = Self::zeros(padded * v.dim, exact);
        for token in 0..v.tokens {
            let first = token / STEP * STEP * v.dim + token % STEP / 2 * 2 * SIDE + token % 2;
            for (d, &x) in v.row(batch, head, token).iter().enumerate() {
                all.set(first + d / SIDE * WEIGHTS + d % SIDE * 2, x);
            }
        }
        all
    }
}

/// Keys or values of all heads, split at once.
fn split_all(heads: &Heads<'_>, of: impl Fn(usize, usize) -> Halves + Sync + Send) -> Vec<Halves> {
    (0..heads.batch * heads.heads)
        .into_par_iter()
        .map(|i| of(i / heads.heads, i % heads.heads))
        .collect()
}

/// [`prefill::attend`](super::prefill::attend) by the tiles `T`, where `exact` says of keys and values whether all are numbers
/// in bf16. `None` where the processor has no such tiles, for heads that they do not divide, and for few queries.
pub fn attend<T: Tiles>(
    [q, k, v]: [&Heads<'_>; 3],
    exact: [bool; 2],
    mask: &Mask,
) -> Option<(Vec<f32>, Vec<f32>)> {
    let level = Level::best();
    let fits = q.dim.is_multiple_of(STEP) && q.tokens >= SIDE;
    if !fits || level != Level::Avx512 || !T::are_there() {
        return None;
    }
    let keys = split_all(k, |batch, head| Halves::of_keys(k, batch, head, exact[0]));
    let values = split_all(v, |batch, head| Halves::of_values(v, batch, head, exact[1]));
    let mut output = vec![0.0; q.batch * q.tokens * q.heads * q.dim];
    let mut log_sums = vec![0.0; q.batch * q.heads * q.tokens];
    let (outputs, all_logs) = (Shared::new(&mut output), Shared::new(&mut log_sums));
    let (group, hidden) = (q.heads / k.heads, k.tokens - q.tokens);
    let blocks = q.tokens.div_ceil(QUERIES);
    // The longest first, so that no thread is left with one at the end.
    let all = (0..q.batch * q.heads * blocks).into_par_iter().rev();
    all.with_max_len(1).for_each(|i| {
        let (batch, head, block) = (i / (q.heads * blocks), i % q.heads, i / q.heads % blocks);
        let (kv, first) = (batch * k.heads + head / group, block * QUERIES);
        let tile = Tile {
            batch,
            head,
            first,
            rows: QUERIES.min(q.tokens - first),
            visible: hidden + first + 1,
            softcap: mask.softcap,
            sight: mask.sight(kv, first),
        };
        let (keys, values) = (&keys[kv], &values[kv]);
        let mut result = vec![0.0; QUERIES * q.dim];
        let result = &mut result[..];
        let logs = dispatch!(level, fn attend_block<T: Tiles>(
            tile: Tile<'_>, q: &Heads<'_>, keys: &Halves, values: &Halves, result: &mut [f32],
        ) -> [f32; QUERIES]);
        for (r, log) in logs.iter().enumerate().take(tile.rows) {
            let token = first + r;
            let at = ((batch * q.tokens + token) * q.heads + head) * q.dim;
            // SAFETY: `at` is the vector of (batch, token, head) in an output of that shape, which belongs to this block alone.
            unsafe { outputs.write(at, &result[r * q.dim..(r + 1) * q.dim]) };
            let at = (batch * q.heads + head) * q.tokens + token;
            // SAFETY: `at` is the number of (batch, head, token) in sums of that shape, which belongs to this block alone.
            unsafe { all_logs.write(at, std::slice::from_ref(log)) };
        }
    });
    Some((output, log_sums))
}

/// Scores of a block against `KEYS` keys, a row per query.
type Scores = [[f32; KEYS]; QUERIES];

/// What a block's queries have seen so far.
struct Softmax {
    most: [f32; QUERIES],
    totals: [f32; QUERIES],
    decay: [f32; QUERIES],
}

/// The unscaled output of a block goes to `result [QUERIES][dim]`. Returns the log-sum-exp of each query's scores.
#[inline(always)]
fn attend_block<V: Vector, T: Tiles>(
    tile: Tile<'_>,
    q: &Heads<'_>,
    keys: &Halves,
    values: &Halves,
    result: &mut [f32],
) -> [f32; QUERIES] {
    let dim = q.dim;
    let count = tile.rows.div_ceil(SIDE);
    let queries = split_queries(tile, q);
    let mut scores: Vec<Scores> = vec![[[0.0; KEYS]; QUERIES]; TOGETHER];
    let mut weights: [Vec<u16>; 2] = [(); 2].map(|()| vec![0; QUERIES * TOGETHER * KEYS]);
    let mut softmax = Softmax {
        most: [HIDDEN; QUERIES],
        totals: [0.0; QUERIES],
        decay: [0.0; QUERIES],
    };
    let tiles = tile.last_visible().div_ceil(KEYS);
    let is_past = |index: usize| tile.sight.is_some_and(|sight| sight.is_past(index));
    // SAFETY: the tiles are there, found the caller, and this is the thread's only use of them until it ends.
    let mut hardware = unsafe { T::configured(SIDE) };
    for first in (0..tiles).step_by(TOGETHER) {
        let indices = first..tiles.min(first + TOGETHER);
        if indices.clone().all(is_past) {
            continue;
        }
        for (scores, index) in scores.iter_mut().zip(indices.clone()) {
            score(&mut hardware, count, &queries, keys, index, dim, scores);
            hide::<V>(tile, index, scores);
        }
        let held = indices.len();
        softmax.add::<V>(tile.rows, &scores[..held], &mut weights);
        accumulate::<V, T>(
            &mut hardware,
            count,
            &weights,
            values,
            [first, held],
            &softmax.decay,
            result,
        );
    }
    for (row, total) in result.chunks_exact_mut(dim).zip(softmax.totals) {
        row.iter_mut().for_each(|x| *x /= total);
    }
    std::array::from_fn(|r| softmax.most[r] + softmax.totals[r].ln())
}

/// The queries times 1/√dim, `[QUERIES][dim]` in two parts; zeros beyond the last.
#[inline(always)]
fn split_queries(tile: Tile<'_>, q: &Heads<'_>) -> [Vec<u16>; 2] {
    let scale = 1.0 / (q.dim as f32).sqrt();
    let mut parts: [Vec<u16>; 2] = [(); 2].map(|()| vec![0; QUERIES * q.dim]);
    let [high, low] = &mut parts;
    let rows = high
        .chunks_exact_mut(q.dim)
        .zip(low.chunks_exact_mut(q.dim));
    for (r, (high, low)) in rows.enumerate().take(tile.rows) {
        let row = q.row(tile.batch, tile.head, tile.first + r);
        for ((high, low), x) in high.iter_mut().zip(low).zip(row) {
            [*high, *low] = split(x * scale);
        }
    }
    parts
}

/// Adds the products of `count` tiles of rows, `[high, low]` with `stride` bytes from row to row, with one of weights.
///
/// # Safety
/// There must be `SIDE * count` rows of `STEP` numbers at `rows`.
#[inline(always)]
unsafe fn add<T: Tiles>(
    tiles: &mut T,
    count: usize,
    rows: [*const u16; 2],
    stride: usize,
    weights: &Halves,
    at: usize,
) {
    let part = |all: &[u16]| all[at..at + WEIGHTS].as_ptr().cast::<u8>();
    let [high, low] = rows.map(|rows| rows.cast::<u8>());
    // SAFETY: the rows are there, says the caller, and weights are read from one tile of them.
    unsafe {
        tiles.load_weights(part(&weights.high), 2 * STEP);
        tiles.add_products(count, high, stride);
        tiles.add_products(count, low, stride);
        if let Some(rest) = &weights.low {
            tiles.load_weights(part(rest), 2 * STEP);
            tiles.add_products(count, high, stride);
        }
    }
}

/// The products of the queries with the keys of tile `index`.
#[inline(always)]
fn score<T: Tiles>(
    tiles: &mut T,
    count: usize,
    queries: &[Vec<u16>; 2],
    keys: &Halves,
    index: usize,
    dim: usize,
    scores: &mut Scores,
) {
    for part in 0..KEYS / SIDE {
        // SAFETY: a step of a row ends within the row, of which there are QUERIES in `queries` and in `scores`, at least
        // SIDE * count.
        unsafe {
            tiles.zero();
            for step in 0..dim / STEP {
                let rows = queries.each_ref().map(|rows| rows[step * STEP..].as_ptr());
                let at = (index * KEYS + part * SIDE) * dim + step * WEIGHTS;
                add(tiles, count, rows, 2 * dim, keys, at);
            }
            let to = scores.as_mut_ptr().cast::<f32>().add(part * SIDE);
            tiles.store(count, to.cast(), 4 * KEYS);
        }
    }
}

/// Applies the soft-cap and hides what the queries do not see of the keys of tile `index`.
#[inline(always)]
fn hide<V: Vector>(tile: Tile<'_>, index: usize, scores: &mut Scores) {
    let rows = &mut scores[..tile.rows];
    if let Some(softcap) = tile.softcap {
        cap::<V>(rows.as_flattened_mut(), softcap);
    }
    if let Some(sight) = &tile.sight {
        sight.hide(index, rows);
    }
    let start = index * KEYS;
    if start + KEYS > tile.visible {
        for (r, row) in rows.iter_mut().enumerate() {
            let seen = (tile.visible + r).saturating_sub(start).min(KEYS);
            row[seen..].fill(HIDDEN);
        }
    }
}

impl Softmax {
    /// Turns scores into weights, `[QUERIES][TOGETHER * KEYS]` in two parts.
    #[inline(always)]
    fn add<V: Vector>(&mut self, rows: usize, scores: &[Scores], weights: &mut [Vec<u16>; 2]) {
        let mut tops = self.most;
        for (r, top) in tops.iter_mut().enumerate().take(rows) {
            let mut most = [HIDDEN; SIDE];
            for scores in scores.iter() {
                for chunk in scores[r].as_chunks::<SIDE>().0 {
                    for i in 0..SIDE {
                        most[i] = larger(chunk[i], most[i]);
                    }
                }
            }
            *top = larger(max(&most), *top);
        }
        // All rows at once, as vectors.
        let so_far = self.most.iter().zip(&mut self.totals);
        for ((decay, top), (most, total)) in self.decay.iter_mut().zip(&tops).zip(so_far) {
            *decay = exp::<V>(most - top);
            *total *= *decay;
        }
        self.most = tops;
        let [high, low] = weights;
        let width = TOGETHER * KEYS;
        let weights = high
            .chunks_exact_mut(width)
            .zip(low.chunks_exact_mut(width));
        for (r, (high, low)) in weights.enumerate().take(rows) {
            let mut sums = [0.0; SIDE];
            let parts = high.chunks_exact_mut(KEYS).zip(low.chunks_exact_mut(KEYS));
            for (scores, (high, low)) in scores.iter().zip(parts) {
                let chunks = scores[r].as_chunks::<SIDE>().0.iter();
                let parts = high.as_chunks_mut::<SIDE>().0.iter_mut();
                let parts = parts.zip(low.as_chunks_mut::<SIDE>().0);
                for (chunk, (high, low)) in chunks.zip(parts) {
                    for i in 0..SIDE {
                        let weight = exp::<V>(chunk[i] - tops[r]);
                        sums[i] += weight;
                        [high[i], low[i]] = split_finite(weight);
                    }
                }
            }
            self.totals[r] += sums.iter().sum::<f32>();
        }
    }
}

/// `result [QUERIES][dim] = decay · result + weights · values`, over the tiles of values `first` and following.
#[inline(always)]
fn accumulate<V: Vector, T: Tiles>(
    tiles: &mut T,
    count: usize,
    weights: &[Vec<u16>; 2],
    values: &Halves,
    [first, held]: [usize; 2],
    decay: &[f32; QUERIES],
    result: &mut [f32],
) {
    let dim = result.len() / QUERIES;
    let mut sums = [[0.0f32; SIDE]; QUERIES];
    for part in 0..dim / SIDE {
        // SAFETY: a step of a row ends within the row, of which there are QUERIES in `weights` and in `sums`, at least
        // SIDE * count.
        unsafe {
            tiles.zero();
            for step in 0..held * KEYS / STEP {
                let rows = weights.each_ref().map(|rows| rows[step * STEP..].as_ptr());
                let at = (first * KEYS + step * STEP) * dim + part * WEIGHTS;
                add(tiles, count, rows, 2 * TOGETHER * KEYS, values, at);
            }
            tiles.store(count, sums.as_mut_ptr().cast(), 4 * SIDE);
        }
        let rows = result.chunks_exact_mut(dim).zip(&sums).zip(decay);
        for ((row, sums), decay) in rows.take(SIDE * count) {
            let row = &mut row[part * SIDE..(part + 1) * SIDE];
            for i in 0..SIDE {
                row[i] = fma::<V>(*decay, row[i], sums[i]);
            }
        }
    }
}
