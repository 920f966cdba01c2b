//! What the last queries of a prompt pay attention to: one task per query head. Queries are the lanes of vectors: keys
//! are read as they lie, and what is summed per query or per key stays in lanes.

use super::bridge::{inner_dense, integers, tensor, widened};
use super::lanes::Lanes;
use super::simd::{LANES, Level, Vector, dispatch, exp, larger};
use super::tiles::HIDDEN;
use super::view::Heads;
use crate::ops::kernels::WindowOps;
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

impl WindowOps for Flex {
    fn window_score(
        q: FlexTensor,
        k: FlexTensor,
        positions: FlexTensor,
        seen: usize,
    ) -> (FlexTensor, FlexTensor) {
        let (q, k) = (inner_dense(q), widened(k));
        let (q, k) = (Heads::of(&q), Heads::of(&k));
        let positions = positions.to_contiguous();
        let (sums, variances) = score(Level::best(), &q, &k, &integers(&positions), seen);
        let dims = [k.batch, k.heads, k.tokens];
        (tensor(sums, dims), tensor(variances, dims))
    }
}

/// `q [batch, heads, w, dim]`, `k [batch, kv_heads, n, dim]`, `positions [batch * kv_heads * n]` → per key the sum over
/// the window and the variance over it, means over the query group, `[batch, kv_heads, n]` each.
pub fn score(
    level: Level,
    q: &Heads<'_>,
    k: &Heads<'_>,
    positions: &[i64],
    seen: usize,
) -> (Vec<f32>, Vec<f32>) {
    let (n, window, group) = (k.tokens, q.tokens, q.heads / k.heads);
    let first = (seen - window) as i64;
    let heads: Vec<Moments> = (0..q.batch * q.heads)
        .into_par_iter()
        .with_max_len(1)
        .map(|i| {
            let kv = i / group;
            let positions = positions[kv * n..(kv + 1) * n].iter().enumerate();
            let at = Window {
                lanes: Lanes {
                    batch: i / q.heads,
                    head: i % q.heads,
                    kv_head: kv % k.heads,
                    queries: 0..window,
                    keys: 0..n,
                },
                late: positions
                    .filter(|(_, position)| **position > first)
                    .map(|(slot, position)| (slot, (position - first) as usize))
                    .collect(),
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
    /// Slots that not all queries see, each with how many do not.
    late: Vec<(usize, usize)>,
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
    for &(slot, hidden) in &at.late {
        for query in 0..hidden {
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

/// Replaces the scores of a block of queries, `rows [n][blocks][LANES]`, by exponentials and returns their sums.
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
    totals
}
