//! The slots of a layer in order of position, updated at every eviction instead of sorted.

use crate::shape::LayerShape;
use crate::{Result, ops};
use burn::tensor::{Device, IndexingUpdateOp, Int, IntDType, Tensor};

/// Slots in ascending order of position, `[batch, kv_heads, entries]`; `None` while that is the identity.
#[derive(Clone, Debug, Default)]
pub(super) struct Order(Option<Tensor<3, Int>>);

impl Order {
    pub fn as_ref(&self) -> Option<&Tensor<3, Int>> {
        self.0.as_ref()
    }

    /// This order, `[batch, kv_heads, entries]`.
    pub fn of(order: Tensor<3, Int>) -> Self {
        Self(Some(order))
    }

    pub fn reset(&mut self) {
        self.0 = None;
    }

    /// Appends new entries, which are in the slots behind the others and have the latest positions.
    pub fn append(&mut self, count: usize) {
        self.0 = self.0.take().map(|order| ops::extend_order(order, count));
    }

    /// The last entry, which has the latest position, moved from slot `len − 1` into the slot of `victim
    /// [batch, kv_heads, 1]`.
    pub fn replace(&mut self, victim: Tensor<3, Int>, len: usize, shape: LayerShape) {
        let order = self.slots(len, shape, &victim.device());
        self.0 = Some(ops::drop_from_order(order, victim, true));
    }

    /// The slots of all entries but `victim [batch, kv_heads, 1]` in this order: `[batch, kv_heads, len − 1]`.
    pub fn without(
        &self,
        victim: &Tensor<3, Int>,
        len: usize,
        shape: LayerShape,
    ) -> Tensor<3, Int> {
        let order = self.slots(len, shape, &victim.device());
        ops::drop_from_order(order, victim.clone(), false)
    }

    /// The slots of `0..len` that `kept [batch, kv_heads, count]` leaves out, in this order: `[batch, kv_heads, len −
    /// count]`.
    ///
    /// # Errors
    /// A device that cannot be read.
    pub fn rest(&self, kept: &Tensor<3, Int>, len: usize) -> Result<Tensor<3, Int>> {
        let Some(order) = &self.0 else {
            return ops::rest(kept, len);
        };
        let dtype = IntDType::from(order.dtype());
        let ranks = slots(0, len, &order.device())
            .cast(dtype)
            .expand(order.dims());
        // rank[slot]: the inverse permutation.
        let rank = order.zeros_like();
        let rank = rank.scatter(2, order.clone(), ranks, IndexingUpdateOp::Assign);
        let others = ops::rest(&rank.gather(2, kept.clone()), len)?;
        Ok(order.clone().gather(2, others))
    }

    fn slots(&self, len: usize, shape: LayerShape, device: &Device) -> Tensor<3, Int> {
        match &self.0 {
            Some(order) => order.clone(),
            None => slots(0, len, device).expand([shape.batch, shape.kv_heads, len]),
        }
    }

    pub fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, ops::bytes)
    }
}

fn slots(first: usize, count: usize, device: &Device) -> Tensor<3, Int> {
    let end = first.saturating_add(count);
    Tensor::<1, Int>::arange(first as i64..end as i64, device).reshape([1, 1, count])
}
