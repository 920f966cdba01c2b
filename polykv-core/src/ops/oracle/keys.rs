//! Norms and cosines of keys and merging in plain tensor operations.

use super::choice::existing;
use crate::ops::tensor::{take, unit};
use burn::tensor::{DType, IndexingUpdateOp, Int, IntDType, Tensor};

const LEAST: f32 = 1e-12;

/// [`key_norms`](crate::ops::key_norms).
pub fn norms(keys: Tensor<4>) -> Tensor<3> {
    let [batch, kv_heads, entries, _] = keys.dims();
    let squares = keys.cast(DType::F32).square().sum_dim(3);
    squares.sqrt().reshape([batch, kv_heads, entries])
}

/// [`key_cosines`](crate::ops::key_cosines).
pub fn cosines(keys: Tensor<4>, norms: Tensor<3>, anchor: Tensor<4>) -> Tensor<3> {
    let dims = norms.dims();
    let products = (keys.cast(DType::F32) * unit(anchor)).sum_dim(3);
    products.reshape(dims) / norms.clamp_min(LEAST)
}

/// Evicted entries that meet the kept ones at a time.
const BLOCK: usize = 1024;

/// [`closest`](crate::ops::closest), from the norms of all keys.
pub fn closest(
    keys: Tensor<4>,
    norms: Tensor<3>,
    evicted: Tensor<3, Int>,
    kept: Tensor<3, Int>,
) -> (Tensor<3>, Tensor<3, Int>) {
    let dims @ [_, _, count] = evicted.dims();
    let entries = keys.dims()[2];
    let [evicted, kept] = [evicted, kept].map(|slots| existing(slots, entries));
    let units = keys.cast(DType::F32) / norms.clamp_min(LEAST).unsqueeze_dim::<4>(3);
    let staying = take(units.clone(), kept.clone()).swap_dims(2, 3);
    let going = take(units, evicted);
    let (best, places): (Vec<_>, Vec<_>) = (0..count)
        .step_by(BLOCK)
        .map(|first| {
            let some = going.clone().narrow(2, first, BLOCK.min(count - first));
            some.matmul(staying.clone()).max_dim_with_indices(3)
        })
        .unzip();
    let dtype = IntDType::from(kept.dtype());
    (
        Tensor::cat(best, 2).reshape(dims),
        Tensor::cat(places, 2).reshape(dims).cast(dtype),
    )
}

/// [`merge_into`](crate::ops::merge_into).
pub fn merge_into(
    vectors: Tensor<4>,
    evicted: Tensor<3, Int>,
    kept: Tensor<3, Int>,
    places: Tensor<3, Int>,
    parts: Tensor<3>,
) -> Tensor<4> {
    let [batch, kv_heads, staying] = kept.dims();
    let entries = vectors.dims()[2];
    let [evicted, kept] = [evicted, kept].map(|slots| existing(slots, entries));
    let last = staying as i64 - 1;
    let nowhere = places.clone().greater_elem(last);
    let parts = parts.mask_fill(nowhere.bool_or(places.clone().lower_elem(0)), 0.0);
    let places = existing(places, staying);
    let vectors = vectors.cast(DType::F32);
    let slots = kept.gather(2, places.clone());
    let apart = take(vectors.clone(), evicted) - take(vectors, slots);
    let added = apart * parts.unsqueeze_dim::<4>(3);
    let dims @ [_, _, _, d] = added.dims();
    let index = places.unsqueeze_dim::<4>(3).expand(dims);
    Tensor::zeros([batch, kv_heads, staying, d], &added.device()).scatter(
        2,
        index,
        added,
        IndexingUpdateOp::Add,
    )
}

/// [`spread_into`](crate::ops::spread_into), for slots in any order of `evicted`.
pub fn spread_into(
    vectors: Tensor<4>,
    positions: Tensor<3, Int>,
    evicted: Tensor<3, Int>,
    kept: Tensor<3, Int>,
    parts: Tensor<3>,
    window: usize,
) -> Tensor<4> {
    let [batch, kv_heads, going] = evicted.dims();
    let (entries, staying) = (vectors.dims()[2], kept.dims()[2]);
    let [evicted, kept] = [evicted, kept].map(|slots| existing(slots, entries));
    let values = take(vectors, evicted.clone()).cast(DType::F32) * parts.unsqueeze_dim::<4>(3);
    // burn 0.22.1 reads wrong numbers on wgpu where it fuses two gathers of one tensor into a comparison: the other is
    // of a copy.
    let kept_at = positions.clone().gather(2, kept).float();
    let evicted_at = positions.float().gather(2, evicted);
    let ranks = Tensor::<1, Int>::arange(0..staying as i64, &values.device());
    let ranks = ranks.reshape([1, 1, 1, staying]);
    let mut sums = Tensor::zeros(
        [batch, kv_heads, staying, values.dims()[3]],
        &values.device(),
    );
    for start in (0..going).step_by(BLOCK) {
        let count = BLOCK.min(going - start);
        let dims = [batch, kv_heads, count, staying];
        let from = evicted_at.clone().narrow(2, start, count);
        let from = from.unsqueeze_dim::<4>(3).expand(dims);
        let before = kept_at
            .clone()
            .unsqueeze_dim::<4>(2)
            .expand(dims)
            .lower(from);
        let first = before.int().sum_dim(3).expand(dims);
        let behind = ranks.clone().expand(dims) - first;
        let near = behind.clone().greater_equal_elem(0);
        let near = near.bool_and(behind.lower_elem(window as i64)).float();
        let some = values.clone().narrow(2, start, count);
        sums = sums + near.swap_dims(2, 3).matmul(some);
    }
    sums
}
