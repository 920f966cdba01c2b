//! A token of several sequences whose entries lie in ranges of the same slots.
//!
//! Entries: keys and values `[1, 1, slots, d]` as they are stored, positions `[1, 1, slots]`. The table has a row for each KV head of
//! each sequence, see [`Table`](crate::ops::Table), and was made `steps` tokens ago.

use super::shapes;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};

/// What is done for a decoded token of several sequences at once on GPUs.
#[backend_extension(Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"))]
pub trait RangeOps: Backend {
    /// Writes the newest entry of every head, `key` and `value [sequences, kv_heads, 1, d]`, behind those of its range, and attends
    /// to the range with `q [sequences, heads, 1, d]`; the longest has `most` entries then. Returns the output like `q`, the
    /// probabilities `[1, 1, group, slots]`, undefined where no entry is, and keys, values and positions.
    #[fusion(meta = |q, keys, values, positions, key, _value, _table, _steps, _most, _softcap| {
        let row = [1, 1, q.shape[1] / key.shape[1], keys.shape[2]];
        (
            q.clone(),
            shapes::like(q, row),
            keys.clone(),
            values.clone(),
            positions.clone(),
        )
    })]
    fn attend_ranges(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        positions: IntTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        table: IntTensor<Self>,
        steps: usize,
        most: usize,
        softcap: Option<f32>,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        IntTensor<Self>,
    );

    /// Adds the probabilities `rows [1, 1, group, slots]` to the `sums [slots]` of the heads that have such, and lets the newest entry of
    /// every head that holds more than its budget take the place of the one with the lowest score. Returns keys, values,
    /// positions, sums and `nans`, the numbers of scores so far that were NaN.
    #[fusion(meta = |_rows, keys, values, positions, sums, nans, _table, _steps, _kv_heads| (
        keys.clone(),
        values.clone(),
        positions.clone(),
        sums.clone(),
        nans.clone(),
    ))]
    fn evict_ranges(
        rows: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        positions: IntTensor<Self>,
        sums: FloatTensor<Self>,
        nans: FloatTensor<Self>,
        table: IntTensor<Self>,
        steps: usize,
        kv_heads: usize,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        IntTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    );
}
