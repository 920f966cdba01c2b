//! What policies are given of a layer.

use super::Phase;
use crate::facts::LayerFacts;
use crate::ops::coded::CodedEntries;
use crate::ops::{self, Mask, Places, Pool, Protected};
use crate::shape::LayerShape;
use crate::{Error, Result};
use burn::tensor::{Bool, DType, Device, IndexingUpdateOp, Int, Tensor};
use std::ops::Range;

/// Entries that were just appended to a layer.
#[derive(Clone, Debug)]
pub struct Appended {
    /// The layer, from 0.
    pub layer: usize,
    /// The layer's KV head that comes first here, from 0. It is above 0 where heads have budgets of their own, which come one by
    /// one.
    pub first_head: usize,
    /// The shape of the layer's queries, keys and values.
    pub shape: LayerShape,
    /// How many entries per KV head there were before.
    pub before: usize,
    /// The positions of the new entries; they take the slots from `before` on, in this order.
    pub positions: Range<usize>,
    /// Tokens of the announced prompt that follow after these.
    pub to_come: usize,
    /// The queries of the new tokens after rotary embedding, `[batch, heads, tokens, head_dim]`.
    pub queries: Tensor<4>,
    /// The values of the new entries, `[batch, kv_heads, tokens, head_dim]`.
    pub values: Tensor<4>,
    /// What the model stated about the layer.
    pub facts: LayerFacts,
    /// Where the tensors are.
    pub device: Device,
}

/// An eviction that has been decided but not carried out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Split {
    /// Slots that stay, `[batch, kv_heads, kept]`; ascending by position if the policy needs that order.
    pub kept: Tensor<3, Int>,
    /// Slots that go, `[batch, kv_heads, evicted]`, in the same order.
    pub evicted: Tensor<3, Int>,
    /// True for those that go because the next token does not see them, `[batch, kv_heads, evicted]`: they have left the
    /// layer's window and must not be merged. `None` if there are none.
    pub left: Option<Tensor<3, Bool>>,
}

/// What is added to the keys and values of entries that stay.
#[derive(Clone, Debug)]
pub struct Merge {
    /// The slots that are added to, `[batch, kv_heads, count]`: slots of entries that stay, each at most once per head.
    /// `None` adds to all entries that stay, in the order of [`Split::kept`].
    pub slots: Option<Tensor<3, Int>>,
    /// What is added to the keys, `[batch, kv_heads, count, head_dim]`; `None` if they do not change.
    pub keys: Option<Tensor<4>>,
    /// What is added to the values, `[batch, kv_heads, count, head_dim]`.
    pub values: Tensor<4>,
}

/// Keys or values of a layer's entries as they are stored, `[batch, kv_heads, entries, head_dim]`.
#[derive(Clone, Debug)]
pub struct Stored(Kind);

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "two per view")]
enum Kind {
    Floats(Tensor<4>),
    /// The keys of so many entries.
    Keys(Box<CodedEntries>, usize),
    Values(Box<CodedEntries>, usize),
}

impl Stored {
    /// The vectors of type [`LayerShape::dtype`]; in f32 where the layer keeps them in codes, which are decoded then.
    pub fn tensor(&self) -> Tensor<4> {
        match &self.0 {
            Kind::Floats(tensor) => tensor.clone(),
            Kind::Keys(coded, entries) => coded.keys(*entries),
            Kind::Values(coded, entries) => coded.values(*entries),
        }
    }

    /// Keys and values of the first entries of some in codes.
    pub(crate) fn of_codes(coded: &CodedEntries, entries: usize) -> (Self, Self) {
        (
            Self(Kind::Keys(coded.clone().into(), entries)),
            Self(Kind::Values(coded.clone().into(), entries)),
        )
    }
}

impl From<Tensor<4>> for Stored {
    fn from(tensor: Tensor<4>) -> Self {
        Self(Kind::Floats(tensor))
    }
}

/// One layer's cache at the moment of an eviction. Entries are in slot order. During decode a new entry takes the slot of
/// an evicted one, so that slots are not in order of position; [`LayerView::order`] has that order.
#[derive(Clone, Debug)]
pub struct LayerView<'a> {
    /// The phase whose rule evicts.
    pub phase: Phase,
    /// The layer, from 0.
    pub layer: usize,
    /// The layer's KV head that comes first here, see [`Appended::first_head`].
    pub first_head: usize,
    /// The shape of the layer's queries, keys and values.
    pub shape: LayerShape,
    /// How many tokens per sequence the layer has been given, which is the position of the next one.
    pub seen: usize,
    /// How many entries per KV head will stay.
    pub budget: usize,
    /// The entries that stay whatever their score.
    pub protected: Protected<'a>,
    /// What the model stated about the layer.
    pub facts: &'a LayerFacts,
    /// The soft-cap of attention logits, see [`ModelFacts::softcap`](crate::ModelFacts::softcap).
    pub softcap: Option<f64>,
    /// Whether all KV heads hold the same positions in the same slots.
    pub heads_agree: bool,
    /// The keys as they are stored; see [`LayerView::keys`] for f32.
    pub stored_keys: Stored,
    /// The values as they are stored; see [`LayerView::values`] for f32.
    pub stored_values: Stored,
    /// The positions of the entries, `[batch, kv_heads, entries]`.
    pub positions: Tensor<3, Int>,
    /// The latest queries after rotary embedding, `[batch, heads, tokens, head_dim]`, if some policy of the layer needs
    /// them; see [`LayerView::queries`].
    pub queries: Option<Tensor<4>>,
    /// The attention of the last query, `[batch, kv_heads, group, entries]`, if it was computed just before the eviction;
    /// see [`LayerView::attention_row`].
    pub row: Option<Tensor<4>>,
    /// The slots in ascending order of position, `[batch, kv_heads, entries]`; `None` if slots are in that order.
    pub order: Option<&'a Tensor<3, Int>>,
}

impl LayerView<'_> {
    /// The keys after rotary embedding in f32, `[batch, kv_heads, entries, head_dim]`.
    pub fn keys(&self) -> Tensor<4> {
        self.stored_keys.tensor().cast(DType::F32)
    }

    /// The values in f32, `[batch, kv_heads, entries, head_dim]`.
    pub fn values(&self) -> Tensor<4> {
        self.stored_values.tensor().cast(DType::F32)
    }

    /// The last `count` queries after rotary embedding, `[batch, heads, min(count, seen), head_dim]`.
    ///
    /// # Errors
    /// A policy whose [`Policy::needs`](super::Policy::needs) ask for no queries.
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

    /// The attention of the last query over the entries, `[batch, kv_heads, group, entries]`. During decode it is taken from
    /// the attention that was computed just before the eviction.
    ///
    /// # Errors
    /// A policy whose [`Policy::needs`](super::Policy::needs) ask for no queries.
    pub fn attention_row(&self) -> Result<Tensor<4>> {
        if let Some(row) = &self.row {
            return Ok(row.clone());
        }
        let mask = Mask {
            softcap: self.softcap,
            places: Some(self.places()),
        };
        Ok(ops::attention_row(
            self.queries(1)?,
            self.stored_keys.tensor(),
            &mask,
        ))
    }

    /// The sum and the variance of each entry's attention over the last `window` queries, each the mean over the query group
    /// and `[batch, kv_heads, entries]`; see [`ops::window_score`].
    ///
    /// # Errors
    /// A policy whose [`Policy::needs`](super::Policy::needs) ask for no queries.
    pub fn window_score(&self, window: usize) -> Result<(Tensor<3>, Tensor<3>)> {
        Ok(ops::window_score(
            self.queries(window)?,
            self.stored_keys.tensor(),
            &self.places(),
            self.softcap,
        ))
    }

    /// Where the entries and the queries stand.
    pub fn places(&self) -> Places {
        Places {
            positions: self.positions.clone(),
            seen: self.seen,
            window: self.facts.window,
        }
    }

    /// The causal attention of the last `window` queries over the entries,
    /// `[batch, kv_heads, group, min(window, seen), entries]`, with the softmax in f32.
    ///
    /// # Errors
    /// A policy whose [`Policy::needs`](super::Policy::needs) ask for no queries.
    pub fn window_attention(&self, window: usize) -> Result<Tensor<5>> {
        Ok(ops::window_attention(
            self.queries(window)?,
            self.stored_keys.tensor(),
            &self.places(),
            self.softcap,
        ))
    }

    /// Pools the scores `[batch, kv_heads, entries]` over `kernel` neighbouring positions. The latest `window` entries are
    /// left out: they keep their scores, and their scores do not reach their neighbours.
    pub fn pool_before(
        &self,
        scores: Tensor<3>,
        window: usize,
        kernel: usize,
        pool: Pool,
    ) -> Tensor<3> {
        ops::pool(scores, self.order, window, kernel, pool)
    }

    /// True for the `count` entries that one stage of a policy takes, `[batch, kv_heads, entries]`: first those that
    /// `protect` names, then those with the highest `scores`, leaving out those that `taken` marks. Entries that have left the
    /// layer's window come last.
    pub fn best(
        &self,
        scores: Tensor<3>,
        protect: Protected<'_>,
        taken: Option<&Tensor<3, Bool>>,
        count: usize,
    ) -> Tensor<3, Bool> {
        let mut scores = scores.mask_fill(protect.mask(self.positions.clone()), f32::MAX);
        if let Some(left) = self.left() {
            scores = scores.mask_fill(left, f32::MIN);
        }
        if let Some(taken) = taken {
            scores = scores.mask_fill(taken.clone(), f32::MIN);
        }
        ops::top(scores, self.positions.clone(), self.seen, count)
    }

    /// True for entries that the next token does not see, `[batch, kv_heads, entries]`: they have left the layer's window, stay
    /// only where a head has no others, and are evicted first. `None` if there are none.
    pub fn left(&self) -> Option<Tensor<3, Bool>> {
        let oldest = self.protected.oldest;
        (oldest > 0).then(|| self.positions.clone().lower_elem(oldest as i64))
    }

    /// Brings scores `[batch, kv_heads, entries]` from ascending positions into slot order.
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
