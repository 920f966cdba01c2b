//! Attention, and what policies want to know of it.
//!
//! Shapes: `q [batch, heads, t, d]` in f32, `k`, `v [batch, kv_heads, n, d]` as they are stored, `heads` a multiple of
//! `kv_heads`; scores `[batch, kv_heads, n]`; results are f32. Integers have the type of `positions`.

#[cfg(feature = "cube")]
use super::shapes;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, ExtensionType, backend_extension};

/// What stands between scaled products and the softmax, see [`Mask`](crate::ops::Mask).
#[derive(Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub struct Mask<B: Backend> {
    pub softcap: Option<f32>,
    #[extension_type]
    pub window: Window<B>,
}

/// Which keys a query sees beside those that come after it, which it never sees.
#[derive(Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum Window<B: Backend> {
    /// All.
    None,
    /// Those at the latest `size` positions up to its own; the last query's is `seen − 1`.
    Latest {
        /// `[batch, kv_heads, n]`
        positions: IntTensor<B>,
        size: usize,
        seen: usize,
    },
}

/// Attention of many queries.
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
    Flex: cfg(feature = "flex"),
)]
pub trait PromptOps: Backend {
    /// Causal attention aligned at the end: the output `[batch, heads, t, d]`, and per query the log-sum-exp of its
    /// scores, `[batch, heads, t]`.
    #[fusion(meta = |q, _k, _v, _mask| (q.clone(), shapes::without_last(q)))]
    fn attend_prompt(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        #[extension_type] mask: Mask<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// [`PromptOps::attend_prompt`] and [`PromptOps::column_sums`] in one: on the CPU the sums cost little on the way.
    #[fusion(meta = |q, k, _v, _mask| (
        q.clone(),
        shapes::without_last(q),
        shapes::like(q, [k.shape[0], k.shape[1], k.shape[2]]),
    ))]
    fn attend_summed(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        #[extension_type] mask: Mask<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// Attention received per key, sum over queries and mean over the query group: `[batch, kv_heads, n]`.
    #[fusion(meta = |_q, k, log_sums, _mask| shapes::like(log_sums, [k.shape[0], k.shape[1], k.shape[2]]))]
    fn column_sums(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
        #[extension_type] mask: Mask<Self>,
    ) -> FloatTensor<Self>;

    /// The most attention received per key, of all queries and of all heads of the query group: `[batch, kv_heads, n]`.
    #[fusion(meta = |_q, k, log_sums, _mask| shapes::like(log_sums, [k.shape[0], k.shape[1], k.shape[2]]))]
    fn column_max(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
        #[extension_type] mask: Mask<Self>,
    ) -> FloatTensor<Self>;
}

/// Which queries pay attention to a key.
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
    Flex: cfg(feature = "flex"),
)]
pub trait HitOps: Backend {
    /// Per key, for each of the `count` queries from `first` on: how many query heads of the group have a score for it of
    /// `least [batch, heads, count]` or more, as digits of `bits` bits, the first query's lowest; and the sum of these
    /// numbers. The digits of all queries fit an f32. Keys are those up to the last of the queries: `[batch, kv_heads, n −
    /// t + first + count]`.
    #[fusion(meta = |q, k, least, first, count, _bits, _mask| {
        let seen = k.shape[2] - q.shape[2] + *first + *count;
        let hits = shapes::like(least, [k.shape[0], k.shape[1], seen]);
        (hits.clone(), hits)
    })]
    fn attention_hits(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        least: FloatTensor<Self>,
        first: usize,
        count: usize,
        bits: usize,
        #[extension_type] mask: Mask<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// Attention of one query per head.
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
    Flex: cfg(feature = "flex"),
)]
pub trait TokenOps: Backend {
    /// Attention of one query (`t = 1`) over the first `entries` keys: the output `[batch, heads, 1, d]` and the
    /// probabilities `[batch, kv_heads, group, entries]`.
    #[fusion(meta = |q, k, _v, entries, _mask| {
        let row = [k.shape[0], k.shape[1], q.shape[1] / k.shape[1], *entries];
        (q.clone(), shapes::like(q, row))
    })]
    fn attend_token(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        entries: usize,
        #[extension_type] mask: Mask<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Attention of one query (`t = 1`) over the first `lengths [batch, kv_heads]` keys of each head: the output
    /// `[batch, heads, 1, d]` and the probabilities `[batch, kv_heads, group, n]`, 0 behind the length. Lengths below 1
    /// count as 1, those above n as n.
    #[fusion(meta = |q, k, _v, _lengths| {
        let row = [k.shape[0], k.shape[1], q.shape[1] / k.shape[1], k.shape[2]];
        (q.clone(), shapes::like(q, row))
    })]
    fn attend_lengths(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        lengths: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// Attention of the latest queries.
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
    Flex: cfg(feature = "flex"),
)]
pub trait WindowOps: Backend {
    /// Attention of the last `w = t` queries, the last of which has the position `seen - 1`, over keys in any order of
    /// `positions`: per key the sum over the queries and the variance over them (with w − 1; of one query 0), each a
    /// mean over the query group. A query sees the keys at the latest `window` positions up to its own, or at all of them.
    #[fusion(meta = |q, k, _positions, _seen, _window, _softcap| {
        let sums = shapes::like(q, [k.shape[0], k.shape[1], k.shape[2]]);
        (sums.clone(), sums)
    })]
    fn window_score(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        positions: IntTensor<Self>,
        seen: usize,
        window: Option<usize>,
        softcap: Option<f32>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}
