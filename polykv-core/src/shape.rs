//! The shape of a layer's queries, keys and values.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

use crate::budget::EntryCost;
use crate::codes::Codes;
use crate::{Error, Result};
use burn::tensor::DType;

/// The shape of a layer's queries, keys and values, and the type in which keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerShape {
    /// The number of sequences that run together, the rows of a batch.
    pub batch: usize,
    /// The number of query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// The number of heads of keys and values. With fewer of them than query heads, groups of query heads share one (GQA).
    pub kv_heads: usize,
    /// The number of elements of a head's query, key or value.
    pub head_dim: usize,
    /// The type in which keys and values are stored: f32, f16 or bf16. Callers give them in f32.
    pub dtype: DType,
}

impl LayerShape {
    /// The number of query heads per KV head.
    pub fn group(&self) -> usize {
        self.heads.checked_div(self.kv_heads).unwrap_or(0)
    }

    /// The shape of one KV head of one sequence.
    pub(crate) fn of_head(self) -> Self {
        Self {
            batch: 1,
            heads: self.group(),
            kv_heads: 1,
            ..self
        }
    }

    /// The memory of an entry in a cache of layers of this shape, one per window of `windows`, see
    /// [`EntryCost::windows`].
    #[must_use]
    pub fn cost(&self, windows: &[Option<usize>]) -> EntryCost {
        let of_vectors = |bytes: usize| {
            [2, self.batch, self.kv_heads, bytes]
                .into_iter()
                .fold(1, usize::saturating_mul)
        };
        let coded = |codes: Codes| of_vectors(codes.words(self.head_dim).saturating_mul(4));
        EntryCost {
            windows: windows.into(),
            bytes: of_vectors(self.head_dim.saturating_mul(self.dtype.size())),
            half: of_vectors(self.head_dim.saturating_mul(2)),
            coded: Codes::ALL.map(coded),
        }
    }

    /// Checks that every dimension is at least 1 and that `heads` is a multiple of `kv_heads`.
    ///
    /// # Errors
    /// Another shape, of kind [`ErrorKind::Shape`](crate::ErrorKind::Shape). The error names the dimension.
    pub fn check(&self) -> Result<()> {
        for (field, value) in [
            ("batch", self.batch),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
        ] {
            if value == 0 {
                return Err(Error::shape("layer shape", field, 0, "at least 1"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let allowed = format!("a multiple of kv_heads, {}", self.kv_heads);
            return Err(Error::shape("layer shape", "heads", self.heads, allowed));
        }
        Ok(())
    }
}
