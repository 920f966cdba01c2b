//! Norms and cosines of keys, and merging of evicted entries, for policies that compare entries. Keys and values have the
//! type in which the cache stores them. A slot that is no number below n counts as n − 1.

use super::kernels::{KeyOps, MergeOps, kernel};
use super::oracle;
use super::route::Route;
use burn::tensor::{Int, Tensor};

/// The norms ‖k‖₂ of `keys [batch, kv_heads, n, d]`: `[batch, kv_heads, n]` in f32.
pub fn key_norms(keys: Tensor<4>) -> Tensor<3> {
    match Route::on(&keys.device()) {
        Route::Plain => oracle::keys::norms(keys),
        _ => kernel!(KeyOps::key_norms(keys)),
    }
}

/// The cosine between each of `keys [batch, kv_heads, n, d]` and its head's `anchor [batch, kv_heads, 1, d]` in f32, where
/// `norms [batch, kv_heads, n]` are those of the keys, see [`key_norms`]: `[batch, kv_heads, n]`. The cosine with a vector
/// of zeros is 0.
///
/// # Panics
/// If the shapes do not fit.
pub fn key_cosines(keys: Tensor<4>, norms: Tensor<3>, anchor: Tensor<4>) -> Tensor<3> {
    let [batch, kv_heads, entries, d] = keys.dims();
    assert_eq!(norms.dims(), [batch, kv_heads, entries], "a norm per key");
    assert_eq!(anchor.dims(), [batch, kv_heads, 1, d], "an anchor per head");
    let route = Route::on(&keys.device()).if_f32(&norms).if_f32(&anchor);
    match route {
        Route::Plain => oracle::keys::cosines(keys, norms, anchor),
        _ => kernel!(KeyOps::key_cosines(keys, norms, anchor)),
    }
}

/// For each key in the slots `evicted [batch, kv_heads, e]`, the largest cosine with a key in the slots `kept [batch,
/// kv_heads, m]`, and the index of that key in `kept`: `[batch, kv_heads, e]` each.
///
/// # Panics
/// If the shapes do not fit, and without entries that stay.
pub fn closest(
    keys: Tensor<4>,
    evicted: Tensor<3, Int>,
    kept: Tensor<3, Int>,
) -> (Tensor<3>, Tensor<3, Int>) {
    check_slots(&keys, &evicted, &kept);
    let device = keys.device();
    let norms = key_norms(keys.clone());
    // A unit of the GPU kernel compares one key with all that stay.
    let rounds = kept.dims()[2] * (keys.dims()[3] + 1);
    let route = Route::on(&device).if_alike([evicted.dtype(), kept.dtype()]);
    match route.for_rounds(&device, rounds) {
        Route::Plain => oracle::keys::closest(keys, norms, evicted, kept),
        _ => kernel!(KeyOps::closest(keys, norms, evicted, kept)),
    }
}

/// What is added to kept vectors when evicted ones are merged into them. For the `i`th evicted slot, `parts[i]` times the
/// difference between its vector and that in slot `kept[places[i]]` is added to the latter. `vectors [batch, kv_heads, n,
/// d]`, `evicted`, `parts` and `places [batch, kv_heads, e]`, `kept [batch, kv_heads, m]` → `[batch, kv_heads, m, d]` in
/// f32. A place that is no number below m adds nothing.
///
/// # Panics
/// If the shapes do not fit, and without entries that stay.
pub fn merge_into(
    vectors: Tensor<4>,
    evicted: Tensor<3, Int>,
    kept: Tensor<3, Int>,
    places: Tensor<3, Int>,
    parts: Tensor<3>,
) -> Tensor<4> {
    check_slots(&vectors, &evicted, &kept);
    assert_eq!(places.dims(), evicted.dims(), "a place per evicted entry");
    assert_eq!(parts.dims(), evicted.dims(), "a part per evicted entry");
    let device = vectors.device();
    let rounds = evicted.dims()[2];
    let types = [evicted.dtype(), kept.dtype(), places.dtype()];
    let route = Route::on(&device).if_alike(types).if_f32(&parts);
    match route.for_rounds(&device, rounds) {
        Route::Plain => oracle::keys::merge_into(vectors, evicted, kept, places, parts),
        _ => kernel!(MergeOps::merge_into(vectors, evicted, kept, places, parts)),
    }
}

/// What is added to kept vectors when each evicted one is spread over those that follow it. `parts[i]` times the `i`th evicted
/// vector is added to each of the next `window` (at least 1) kept entries behind its position, or to all that follow if
/// there are fewer. `vectors [batch, kv_heads, n, d]`, `positions [batch, kv_heads, n]`, `parts [batch, kv_heads, e]` →
/// `[batch, kv_heads, m, d]` in f32. The slots `evicted [batch, kv_heads, e]` and `kept [batch, kv_heads, m]` must be in
/// ascending order of position.
///
/// # Panics
/// If the shapes do not fit, without entries that stay, and for a window of 0.
pub fn spread_into(
    vectors: Tensor<4>,
    positions: Tensor<3, Int>,
    evicted: Tensor<3, Int>,
    kept: Tensor<3, Int>,
    parts: Tensor<3>,
    window: usize,
) -> Tensor<4> {
    check_slots(&vectors, &evicted, &kept);
    let [batch, kv_heads, entries, _] = vectors.dims();
    let dims = [batch, kv_heads, entries];
    assert_eq!(positions.dims(), dims, "a position per entry");
    assert_eq!(parts.dims(), evicted.dims(), "a part per evicted entry");
    assert!(window > 0, "a window of at least one entry");
    let device = vectors.device();
    let rounds = evicted.dims()[2];
    let types = [evicted.dtype(), kept.dtype(), positions.dtype()];
    let route = Route::on(&device).if_alike(types).if_f32(&parts);
    match route.for_rounds(&device, rounds) {
        Route::Plain => oracle::keys::spread_into(vectors, positions, evicted, kept, parts, window),
        _ => {
            kernel!(MergeOps::spread_into(
                vectors, positions, evicted, kept, parts, window
            ))
        }
    }
}

/// The shapes of slots that go and of slots that stay.
fn check_slots(vectors: &Tensor<4>, evicted: &Tensor<3, Int>, kept: &Tensor<3, Int>) {
    let [batch, kv_heads, ..] = vectors.dims();
    for slots in [evicted, kept] {
        let [sequences, heads, count] = slots.dims();
        assert_eq!([sequences, heads], [batch, kv_heads], "slots of every head");
        assert!(count > 0, "at least one slot");
    }
}
