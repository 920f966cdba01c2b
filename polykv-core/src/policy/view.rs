//! What policies see of a layer, and what they remember.

use super::Phase;
use crate::cache::LayerShape;
use crate::ops;
use crate::{Error, Result};
use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor};
use std::ops::Range;

/// A policy's memory of one sequence batch in one layer.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Statistics per entry, each `[batch, kv_heads, entries]` in slot order; the cache gathers, moves and drops
    /// them together with the entries.
    pub entries: Vec<Tensor<3>>,
}

impl State {
    /// Gives the appended entries zeros in every statistic.
    pub fn extend_with_zeros(&mut self, appended: &Appended) {
        for tensor in &mut self.entries {
            let [batch, kv_heads, _] = tensor.dims();
            let zeros = Tensor::zeros(
                [batch, kv_heads, appended.positions.len()],
                (&appended.device, tensor.dtype()),
            );
            tensor.inplace(|old| Tensor::cat(vec![old, zeros], 2));
        }
    }

    /// Follows a compaction to `slots [batch, kv_heads, count]`.
    pub(crate) fn keep(&mut self, slots: &Tensor<3, Int>) {
        for tensor in &mut self.entries {
            tensor.inplace(|t| t.gather(2, slots.clone()));
        }
    }

    /// Follows the move of the last entry into the slot `victim [batch, kv_heads, 1]`.
    pub(crate) fn replace(&mut self, victim: &Tensor<3, Int>) {
        for tensor in &mut self.entries {
            let last = tensor.dims()[2] - 1;
            tensor.inplace(|t| {
                let moved = t.clone().narrow(2, last, 1);
                t.scatter(2, victim.clone(), moved, IndexingUpdateOp::Assign)
                    .narrow(2, 0, last)
            });
        }
    }

    /// Bytes of all statistics.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(ops::bytes).sum()
    }
}

/// Entries that were just appended.
#[derive(Clone, Debug)]
pub struct Appended {
    pub layer: usize,
    pub shape: LayerShape,
    /// How many entries there were before.
    pub before: usize,
    /// The positions of the new entries; they take the slots from `before` on, in this order.
    pub positions: Range<usize>,
    pub device: Device,
}

/// One layer's cache at the moment of an eviction. Entries are in slot order: during decode a new entry takes the
/// slot of an evicted one, so slots are not in order of position; see [`LayerView::to_position_order`].
#[derive(Debug)]
pub struct LayerView<'a> {
    pub phase: Phase,
    pub layer: usize,
    pub shape: LayerShape,
    /// How many tokens the layer has seen: the position of the next one.
    pub seen: usize,
    /// Whether all KV heads hold the same positions in the same slots.
    pub heads_agree: bool,
    /// In the cache's own type; see [`LayerView::keys`].
    pub stored_keys: Tensor<4>,
    /// In the cache's own type; see [`LayerView::values`].
    pub stored_values: Tensor<4>,
    /// `[batch, kv_heads, entries]`
    pub positions: Tensor<3, Int>,
    /// The latest queries, `[batch, heads, tokens, head_dim]`, if some policy of the layer needs them.
    pub queries: Option<&'a Tensor<4>>,
    /// Attention of the last query if it has just run, `[batch, kv_heads, group, entries]`.
    pub row: Option<Tensor<4>>,
    /// Slots in ascending order of position, `[batch, kv_heads, entries]`; none if they are in that order.
    pub order: Option<&'a Tensor<3, Int>>,
}

impl LayerView<'_> {
    /// `[batch, kv_heads, entries, head_dim]`, f32.
    pub fn keys(&self) -> Tensor<4> {
        self.stored_keys.clone().cast(DType::F32)
    }

    /// `[batch, kv_heads, entries, head_dim]`, f32.
    pub fn values(&self) -> Tensor<4> {
        self.stored_values.clone().cast(DType::F32)
    }

    /// The last `count` queries, fewer if fewer were seen: `[batch, heads, min(count, seen), head_dim]`.
    ///
    /// # Errors
    /// If the policy did not declare the need.
    pub fn queries(&self, count: usize) -> Result<Tensor<4>> {
        let queries = self.queries.ok_or_else(|| {
            Error::Failed("a policy reads queries that it did not declare".into())
        })?;
        let held = queries.dims()[2];
        let count = count.min(held);
        Ok(queries.clone().narrow(2, held - count, count))
    }

    /// Attention of the last query over the entries: `[batch, kv_heads, group, entries]`. During decode it comes from
    /// the attention that has just run.
    ///
    /// # Errors
    /// If the policy did not declare that it needs a query.
    pub fn attention_row(&self) -> Result<Tensor<4>> {
        if let Some(row) = &self.row {
            return Ok(row.clone());
        }
        let [batch, kv_heads, entries, _] = self.stored_keys.dims();
        let group = self.shape.group();
        Ok(self
            .window_attention(1)?
            .reshape([batch, kv_heads, group, entries]))
    }

    /// Causal attention of the last `window` queries over the entries, softmax in f32:
    /// `[batch, kv_heads, group, min(window, seen), entries]`.
    ///
    /// # Errors
    /// If the policy did not declare that it needs the queries.
    pub fn window_attention(&self, window: usize) -> Result<Tensor<5>> {
        Ok(ops::window_attention(
            self.queries(window)?,
            self.stored_keys.clone(),
            self.positions.clone(),
            self.seen,
        ))
    }

    /// Reorders a per-entry tensor from slots to ascending positions.
    pub fn to_position_order(&self, scores: Tensor<3>) -> Tensor<3> {
        match self.order {
            Some(order) => scores.gather(2, order.clone()),
            None => scores,
        }
    }

    /// The inverse of [`LayerView::to_position_order`].
    pub fn to_slot_order(&self, scores: Tensor<3>) -> Tensor<3> {
        match self.order {
            Some(order) => {
                let slots = scores.zeros_like();
                slots.scatter(2, order.clone(), scores, IndexingUpdateOp::Assign)
            }
            None => scores,
        }
    }
}
