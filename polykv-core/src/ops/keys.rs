//! Likeness of keys, for policies that compare or merge them. Keys and values are as the cache stores them.

use super::{kernels, oracle};
use burn::tensor::{Int, Tensor};

/// ‖k‖₂ of keys `[batch, kv_heads, n, d]`: `[batch, kv_heads, n]`.
pub fn key_norms(keys: Tensor<4>) -> Tensor<3> {
    match kernels::moves_entries(&keys.device()) {
        true => kernels::key_norms(keys),
        false => oracle::keys::norms(keys),
    }
}

/// The cosine of each key of `[batch, kv_heads, n, d]` and its head's `anchor [batch, kv_heads, 1, d]` in f32, from the
/// keys' [`key_norms`]: `[batch, kv_heads, n]`. With a vector of zeros it is 0.
pub fn key_cosines(keys: Tensor<4>, norms: Tensor<3>, anchor: Tensor<4>) -> Tensor<3> {
    match kernels::moves_entries(&keys.device()) {
        true => kernels::key_cosines(keys, norms, anchor),
        false => oracle::keys::cosines(keys, norms, anchor),
    }
}

/// For each key in the slots `evicted [batch, kv_heads, e]` the largest cosine with one in the slots `kept [batch,
/// kv_heads, m]`, and that one's place among them: `[batch, kv_heads, e]` each.
pub fn closest(
    keys: Tensor<4>,
    evicted: Tensor<3, Int>,
    kept: Tensor<3, Int>,
) -> (Tensor<3>, Tensor<3, Int>) {
    let device = keys.device();
    let norms = key_norms(keys.clone());
    // A unit of the GPU kernel compares one key with all that stay.
    let rounds = kept.dims()[2] * (keys.dims()[3] + 1);
    match kernels::moves_entries(&device) && kernels::has_rounds(&device, rounds) {
        true => kernels::closest(keys, norms, evicted, kept),
        false => oracle::keys::closest(keys, norms, evicted, kept),
    }
}

/// What the evicted entries add to those that stay: of `vectors [batch, kv_heads, n, d]`, for the `i`th evicted slot,
/// `parts[i]` times its distance to the slot at `places[i]` in `kept`; `parts` and `places [batch, kv_heads, e]` →
/// `[batch, kv_heads, m, d]` in f32.
pub fn merge_into(
    vectors: Tensor<4>,
    evicted: Tensor<3, Int>,
    kept: Tensor<3, Int>,
    places: Tensor<3, Int>,
    parts: Tensor<3>,
) -> Tensor<4> {
    let device = vectors.device();
    let rounds = evicted.dims()[2];
    match kernels::moves_entries(&device) && kernels::has_rounds(&device, rounds) {
        true => kernels::merge_into(vectors, evicted, kept, places, parts),
        false => oracle::keys::merge_into(vectors, evicted, kept, places, parts),
    }
}

/// What the evicted entries leave to the kept ones that follow them: of `vectors [batch, kv_heads, n, d]`, `parts[i]`
/// times the `i`th evicted one goes to each of the next `window` (at least 1) kept entries behind its position, near the
/// end to fewer. `positions [batch, kv_heads, n]`, `parts [batch, kv_heads, e]` → `[batch, kv_heads, m, d]` in f32. The
/// slots `evicted [batch, kv_heads, e]` and `kept [batch, kv_heads, m]` are in ascending order of position.
pub fn spread_into(
    vectors: Tensor<4>,
    positions: Tensor<3, Int>,
    evicted: Tensor<3, Int>,
    kept: Tensor<3, Int>,
    parts: Tensor<3>,
    window: usize,
) -> Tensor<4> {
    let device = vectors.device();
    let rounds = evicted.dims()[2];
    match kernels::moves_entries(&device) && kernels::has_rounds(&device, rounds) {
        true => kernels::spread_into(vectors, positions, evicted, kept, parts, window),
        false => oracle::keys::spread_into(vectors, positions, evicted, kept, parts, window),
    }
}
