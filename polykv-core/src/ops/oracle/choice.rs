//! Choices without kernels: on the host, or by comparing every score with every other.

use crate::ops::protect::Protected;
use crate::ops::tensor::{put, read_error};
use crate::{Error, Result};
use burn::tensor::{Bool, IndexingUpdateOp, Int, IntDType, Tensor, TensorData};

/// [`select`](crate::ops::select), on the host.
///
/// # Errors
/// A NaN score, and a device that cannot be read.
pub fn select(
    scores: Tensor<3>,
    positions: Tensor<3, Int>,
    protected: Protected<'_>,
    budget: usize,
) -> Result<Tensor<3, Int>> {
    let [batch, kv_heads, entries] = scores.dims();
    let device = scores.device();
    let scores: Vec<f32> = scores.try_into_vec_as().map_err(read_error)?;
    let positions: Vec<i64> = positions.try_into_vec_as().map_err(read_error)?;
    if scores.iter().any(|score| score.is_nan()) {
        return Err(Error::NotFinite("an eviction score is NaN".into()));
    }
    let guard = protected.guard();
    let heads = scores
        .chunks_exact(entries)
        .zip(positions.chunks_exact(entries));
    let kept = heads.flat_map(|(scores, positions)| {
        let safe = |slot: usize| guard.contains(positions[slot]);
        let mut slots: Vec<usize> = (0..entries).collect();
        slots.sort_by(|&a, &b| {
            safe(b)
                .cmp(&safe(a))
                .then(scores[b].total_cmp(&scores[a]))
                .then(positions[b].cmp(&positions[a]))
        });
        slots.truncate(budget);
        slots.sort_unstable_by_key(|&slot| positions[slot]);
        slots.into_iter().map(|slot| slot as i64)
    });
    let data = TensorData::new(kept.collect(), [batch, kv_heads, budget]);
    Ok(Tensor::from_data(data, &device))
}

/// [`drop_lowest`](crate::ops::drop_lowest), in plain tensor operations.
pub fn lowest(
    scores: Tensor<3>,
    positions: Tensor<3, Int>,
    protected: Protected<'_>,
) -> Tensor<3, Int> {
    let guarded = match protected.is_empty() {
        true => scores,
        false => scores.mask_fill(protected.mask(positions.clone()), f32::MAX),
    };
    let [_, _, entries] = guarded.dims();
    let lowest = guarded.clone().min_dim(2).repeat_dim(2, entries);
    // Pooling makes equal scores common: the choice between them must not depend on slots.
    let dtype = IntDType::from(positions.dtype());
    positions
        .mask_fill(guarded.greater(lowest), i32::MAX)
        .argmin(2)
        .cast(dtype)
}

/// Slots below `n`; what is no such number counts as n − 1.
pub(crate) fn existing(slots: Tensor<3, Int>, n: usize) -> Tensor<3, Int> {
    let last = n as i64 - 1;
    let beyond = slots.clone().greater_elem(last);
    let wrong = slots.clone().lower_elem(0).bool_or(beyond);
    slots.mask_fill(wrong, last)
}

/// [`move_last`](crate::ops::move_last).
pub fn move_last<const D: usize>(statistics: Tensor<D>, victim: Tensor<3, Int>) -> Tensor<D> {
    let mut dims = statistics.dims();
    let [batch, kv_heads, entries] = [dims[0], dims[1], dims[2]];
    let width = dims[3..].iter().product();
    let rows = statistics.reshape([batch, kv_heads, entries, width]);
    let last = rows.clone().narrow(2, entries - 1, 1);
    let moved = put(rows, existing(victim, entries), last).narrow(2, 0, entries - 1);
    dims[2] -= 1;
    moved.reshape(dims)
}

/// [`drop_from_order`](crate::ops::drop_from_order).
pub fn drop_from_order(
    order: Tensor<3, Int>,
    victim: Tensor<3, Int>,
    moved: bool,
) -> Tensor<3, Int> {
    let dims @ [batch, kv_heads, entries] = order.dims();
    let kept = [batch, kv_heads, entries - 1];
    let device = order.device();
    let dtype = IntDType::from(order.dtype());
    let ranks = |count: usize| {
        Tensor::<1, Int>::arange(0..count as i64, &device)
            .cast(dtype)
            .reshape([1, 1, count])
            .expand([batch, kv_heads, count])
    };
    // rank[slot]: the inverse permutation, read at the victim.
    let rank = Tensor::<3, Int>::zeros(dims, &device)
        .cast(dtype)
        .scatter(2, order.clone(), ranks(entries), IndexingUpdateOp::Assign)
        .gather(2, existing(victim.clone(), entries));
    let index = ranks(entries - 1);
    let skip = index
        .clone()
        .greater_equal(rank.expand(kept))
        .int()
        .cast(dtype);
    let order = order.gather(2, index + skip);
    match moved {
        true => {
            let last = order.clone().equal_elem((entries - 1) as i64);
            order.mask_where(last, victim.expand(kept))
        }
        false => order,
    }
}

/// [`extend_order`](crate::ops::extend_order).
pub fn extend_order(order: Tensor<3, Int>, count: usize) -> Tensor<3, Int> {
    let [batch, kv_heads, entries] = order.dims();
    let dtype = IntDType::from(order.dtype());
    let new = entries as i64..(entries + count) as i64;
    let new = Tensor::<1, Int>::arange(new, &order.device())
        .cast(dtype)
        .reshape([1, 1, count])
        .expand([batch, kv_heads, count]);
    Tensor::cat(vec![order, new], 2)
}

/// Columns that are compared at a time: bounds the memory of [`top`].
const BLOCK: usize = 256;

/// [`top`](crate::ops::top). Nothing waits for the device; every score is compared with every other.
pub fn top(scores: Tensor<3>, positions: Tensor<3, Int>, count: usize) -> Tensor<3, Bool> {
    let [batch, kv_heads, entries] = scores.dims();
    let mut better = scores.zeros_like();
    for first in (0..entries).step_by(BLOCK) {
        let width = BLOCK.min(entries - first);
        let dims = [batch, kv_heads, entries, width];
        let other = scores.clone().narrow(2, first, width);
        let other = other.unsqueeze_dim::<4>(2).expand(dims);
        let score = scores.clone().unsqueeze_dim::<4>(3).expand(dims);
        let later = positions.clone().narrow(2, first, width);
        let later = later.unsqueeze_dim::<4>(2).expand(dims);
        let later = later.greater(positions.clone().unsqueeze_dim::<4>(3).expand(dims));
        let before = other.clone().greater(score.clone());
        let before = before.bool_or(other.equal(score).bool_and(later));
        let sums = before.float().sum_dim(3);
        better = better + sums.reshape([batch, kv_heads, entries]);
    }
    better.lower_elem(count as f32)
}
