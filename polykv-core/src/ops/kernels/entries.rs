//! Choosing and moving entries.
//!
//! Shapes: keys and values `[batch, kv_heads, n, d]` as they are stored; scores and `positions [batch, kv_heads, n]`,
//! scores in f32. Integers have the type of `positions`. A slot that is no number below n counts as n − 1.

#[cfg(feature = "cube")]
use super::shapes;
use crate::ops::pool::Pool;
use crate::ops::protect::Guard;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, ExtensionType, backend_extension};

/// Numbers that are added to.
#[derive(Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum Counts<B: Backend> {
    None,
    /// `[batch, kv_heads]`
    Known {
        counts: FloatTensor<B>,
    },
}

/// Which entries stay and which one goes.
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
    Flex: cfg(feature = "flex"),
)]
pub trait ChoiceOps: Backend {
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

    /// The slot of the lowest score outside `guard`, `[batch, kv_heads, 1]`, of equal ones that of the earlier
    /// position; and how many scores are NaN, `[batch, kv_heads]`, beside those that `before` counts.
    #[fusion(meta = |scores, positions, _guard, _before| (
        shapes::like(positions, [scores.shape[0], scores.shape[1], 1]),
        shapes::without_last(scores),
    ))]
    fn lowest(
        scores: FloatTensor<Self>,
        positions: IntTensor<Self>,
        guard: Guard,
        #[extension_type] before: Counts<Self>,
    ) -> (IntTensor<Self>, FloatTensor<Self>);
}

/// Moving and overwriting entries.
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
    Flex: cfg(feature = "flex"),
)]
pub trait EntryOps: Backend {
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

    /// [`EntryOps::replace_entry`] in the same slot, below n, of all heads.
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
}

/// The order of entries by position.
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
    Flex: cfg(feature = "flex"),
)]
pub trait OrderOps: Backend {
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
