//! The order of entries by position, and pooling of scores over neighbours along it.

use super::bridge::{elements, existing, integer_tensor, integers, tensor};
use super::simd::{Level, Vector, dispatch};
use crate::ops::kernels::OrderOps;
use crate::ops::pool::Pool;
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;

impl OrderOps for Flex {
    fn drop_from_order(order: FlexTensor, victim: FlexTensor, moved: bool) -> FlexTensor {
        let (order, victim) = (order.to_contiguous(), victim.to_contiguous());
        let [batch, heads, entries] = order.layout().shape().dims::<3>();
        let kept = drop_from_order(&integers(&order), &integers(&victim), moved);
        integer_tensor(kept, [batch, heads, entries - 1], order.dtype())
    }

    fn extend_order(order: FlexTensor, count: usize) -> FlexTensor {
        let order = order.to_contiguous();
        let [batch, heads, entries] = order.layout().shape().dims::<3>();
        let slots = integers(&order);
        let new = entries as i64..(entries + count) as i64;
        let of_head = |old: &[i64]| old.iter().copied().chain(new.clone()).collect::<Vec<_>>();
        let all = slots.chunks_exact(entries).flat_map(of_head).collect();
        integer_tensor(all, [batch, heads, entries + count], order.dtype())
    }

    fn pool_scores(
        scores: FlexTensor,
        order: FlexTensor,
        tail: usize,
        width: usize,
        mode: Pool,
    ) -> FlexTensor {
        let (scores, order) = (scores.to_contiguous(), order.to_contiguous());
        let dims = scores.layout().shape().dims::<3>();
        let (values, order) = (elements::<f32>(&scores), integers(&order));
        let pooled = pool(Level::best(), values, &order, dims[2], tail, width, mode);
        tensor(pooled, dims)
    }
}

/// `order [heads][n]` without `victims [heads]`; if `moved`, the last slot is called by the victim's name.
pub fn drop_from_order(order: &[i64], victims: &[i64], moved: bool) -> Vec<i64> {
    let entries = order.len() / victims.len();
    let mut kept = Vec::with_capacity(order.len() - victims.len());
    for (order, &victim) in order.chunks_exact(entries).zip(victims) {
        let first = kept.len();
        let rank = order.iter().position(|&slot| slot == victim);
        let (before, after) = order.split_at(rank.unwrap_or(entries - 1));
        kept.extend_from_slice(before);
        kept.extend_from_slice(&after[1..]);
        if moved {
            let last = entries as i64 - 1;
            let renamed = kept[first..].iter_mut().rev().find(|slot| **slot == last);
            renamed.into_iter().for_each(|slot| *slot = victim);
        }
    }
    kept
}

/// `scores [heads][n]` pooled along `order [heads][n]`.
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
        for (score, &slot) in padded[half..].iter_mut().zip(&order[..old]) {
            *score = scores[existing(slot, entries)];
        }
        let (padded, results) = (&padded[..], &mut results[..]);
        dispatch!(level, fn pool_row(padded: &[f32], results: &mut [f32], width: usize, mode: Pool));
        for (result, &slot) in results.iter().zip(&order[..old]) {
            pooled[existing(slot, entries)] = *result;
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
