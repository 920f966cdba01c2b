//! Counts of hits in a history of queries, to which the latest query has not been added yet.
//!
//! For each entry and each query of the history there is a digit, the number of query heads that paid the entry at least the
//! average of their attention; several digits make a word, an f32.

#[cfg(feature = "cube")]
use super::kernels::{StepOps, kernel};
use burn::tensor::Tensor;
use std::sync::Arc;

/// Where the digit of a query goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HitNote {
    /// The word of an entry.
    pub word: usize,
    /// How many bits of it stand before the digit.
    pub shift: usize,
    /// The bits of a digit.
    pub bits: usize,
    /// Whether the query takes the place of an earlier one, whose digit is not counted any more.
    pub replaces: bool,
}

/// Counts of hits and the row that is still to be counted.
#[derive(Clone, Debug)]
pub struct StepHits {
    /// The sums of the digits of all entries but the newest, `[batch, kv_heads, entries - 1]`.
    pub(crate) counts: Tensor<3>,
    /// Their words, `[batch, kv_heads, entries - 1, words]`.
    pub(crate) words: Tensor<4>,
    /// The attention of the latest query, `[batch, kv_heads, group, entries]`.
    pub(crate) latest: Arc<Tensor<4>>,
    pub(crate) note: HitNote,
}

impl StepHits {
    /// Counts and words of all entries, the latest query counted.
    #[cfg(feature = "cube")]
    pub(crate) fn noted(self) -> (Tensor<3>, Tensor<4>) {
        let rows = Tensor::clone(&self.latest);
        kernel!(StepOps::note_hits(self.counts, self.words, rows, self.note))
    }

    /// Counts and words of all entries, the latest query counted.
    #[cfg(not(feature = "cube"))]
    pub(crate) fn noted(self) -> (Tensor<3>, Tensor<4>) {
        unreachable!("rows wait on GPUs only")
    }
}
