//! Pooling of scores over neighbours in order of position.

use super::simd::{Level, Vector, dispatch};
use crate::ops::Pool;

/// `scores [heads][n]` pooled along `order [heads][n]`, as
/// [`EntryOps::pool_scores`](crate::ops::kernels::EntryOps::pool_scores).
pub fn pool(
    level: Level,
    scores: &[f32],
    order: &[i64],
    entries: usize,
    tail: usize,
    width: usize,
    mode: Pool,
) -> Vec<f32> {
    let old = entries.saturating_sub(tail);
    let half = width / 2;
    // What lies beyond the ends: nothing in a sum, less than all in a maximum.
    let beyond = match mode {
        Pool::Avg => 0.0,
        Pool::Max => f32::NEG_INFINITY,
    };
    let mut pooled = scores.to_vec();
    let mut padded = vec![beyond; old + 2 * half];
    let mut results = vec![0.0; old];
    let heads = order
        .chunks_exact(entries)
        .zip(scores.chunks_exact(entries));
    for ((order, scores), pooled) in heads.zip(pooled.chunks_exact_mut(entries)) {
        for (own, &slot) in padded[half..].iter_mut().zip(&order[..old]) {
            *own = scores[slot as usize];
        }
        let (padded, results) = (&padded[..], &mut results[..]);
        dispatch!(level, fn pool_row(padded: &[f32], results: &mut [f32], width: usize, mode: Pool));
        for (result, &slot) in results.iter().zip(&order[..old]) {
            pooled[slot as usize] = *result;
        }
    }
    pooled
}

/// Each result from the `width` elements that begin at its place.
#[inline(always)]
fn pool_row<V: Vector>(padded: &[f32], results: &mut [f32], width: usize, mode: Pool) {
    let count = results.len();
    results.copy_from_slice(&padded[..count]);
    for shift in 1..width {
        let shifted = &padded[shift..shift + count];
        match mode {
            Pool::Avg => {
                for i in 0..count {
                    results[i] += shifted[i];
                }
            }
            // A NaN stays one, to be reported.
            Pool::Max => {
                for i in 0..count {
                    let x = shifted[i];
                    results[i] = if x > results[i] || x.is_nan() {
                        x
                    } else {
                        results[i]
                    };
                }
            }
        }
    }
    if mode == Pool::Avg {
        let share = 1.0 / width as f32;
        results.iter_mut().for_each(|x| *x *= share);
    }
}
