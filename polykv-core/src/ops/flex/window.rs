//! What the last queries of a prompt pay attention to: one task per query head. Queries are the lanes of vectors: keys
//! are read as they lie, and what is summed per query or per key stays in lanes.

use super::bridge::{inner_dense, integers, tensor, widened};
use super::lanes::Lanes;
use super::mask::cap;
use super::simd::{LANES, Level, Vector, dispatch, exp, larger};
use super::tiles::HIDDEN;
use super::view::Heads;
use crate::ops::kernels::WindowOps;
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;
use std::ops::Range;

impl WindowOps for Flex {
    fn window_score(
        q: FlexTensor,
        k: FlexTensor,
        positions: FlexTensor,
        seen: usize,
        window: Option<usize>,
        softcap: Option<f32>,
    ) -> (FlexTensor, FlexTensor) {
        let (q, k) = (inner_dense(q), widened(k));
        let (q, k) = (Heads::of(&q), Heads::of(&k));
        let positions = positions.to_contiguous();
        let places = Places {
            positions: &integers(&positions),
            seen,
            window,
        };
        let (sums, variances) = score(Level::best(), &q, &k, places, softcap);
        let dims = [k.batch, k.heads, k.tokens];
        (tensor(sums, dims), tensor(variances, dims))
    }
}

/// See [`Places`](crate::ops::Places); positions `[batch * kv_heads * n]`.
#[derive(Clone, Copy)]
pub struct Places<'a> {
    pub positions: &'a [i64],
    pub seen: usize,
    pub window: Option<usize>,
}

impl Places<'_> {
    /// Which of the last `queries` see the entry at a position.
    fn queries(&self, position: i64, queries: usize) -> Range<usize> {
        let first = (self.seen - queries) as i64;
        let index = |query: i64| query.clamp(0, queries as i64) as usize;
        let window = self.window.and_then(|window| i64::try_from(window).ok());
        let end = window.map_or(queries, |window| {
            index(position.saturating_add(window).saturating_sub(first))
        });
        index(position.saturating_sub(first))..end
    }
}

/// `q [batch, heads, w, dim]`, `k [batch, kv_heads, n, dim]` → per key the sum over the last `w` queries and the variance
/// over them, means over the query group, `[batch, kv_heads, n]` each.
pub fn score(
    level: Level,
    q: &Heads<'_>,
    k: &Heads<'_>,
    places: Places<'_>,
    softcap: Option<f32>,
) -> (Vec<f32>, Vec<f32>) {
    let (n, window, group) = (k.tokens, q.tokens, q.heads / k.heads);
    let heads: Vec<Moments> = (0..q.batch * q.heads)
        .into_par_iter()
        .with_max_len(1)
        .map(|i| {
            let kv = i / group;
            let positions = places.positions[kv * n..(kv + 1) * n].iter().enumerate();
            let seen_by = positions.map(|(slot, &at)| (slot, places.queries(at, window)));
            let at = Window {
                lanes: Lanes {
                    batch: i / q.heads,
                    head: i % q.heads,
                    kv_head: kv % k.heads,
                    queries: 0..window,
                    keys: 0..n,
                },
                partly: seen_by.filter(|(_, by)| by.len() < window).collect(),
                softcap,
            };
            let at = &at;
            dispatch!(level, fn head_moments(at: &Window, q: &Heads<'_>, k: &Heads<'_>) -> Moments)
        })
        .collect();
    let mut sums = vec![0.0; k.batch * k.heads * n];
    let mut variances = vec![0.0; k.batch * k.heads * n];
    let sum_share = window as f32 / group as f32;
    let variance_share = 1.0 / (group * (window.max(2) - 1)) as f32;
    for (i, head) in heads.iter().enumerate() {
        let at = i / group * n..(i / group + 1) * n;
        let of_key = head.means.iter().zip(&head.squares);
        let results = sums[at.clone()].iter_mut().zip(&mut variances[at]);
        for ((sum, variance), (mean, squares)) in results.zip(of_key) {
            *sum += mean * sum_share;
            *variance += squares * variance_share;
        }
    }
    (sums, variances)
}

/// The window's queries of one head.
struct Window {
    lanes: Lanes,
    /// Slots that not all queries see, each with those that do.
    partly: Vec<(usize, Range<usize>)>,
    softcap: Option<f32>,
}

/// Of a head's probabilities, per key: the mean over the queries and the sum of squared deviations from it.
struct Moments {
    means: Vec<f32>,
    squares: Vec<f32>,
}

#[inline(always)]
fn head_moments<V: Vector>(at: &Window, q: &Heads<'_>, k: &Heads<'_>) -> Moments {
    let (n, window) = (k.tokens, q.tokens);
    let blocks = at.lanes.blocks();
    let mut rows = vec![[0.0; LANES]; n * blocks];
    at.lanes.products::<V>(q, k, &mut rows);
    if let Some(softcap) = at.softcap {
        cap::<V>(rows.as_flattened_mut(), softcap);
    }
    for (slot, seen_by) in &at.partly {
        for query in (0..seen_by.start.min(window)).chain(seen_by.end..window) {
            rows[slot * blocks + query / LANES][query % LANES] = HIDDEN;
        }
    }
    // Lanes beyond the last query count for nothing.
    let mut shares = vec![[0.0; LANES]; blocks];
    let mut counted = vec![[0.0; LANES]; blocks];
    for block in 0..blocks {
        let totals = exponentials::<V>(&mut rows, block, blocks);
        for i in 0..LANES.min(window - block * LANES) {
            shares[block][i] = 1.0 / totals[i];
            counted[block][i] = 1.0;
        }
    }
    let mut moments = Moments {
        means: Vec::with_capacity(n),
        squares: Vec::with_capacity(n),
    };
    for row in rows.chunks_exact(blocks) {
        let mut sum = V::splat(0.0);
        for block in 0..blocks {
            sum = V::load(&row[block]).mul_add(V::load(&shares[block]), sum);
        }
        let mean = sum.sum() / window as f32;
        let mut squares = V::splat(0.0);
        for block in 0..blocks {
            let apart = V::load(&row[block]).mul_add(V::load(&shares[block]), V::splat(-mean));
            let apart = apart.mul_add(V::load(&counted[block]), V::splat(0.0));
            squares = apart.mul_add(apart, squares);
        }
        moments.means.push(mean);
        moments.squares.push(squares.sum());
    }
    moments
}

/// Replaces the scores of a block of queries, `rows [n][blocks][LANES]`, by exponentials and returns their sums, infinite
/// for a query that sees nothing.
#[inline(always)]
fn exponentials<V: Vector>(rows: &mut [[f32; LANES]], block: usize, blocks: usize) -> [f32; LANES] {
    let mut most = [HIDDEN; LANES];
    for row in rows[block..].iter().step_by(blocks) {
        for i in 0..LANES {
            most[i] = larger(row[i], most[i]);
        }
    }
    let mut totals = [0.0; LANES];
    for row in rows[block..].iter_mut().step_by(blocks) {
        for i in 0..LANES {
            row[i] = exp::<V>(row[i] - most[i]);
            totals[i] += row[i];
        }
    }
    for i in 0..LANES {
        if most[i] <= HIDDEN {
            totals[i] = f32::INFINITY;
        }
    }
    totals
}
