//! Attention and what policies want to know of it.

use super::pair;
#[cfg(feature = "cube")]
use super::shapes;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{Int, Tensor};
use std::ops::Range;

/// Shapes: `q [batch, heads, t, d]` in f32, `k`, `v [batch, kv_heads, n, d]` as they are stored, `heads` a multiple of
/// `kv_heads`; scores `[batch, kv_heads, n]`; results are f32. Integers have the type of `positions`.
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
    Flex: cfg(feature = "flex"),
)]
pub trait KvOps: Backend {
    /// Causal attention aligned at the end: the output `[batch, heads, t, d]`, and per query the logarithm of the sum
    /// of its exponentials, `[batch, heads, t]`.
    #[fusion(meta = |q, _k, _v| (q.clone(), shapes::without_last(q)))]
    fn attend_prompt(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// As [`KvOps::attend_prompt`], and [`KvOps::column_sums`] of the same: on the CPU they cost little on the way.
    #[fusion(meta = |q, k, _v| (
        q.clone(),
        shapes::without_last(q),
        shapes::like(q, [k.shape[0], k.shape[1], k.shape[2]]),
    ))]
    fn attend_summed(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// Attention received per key, sum over queries and mean over the query group: `[batch, kv_heads, n]`.
    #[fusion(meta = |_q, k, log_sums| shapes::like(log_sums, [k.shape[0], k.shape[1], k.shape[2]]))]
    fn column_sums(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Per key, of the `count` queries from `first` on: how many query heads of the group gave it an even part of their
    /// attention or more, up to [`HIT_SLACK`](super::HIT_SLACK), as digits of `bits` bits, the first query's lowest; and the sum of these
    /// numbers. `log_sums` is what [`KvOps::attend_prompt`] returned for the same `q` and `k`; the digits of all queries
    /// fit an f32. Keys are those that the last of the queries sees: `[batch, kv_heads, n − t + first + count]`.
    #[fusion(meta = |q, k, log_sums, first, count, _bits| {
        let seen = k.shape[2] - q.shape[2] + *first + *count;
        let hits = shapes::like(log_sums, [k.shape[0], k.shape[1], seen]);
        (hits.clone(), hits)
    })]
    fn attention_hits(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
        first: usize,
        count: usize,
        bits: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Attention of one query (`t = 1`) over the first `entries` keys: the output `[batch, heads, 1, d]` and the
    /// probabilities `[batch, kv_heads, group, entries]`.
    #[fusion(meta = |q, k, _v, entries| {
        let row = [k.shape[0], k.shape[1], q.shape[1] / k.shape[1], *entries];
        (q.clone(), shapes::like(q, row))
    })]
    fn attend_token(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        entries: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// As [`KvOps::attend_token`] over the first `lengths [batch, kv_heads]` keys of each head, from 1 to n of them; the
    /// probabilities of the others are 0.
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

    /// Attention of the last `w = t` queries, the last of which has the position `seen - 1`, over keys in any order of
    /// `positions`: per key the sum over the queries and the variance over them (with w − 1; of one query 0), each a
    /// mean over the query group.
    #[fusion(meta = |q, k, _positions, _seen| {
        let sums = shapes::like(q, [k.shape[0], k.shape[1], k.shape[2]]);
        (sums.clone(), sums)
    })]
    fn window_score(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        positions: IntTensor<Self>,
        seen: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

pub fn attend_prompt(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<3>) {
    pair(Dispatch::attend_prompt(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
    ))
}

pub fn attend_summed(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
) -> (Tensor<4>, Tensor<3>, Tensor<3>) {
    let (output, log_sums, sums) =
        Dispatch::attend_summed(q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    (
        Tensor::from_dispatch(output),
        Tensor::from_dispatch(log_sums),
        Tensor::from_dispatch(sums),
    )
}

pub fn column_sums(q: Tensor<4>, k: Tensor<4>, log_sums: Tensor<3>) -> Tensor<3> {
    Tensor::from_dispatch(Dispatch::column_sums(
        q.into_dispatch(),
        k.into_dispatch(),
        log_sums.into_dispatch(),
    ))
}

pub fn attention_hits(
    q: Tensor<4>,
    k: Tensor<4>,
    log_sums: Tensor<3>,
    queries: Range<usize>,
    bits: usize,
) -> (Tensor<3>, Tensor<3>) {
    pair(Dispatch::attention_hits(
        q.into_dispatch(),
        k.into_dispatch(),
        log_sums.into_dispatch(),
        queries.start,
        queries.len(),
        bits,
    ))
}

pub fn attend_token(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    entries: usize,
) -> (Tensor<4>, Tensor<4>) {
    pair(Dispatch::attend_token(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        entries,
    ))
}

pub fn attend_lengths(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    lengths: Tensor<2, Int>,
) -> (Tensor<4>, Tensor<4>) {
    pair(Dispatch::attend_lengths(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        lengths.into_dispatch(),
    ))
}

pub fn window_score(
    q: Tensor<4>,
    k: Tensor<4>,
    positions: Tensor<3, Int>,
    seen: usize,
) -> (Tensor<3>, Tensor<3>) {
    pair(Dispatch::window_score(
        q.into_dispatch(),
        k.into_dispatch(),
        positions.into_dispatch(),
        seen,
    ))
}
