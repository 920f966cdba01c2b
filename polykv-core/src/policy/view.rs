//! What policies see of a layer.

use super::Phase;
use crate::facts::LayerFacts;
use crate::ops::{self, Pool, Protected};
use crate::shape::LayerShape;
use crate::{Error, Result};
use burn::tensor::{Bool, DType, Device, IndexingUpdateOp, Int, Tensor};
use std::ops::Range;

/// Entries that were just appended.
#[derive(Clone, Debug)]
pub struct Appended {
    pub layer: usize,
    pub shape: LayerShape,
    /// How many entries there were before.
    pub before: usize,
    /// The positions of the new entries; they take the slots from `before` on, in this order.
    pub positions: Range<usize>,
    /// Tokens of the announced prompt that are still to come after these.
    pub to_come: usize,
    /// Their queries after rotary embedding, `[batch, heads, tokens, head_dim]`.
    pub queries: Tensor<4>,
    /// `[batch, kv_heads, tokens, head_dim]`
    pub values: Tensor<4>,
    pub facts: LayerFacts,
    pub device: Device,
}

/// An eviction that has been decided but not carried out.
#[derive(Clone, Debug)]
pub struct Split {
    /// Slots that stay, `[batch, kv_heads, kept]`; ascending by position if the policy needs that order.
    pub kept: Tensor<3, Int>,
    /// Slots that go, `[batch, kv_heads, evicted]`, in the same order.
    pub evicted: Tensor<3, Int>,
}

/// What is added to entries that stay.
#[derive(Clone, Debug)]
pub struct Merge {
    /// Different slots of entries that stay, `[batch, kv_heads, count]`; none for all that stay, as [`Split::kept`] names
    /// them.
    pub slots: Option<Tensor<3, Int>>,
    /// `[batch, kv_heads, count, head_dim]`, if keys change.
    pub keys: Option<Tensor<4>>,
    /// `[batch, kv_heads, count, head_dim]`
    pub values: Tensor<4>,
}

/// One layer's cache at the moment of an eviction. Entries are in slot order: during decode a new entry takes the
/// slot of an evicted one, so slots are not in order of position; see [`LayerView::order`].
#[derive(Clone, Debug)]
pub struct LayerView<'a> {
    pub phase: Phase,
    pub layer: usize,
    pub shape: LayerShape,
    /// How many tokens the layer has seen: the position of the next one.
    pub seen: usize,
    /// How many entries will stay.
    pub budget: usize,
    /// The entries that stay whatever their score.
    pub protected: Protected<'a>,
    pub facts: &'a LayerFacts,
    /// Whether all KV heads hold the same positions in the same slots.
    pub heads_agree: bool,
    /// In the cache's own type; see [`LayerView::keys`].
    pub stored_keys: Tensor<4>,
    /// In the cache's own type; see [`LayerView::values`].
    pub stored_values: Tensor<4>,
    /// `[batch, kv_heads, entries]`
    pub positions: Tensor<3, Int>,
    /// The latest queries, `[batch, heads, tokens, head_dim]`, if some policy of the layer needs them.
    pub queries: Option<Tensor<4>>,
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
        let queries = self.queries.clone().ok_or_else(|| {
            Error::Failed("a policy reads queries that it did not declare".into())
        })?;
        let held = queries.dims()[2];
        Ok(match count < held {
            true => queries.narrow(2, held - count, count),
            false => queries,
        })
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
        Ok(ops::attention_row(
            self.queries(1)?,
            self.stored_keys.clone(),
        ))
    }

    /// What the last `window` queries pay attention to: the sum over them and the variance over them, means over the
    /// query group, `[batch, kv_heads, entries]` each; see [`ops::window_score`].
    ///
    /// # Errors
    /// If the policy did not declare that it needs the queries.
    pub fn window_score(&self, window: usize) -> Result<(Tensor<3>, Tensor<3>)> {
        Ok(ops::window_score(
            self.queries(window)?,
            self.stored_keys.clone(),
            self.positions.clone(),
            self.seen,
        ))
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

    /// Pools the scores of neighbouring positions, the latest `window` entries left out: they are protected and must
    /// not leak into their neighbours.
    pub fn pool_before(
        &self,
        scores: Tensor<3>,
        window: usize,
        kernel: usize,
        pool: Pool,
    ) -> Tensor<3> {
        ops::pool(scores, self.order, window, kernel, pool)
    }

    /// True for the `count` entries that a stage of a policy takes, `[batch, kv_heads, entries]`: those under `protect`
    /// first, then the highest scores, none of `taken`.
    pub fn best(
        &self,
        scores: Tensor<3>,
        protect: Protected<'_>,
        taken: Option<&Tensor<3, Bool>>,
        count: usize,
    ) -> Tensor<3, Bool> {
        let mut scores = scores.mask_fill(protect.mask(self.positions.clone()), f32::MAX);
        if let Some(taken) = taken {
            scores = scores.mask_fill(taken.clone(), f32::MIN);
        }
        ops::top(scores, self.positions.clone(), self.seen, count)
    }

    /// Reorders a per-entry tensor from ascending positions to slots.
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
