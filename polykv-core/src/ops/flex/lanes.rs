//! Products of queries, as the lanes of vectors, with keys as they lie.

use super::simd::{LANES, Vector};
use super::view::Heads;
use std::ops::Range;

/// Keys whose products with a block of queries stay in registers.
const KEYS: usize = 6;

/// Queries of a head, in blocks of `LANES`, and keys.
pub struct Lanes {
    pub batch: usize,
    pub head: usize,
    pub kv_head: usize,
    pub queries: Range<usize>,
    pub keys: Range<usize>,
}

impl Lanes {
    pub fn blocks(&self) -> usize {
        self.queries.len().div_ceil(LANES)
    }

    /// Scaled products of the queries with the keys, `[keys][blocks][LANES]`; lanes beyond the last query are zeros.
    #[inline(always)]
    pub fn products<V: Vector>(&self, q: &Heads<'_>, k: &Heads<'_>, rows: &mut [[f32; LANES]]) {
        let mut block = 0;
        while block < self.blocks() {
            block += match V::WIDE && block + 2 <= self.blocks() {
                true => products::<V, 2>(self, q, k, block, rows),
                false => products::<V, 1>(self, q, k, block, rows),
            };
        }
    }
}

/// The part of [`Lanes::products`] that the `B` blocks from `block` on make; returns `B`.
#[inline(always)]
fn products<V: Vector, const B: usize>(
    at: &Lanes,
    q: &Heads<'_>,
    k: &Heads<'_>,
    block: usize,
    rows: &mut [[f32; LANES]],
) -> usize {
    let blocks = at.blocks();
    let scale = 1.0 / (q.dim as f32).sqrt();
    let mut queries = vec![[[0.0; LANES]; B]; q.dim];
    for query in block * LANES..at.queries.len().min((block + B) * LANES) {
        let (b, lane) = (query / LANES - block, query % LANES);
        let row = q.row(at.batch, at.head, at.queries.start + query);
        for (lanes, x) in queries.iter_mut().zip(row) {
            lanes[b][lane] = x * scale;
        }
    }
    let key = |token: usize| k.row(at.batch, at.kv_head, token);
    let mut rows = rows.chunks_exact_mut(KEYS * blocks);
    let mut token = at.keys.start;
    for rows in &mut rows {
        let keys = std::array::from_fn(|r| key(token + r));
        let sums = tile::<V, KEYS, B>(keys, &queries);
        for r in 0..KEYS {
            for b in 0..B {
                rows[r * blocks + block + b] = sums[r][b].lanes();
            }
        }
        token += KEYS;
    }
    for row in rows.into_remainder().chunks_exact_mut(blocks) {
        let [sums] = tile::<V, 1, B>([key(token)], &queries);
        for b in 0..B {
            row[block + b] = sums[b].lanes();
        }
        token += 1;
    }
    B
}

#[inline(always)]
fn tile<V: Vector, const R: usize, const B: usize>(
    keys: [&[f32]; R],
    queries: &[[[f32; LANES]; B]],
) -> [[V; B]; R] {
    let mut sums = [[V::splat(0.0); B]; R];
    for key in keys {
        assert!(key.len() == queries.len());
    }
    for (d, query) in queries.iter().enumerate() {
        for r in 0..R {
            let x = V::splat(keys[r][d]);
            for b in 0..B {
                sums[r][b] = V::load(&query[b]).mul_add(x, sums[r][b]);
            }
        }
    }
    sums
}
