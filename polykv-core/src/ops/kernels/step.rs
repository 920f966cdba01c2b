//! Several operators at once, for what is done for every decoded token: on GPUs launches cost more than work there.
//!
//! Shapes are those of the operators that they are made of.

use super::{Counts, shapes};
use crate::ops::hit_note::HitNote;
use crate::ops::protect::Guard;
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};

/// What the scores of entries are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoresOf {
    /// The entries' positions.
    Positions,
    /// The mean over the rows of a KV head.
    Group,
    /// The mean over the rows of all KV heads.
    Heads,
}

/// What is done for every decoded token on GPUs in fewer launches.
#[backend_extension(Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"))]
pub trait StepOps: Backend {
    /// `statistics [batch, kv_heads, n, ..]` with `count` zeros behind the entries of each head.
    #[fusion(meta = |statistics, count| {
        let mut dims = statistics.shape.to_vec();
        dims[2] += *count;
        TensorSpec::new(dims.into(), statistics.dtype)
    })]
    fn extend(statistics: FloatTensor<Self>, count: usize) -> FloatTensor<Self>;

    /// `queries [batch, heads, n, d]` without the first of each head, and `new [batch, heads, 1, d]` behind the others.
    #[fusion(meta = |queries, _new| queries.clone())]
    fn push(queries: FloatTensor<Self>, new: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `sums` of the first entries `[batch, kv_heads, ..]`, 0 for the others, plus the mean of `rows [batch, kv_heads, group, n]`
    /// over the group: `[batch, kv_heads, n]`.
    #[fusion(meta = |sums, rows| shapes::like(sums, [rows.shape[0], rows.shape[1], rows.shape[3]]))]
    fn add_mean(sums: FloatTensor<Self>, rows: FloatTensor<Self>) -> FloatTensor<Self>;

    /// [`EntryOps::write_entry`](super::EntryOps::write_entry) in slot `entries − 1`, then [`TokenOps::attend_token`](super::TokenOps::attend_token) over so many
    /// entries, without a window. Returns the output, the probabilities, and keys, values and positions.
    #[fusion(meta = |q, keys, values, positions, _key, _value, entries, _position, _softcap| {
        let row = [keys.shape[0], keys.shape[1], q.shape[1] / keys.shape[1], *entries];
        (
            q.clone(),
            shapes::like(q, row),
            keys.clone(),
            values.clone(),
            positions.clone(),
        )
    })]
    fn attend_new(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        positions: IntTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        entries: usize,
        position: usize,
        softcap: Option<f32>,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        IntTensor<Self>,
    );

    /// [`ChoiceOps::lowest`](super::ChoiceOps::lowest) of the first `count` entries, whose scores are means `of` the rows
    /// `scores [batch, kv_heads, group, count]`, then [`EntryOps::replace_entry`](super::EntryOps::replace_entry) in its slot.
    /// Returns keys, values and positions, the slot, and how many scores were NaN.
    #[fusion(meta = |_scores, _of, _count, keys, values, positions, _guard, _before, _key, _value, _position| (
        keys.clone(),
        values.clone(),
        positions.clone(),
        shapes::like(positions, [keys.shape[0], keys.shape[1], 1]),
        shapes::floats([keys.shape[0], keys.shape[1]]),
    ))]
    fn evict(
        scores: FloatTensor<Self>,
        of: ScoresOf,
        count: usize,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        positions: IntTensor<Self>,
        guard: Guard,
        #[extension_type] before: Counts<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        position: usize,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        IntTensor<Self>,
        IntTensor<Self>,
        FloatTensor<Self>,
    );

    /// [`StepOps::add_mean`] of `rows [batch, kv_heads, group, count]` to `sums [batch, kv_heads, count − 1]`, then
    /// [`StepOps::evict`] by what comes out, of an entry at position p divided by `seen` − p if `seen` is not 0; the sum of the
    /// last entry follows it into its slot. Returns the sums of the entries that stay as well.
    #[fusion(meta = |sums, _rows, _seen, keys, values, positions, _guard, _before, _key, _value, _position| (
        keys.clone(),
        values.clone(),
        positions.clone(),
        shapes::like(positions, [keys.shape[0], keys.shape[1], 1]),
        shapes::floats([keys.shape[0], keys.shape[1]]),
        sums.clone(),
    ))]
    fn evict_summed(
        sums: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        seen: usize,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        positions: IntTensor<Self>,
        guard: Guard,
        #[extension_type] before: Counts<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        position: usize,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        IntTensor<Self>,
        IntTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    );

    /// Notes the hits of `rows [batch, kv_heads, group, n]`, of 1/n or more, in `words [batch, kv_heads, known, words]` and in the
    /// sums of their digits, `counts [batch, kv_heads, known]`, with zeros behind the `known` ones: `[batch, kv_heads, n]` and
    /// `[batch, kv_heads, n, words]`.
    #[fusion(meta = |counts, words, rows, _note| (
        shapes::like(counts, [rows.shape[0], rows.shape[1], rows.shape[3]]),
        shapes::like(words, [rows.shape[0], rows.shape[1], rows.shape[3], words.shape[3]]),
    ))]
    fn note_hits(
        counts: FloatTensor<Self>,
        words: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        note: HitNote,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// [`StepOps::note_hits`] of `rows [batch, kv_heads, group, count]` with `count − 1` entries known, then [`StepOps::evict`] by
    /// the counts; those of the last entry and its words follow it into its slot. Returns the counts and words of the entries that
    /// stay as well.
    #[fusion(meta = |counts, words, _rows, _note, keys, values, positions, _guard, _before, _key, _value, _position| (
        keys.clone(),
        values.clone(),
        positions.clone(),
        shapes::like(positions, [keys.shape[0], keys.shape[1], 1]),
        shapes::floats([keys.shape[0], keys.shape[1]]),
        counts.clone(),
        words.clone(),
    ))]
    fn evict_noted(
        counts: FloatTensor<Self>,
        words: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        note: HitNote,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        positions: IntTensor<Self>,
        guard: Guard,
        #[extension_type] before: Counts<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        position: usize,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        IntTensor<Self>,
        IntTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    );
}
