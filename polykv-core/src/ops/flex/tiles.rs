//! Tiles of queries and keys whose products stay in registers.

use super::mask::{Sight, cap};
use super::simd::{Vector, fma};
use super::view::Heads;
use rayon::prelude::*;

/// Queries per tile. With `WIDTH` it makes a register tile that fits AVX2's 16 registers, AVX-512's and NEON's.
pub const ROWS: usize = 6;
/// Keys per tile, a multiple of `WIDTH`.
pub const KEYS: usize = 64;
/// Elements that a register tile is wide.
pub const WIDTH: usize = 16;

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

/// `count` keys in tiles of `KEYS`, each `[KEYS / WIDTH][dim][WIDTH]`, zeros beyond the last.
pub fn pack<'a>(keys: impl Iterator<Item = &'a [f32]>, count: usize, dim: usize) -> Vec<f32> {
    let mut output = vec![0.0; count.div_ceil(KEYS) * KEYS * dim];
    for (t, key) in keys.enumerate() {
        let (part, i) = (t / WIDTH, t % WIDTH);
        let output = &mut output[part * dim * WIDTH..(part + 1) * dim * WIDTH];
        for (d, x) in key.iter().enumerate() {
            output[d * WIDTH + i] = *x;
        }
    }
    output
}

/// The keys of each KV head, as [`pack`].
pub fn pack_all(k: &Heads<'_>) -> Vec<Vec<f32>> {
    (0..k.batch * k.heads)
        .into_par_iter()
        .map(|i| {
            let keys = (0..k.tokens).map(|t| k.row(i / k.heads, i % k.heads, t));
            pack(keys, k.tokens, k.dim)
        })
        .collect()
}

/// A tile of consecutive queries of one head.
#[derive(Clone, Copy)]
pub struct Tile<'a> {
    pub batch: usize,
    pub head: usize,
    /// First query and how many.
    pub first: usize,
    pub rows: usize,
    /// Keys that the first query sees; each later one sees one more.
    pub visible: usize,
    pub softcap: Option<f32>,
    /// The window of the first query, if there is one.
    pub sight: Option<Sight<'a>>,
}

impl Tile<'_> {
    /// For rows that are no queries: nothing is hidden.
    pub fn of_all() -> Self {
        Self {
            batch: 0,
            head: 0,
            first: 0,
            rows: ROWS,
            visible: usize::MAX / 2,
            softcap: None,
            sight: None,
        }
    }

    pub fn last_visible(&self) -> usize {
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
pub type Scores = [[f32; KEYS]; ROWS];

#[inline(always)]
pub fn scores<V: Vector>(
    tile: Tile<'_>,
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
    if let Some(softcap) = tile.softcap {
        cap::<V>(scores.as_flattened_mut(), softcap);
    }
    if let Some(sight) = &tile.sight {
        sight.hide(start / KEYS, &mut scores);
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
pub const HIDDEN: f32 = -1e30;
