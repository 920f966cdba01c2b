//! Choosing and moving entries.

use super::Guard;
#[cfg(feature = "cube")]
use super::shapes;
use crate::ops::Pool;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchTensor, backend_extension};
use burn::tensor::{Int, Tensor};

/// Shapes: keys and values `[batch, kv_heads, n, d]` as they are stored; scores and `positions [batch, kv_heads, n]`,
/// scores in f32. Integers have the type of `positions`.
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
    Flex: cfg(feature = "flex"),
)]
pub trait EntryOps: Backend {
    /// The slots of the `budget` entries that stay, in ascending order of position: those of `guard` first, then the
    /// highest scores, of equal ones the later position; and how many scores are NaN, `[batch, kv_heads]`. Positions of
    /// a head differ and lie below `seen`; `budget` is from 1 to n.
    #[fusion(meta = |scores, positions, _guard, _seen, budget| (
        shapes::like(positions, [scores.shape[0], scores.shape[1], *budget]),
        shapes::without_last(scores),
    ))]
    fn select_top(
        scores: FloatTensor<Self>,
        positions: IntTensor<Self>,
        guard: Guard,
        seen: usize,
        budget: usize,
    ) -> (IntTensor<Self>, FloatTensor<Self>);

    /// Keys, values and positions at `slots [batch, kv_heads, m]`, in tensors with room for `capacity` entries; what
    /// follows the entries is zero.
    #[fusion(meta = |keys, _values, positions, _slots, capacity| {
        let entries = [keys.shape[0], keys.shape[1], *capacity, keys.shape[3]];
        (
            shapes::like(keys, entries),
            shapes::like(keys, entries),
            shapes::like(positions, [entries[0], entries[1], entries[2]]),
        )
    })]
    fn compact(
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        positions: IntTensor<Self>,
        slots: IntTensor<Self>,
        capacity: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, IntTensor<Self>);

    /// The slot of the lowest score outside `guard`, `[batch, kv_heads, 1]`, of equal ones that of the earlier
    /// position; and how many scores are NaN, `[batch, kv_heads]`.
    #[fusion(meta = |scores, positions, _guard| (
        shapes::like(positions, [scores.shape[0], scores.shape[1], 1]),
        shapes::without_last(scores),
    ))]
    fn lowest(
        scores: FloatTensor<Self>,
        positions: IntTensor<Self>,
        guard: Guard,
    ) -> (IntTensor<Self>, FloatTensor<Self>);

    /// Overwrites the entry in slot `victim [batch, kv_heads, 1]` with `key` and `value [batch, kv_heads, 1, d]`, stored
    /// already or in f32, at `position`, in place while the tensors are not shared.
    #[fusion(meta = |keys, values, positions, _victim, _key, _value, _position| (
        keys.clone(), values.clone(), positions.clone(),
    ))]
    fn replace_entry(
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        positions: IntTensor<Self>,
        victim: IntTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        position: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, IntTensor<Self>);

    /// As [`EntryOps::replace_entry`] in the same slot of all heads.
    #[fusion(meta = |keys, values, positions, _slot, _key, _value, _position| (
        keys.clone(), values.clone(), positions.clone(),
    ))]
    fn write_entry(
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        positions: IntTensor<Self>,
        slot: usize,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        position: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, IntTensor<Self>);

    /// What policies remember of each entry, `[batch, kv_heads, n, ..]`, after the last entry has moved into the slot
    /// `victim [batch, kv_heads, 1]`: `n − 1` entries.
    #[fusion(meta = |statistics, _victim| shapes::one_less(statistics))]
    fn move_last(statistics: FloatTensor<Self>, victim: IntTensor<Self>) -> FloatTensor<Self>;

    /// `order [batch, kv_heads, n]`, the slots of the entries in order of position, without that of `victim [batch,
    /// kv_heads, 1]`; if `moved`, for entries the last of which has moved there.
    #[fusion(meta = |order, _victim, _moved| shapes::one_less(order))]
    fn drop_from_order(
        order: IntTensor<Self>,
        victim: IntTensor<Self>,
        moved: bool,
    ) -> IntTensor<Self>;

    /// `order [batch, kv_heads, n]` with the slots `n..n + count` behind it.
    #[fusion(meta = |order, count| {
        shapes::like(order, [order.shape[0], order.shape[1], order.shape[2] + count])
    })]
    fn extend_order(order: IntTensor<Self>, count: usize) -> IntTensor<Self>;

    /// Scores pooled over `width` (odd) neighbours in `order`, which has the type of positions, as
    /// [`pool`](crate::ops::pool); those of the last `tail` entries of the order stay as they are, and leave their
    /// neighbours alone.
    #[fusion(meta = |scores, _order, _tail, _width, _mode| scores.clone())]
    fn pool_scores(
        scores: FloatTensor<Self>,
        order: IntTensor<Self>,
        tail: usize,
        width: usize,
        mode: Pool,
    ) -> FloatTensor<Self>;
}

pub fn select_top(
    scores: Tensor<3>,
    positions: Tensor<3, Int>,
    guard: Guard,
    seen: usize,
    budget: usize,
) -> (Tensor<3, Int>, Tensor<2>) {
    let (slots, nans) = Dispatch::select_top(
        scores.into_dispatch(),
        positions.into_dispatch(),
        guard,
        seen,
        budget,
    );
    (Tensor::from_dispatch(slots), Tensor::from_dispatch(nans))
}

pub fn compact(
    keys: Tensor<4>,
    values: Tensor<4>,
    positions: Tensor<3, Int>,
    slots: Tensor<3, Int>,
    capacity: usize,
) -> Entries {
    entries(Dispatch::compact(
        keys.into_dispatch(),
        values.into_dispatch(),
        positions.into_dispatch(),
        slots.into_dispatch(),
        capacity,
    ))
}

/// Keys, values and positions of a cache.
pub type Entries = (Tensor<4>, Tensor<4>, Tensor<3, Int>);

fn entries((k, v, p): (DispatchTensor, DispatchTensor, DispatchTensor)) -> Entries {
    (
        Tensor::from_dispatch(k),
        Tensor::from_dispatch(v),
        Tensor::from_dispatch(p),
    )
}

pub fn lowest(
    scores: Tensor<3>,
    positions: Tensor<3, Int>,
    guard: Guard,
) -> (Tensor<3, Int>, Tensor<2>) {
    let (slots, nans) = Dispatch::lowest(scores.into_dispatch(), positions.into_dispatch(), guard);
    (Tensor::from_dispatch(slots), Tensor::from_dispatch(nans))
}

pub fn replace_entry(
    (keys, values, positions): Entries,
    victim: Tensor<3, Int>,
    key: Tensor<4>,
    value: Tensor<4>,
    position: usize,
) -> Entries {
    entries(Dispatch::replace_entry(
        keys.into_dispatch(),
        values.into_dispatch(),
        positions.into_dispatch(),
        victim.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
        position,
    ))
}

pub fn write_entry(
    (keys, values, positions): Entries,
    slot: usize,
    key: Tensor<4>,
    value: Tensor<4>,
    position: usize,
) -> Entries {
    entries(Dispatch::write_entry(
        keys.into_dispatch(),
        values.into_dispatch(),
        positions.into_dispatch(),
        slot,
        key.into_dispatch(),
        value.into_dispatch(),
        position,
    ))
}

pub fn move_last<const D: usize>(statistics: Tensor<D>, victim: Tensor<3, Int>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::move_last(
        statistics.into_dispatch(),
        victim.into_dispatch(),
    ))
}

pub fn drop_from_order(
    order: Tensor<3, Int>,
    victim: Tensor<3, Int>,
    moved: bool,
) -> Tensor<3, Int> {
    Tensor::from_dispatch(Dispatch::drop_from_order(
        order.into_dispatch(),
        victim.into_dispatch(),
        moved,
    ))
}

pub fn extend_order(order: Tensor<3, Int>, count: usize) -> Tensor<3, Int> {
    Tensor::from_dispatch(Dispatch::extend_order(order.into_dispatch(), count))
}

pub fn pool_scores(
    scores: Tensor<3>,
    order: Tensor<3, Int>,
    tail: usize,
    width: usize,
    mode: Pool,
) -> Tensor<3> {
    Tensor::from_dispatch(Dispatch::pool_scores(
        scores.into_dispatch(),
        order.into_dispatch(),
        tail,
        width,
        mode,
    ))
}
