//! Norms and cosines of keys, and merging evicted entries into those that stay.
//!
//! Shapes: keys or values `[batch, kv_heads, n, d]` as they are stored, norms `[batch, kv_heads, n]`; slots `evicted
//! [batch, kv_heads, e]` and `kept [batch, kv_heads, m]`; results are f32. Norms count as 1e-12 at least. A slot that is
//! no number below n counts as n − 1.

#[cfg(feature = "cube")]
use super::shapes;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};

/// Comparing keys.
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
    Flex: cfg(feature = "flex"),
)]
pub trait KeyOps: Backend {
    /// ‖k‖₂: `[batch, kv_heads, n]`.
    #[fusion(meta = |keys| shapes::norms(keys))]
    fn key_norms(keys: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The cosine of each key and its head's `anchor [batch, kv_heads, 1, d]` in f32: `[batch, kv_heads, n]`.
    #[fusion(meta = |_keys, norms, _anchor| norms.clone())]
    fn key_cosines(
        keys: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        anchor: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// For each evicted key the largest cosine with one that is kept, and the place of that one in `kept`, the first of
    /// equal ones: `[batch, kv_heads, e]` each.
    #[fusion(meta = |_keys, norms, evicted, _kept| {
        let dims = [evicted.shape[0], evicted.shape[1], evicted.shape[2]];
        (shapes::like(norms, dims), evicted.clone())
    })]
    fn closest(
        keys: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        evicted: IntTensor<Self>,
        kept: IntTensor<Self>,
    ) -> (FloatTensor<Self>, IntTensor<Self>);
}

/// What evicted entries add to kept ones.
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
    Flex: cfg(feature = "flex"),
)]
pub trait MergeOps: Backend {
    /// Per kept entry the sum, over the evicted ones whose place in `kept` it is, of `parts` times what lies between
    /// the two: `places` and `parts [batch, kv_heads, e]` → `[batch, kv_heads, m, d]`. A place that is no
    /// number below m adds nothing.
    #[fusion(meta = |vectors, _evicted, kept, _places, parts| {
        shapes::like(parts, [kept.shape[0], kept.shape[1], kept.shape[2], vectors.shape[3]])
    })]
    fn merge_into(
        vectors: FloatTensor<Self>,
        evicted: IntTensor<Self>,
        kept: IntTensor<Self>,
        places: IntTensor<Self>,
        parts: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Per kept entry the sum, over the evicted ones that it is one of the next `window` kept ones behind, of `parts
    /// [batch, kv_heads, e]` times their vector: `[batch, kv_heads, m, d]`. `evicted` and `kept` are in order of
    /// `positions [batch, kv_heads, n]`, `window` is at least 1.
    #[fusion(meta = |vectors, _positions, _evicted, kept, parts, _window| {
        shapes::like(parts, [kept.shape[0], kept.shape[1], kept.shape[2], vectors.shape[3]])
    })]
    fn spread_into(
        vectors: FloatTensor<Self>,
        positions: IntTensor<Self>,
        evicted: IntTensor<Self>,
        kept: IntTensor<Self>,
        parts: FloatTensor<Self>,
        window: usize,
    ) -> FloatTensor<Self>;
}
