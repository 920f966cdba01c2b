//! The shape of a layer's queries, keys and values.

use crate::budget::EntryCost;
use crate::{Error, Result};
use burn::tensor::DType;

/// What a layer's keys, values and queries look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerShape {
    /// Sequences that run together, the rows of a batch.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values; query heads share one in groups (GQA).
    pub kv_heads: usize,
    /// Elements of a vector of a head.
    pub head_dim: usize,
    /// What keys and values are stored as; they are given and read in f32.
    pub dtype: DType,
}

impl LayerShape {
    /// Query heads per KV head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// What an entry costs in a cache of this shape.
    pub fn cost(&self, layers: usize) -> EntryCost {
        EntryCost {
            layers,
            bytes: [
                2,
                self.batch,
                self.kv_heads,
                self.head_dim,
                self.dtype.size(),
            ]
            .into_iter()
            .fold(1, usize::saturating_mul),
        }
    }

    /// Whether a cache of this shape can be.
    ///
    /// # Errors
    /// Names the dimension that is zero or does not divide.
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
