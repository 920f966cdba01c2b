//! Likeness of keys in plain tensor operations.

use crate::ops::{take, unit};
use burn::tensor::{DType, IndexingUpdateOp, Int, IntDType, Tensor};

const LEAST: f32 = 1e-12;

/// As [`key_norms`](crate::ops::key_norms).
pub fn norms(keys: Tensor<4>) -> Tensor<3> {
    let [batch, kv_heads, entries, _] = keys.dims();
    let squares = keys.cast(DType::F32).square().sum_dim(3);
    squares.sqrt().reshape([batch, kv_heads, entries])
}

/// As [`key_cosines`](crate::ops::key_cosines).
pub fn cosines(keys: Tensor<4>, norms: Tensor<3>, anchor: Tensor<4>) -> Tensor<3> {
    let dims = norms.dims();
    let products = (keys.cast(DType::F32) * unit(anchor)).sum_dim(3);
    products.reshape(dims) / norms.clamp_min(LEAST)
}

/// Evicted entries that are compared with the kept ones at a time.
const BLOCK: usize = 1024;

/// As [`closest`](crate::ops::closest), from the norms of all keys.
pub fn closest(
    keys: Tensor<4>,
    norms: Tensor<3>,
    evicted: Tensor<3, Int>,
    kept: Tensor<3, Int>,
) -> (Tensor<3>, Tensor<3, Int>) {
    let dims @ [_, _, count] = evicted.dims();
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

/// As [`merge_into`](crate::ops::merge_into).
pub fn merge_into(
    vectors: Tensor<4>,
    evicted: Tensor<3, Int>,
    kept: Tensor<3, Int>,
    places: Tensor<3, Int>,
    parts: Tensor<3>,
) -> Tensor<4> {
    let [batch, kv_heads, staying] = kept.dims();
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
