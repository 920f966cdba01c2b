//! Entries that copies of a layer share (copy-on-write): each writes what comes after them into slots of its own, and takes the
//! shared ones over before it changes them.

use super::{Store, Vectors};
use crate::ops;
use burn::tensor::kind::Basic;
use burn::tensor::{Int, Tensor};
use std::sync::Arc;

/// Fewer entries than these are rather copied.
pub const LEAST_SHARED: usize = 64;

/// The first entries of several stores, which nobody changes.
#[derive(Debug)]
pub struct Prefix {
    /// Keys and values `[batch, kv_heads, capacity, head_dim]`, of which the first `len` count.
    both: [Tensor<4>; 2],
    positions: Tensor<3, Int>,
    len: usize,
}

impl Prefix {
    /// The slots that they lie in.
    pub fn capacity(&self) -> usize {
        self.positions.dims()[2]
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Keys and values.
    pub fn both(&self) -> [Tensor<4>; 2] {
        self.both.each_ref().map(|all| first(all, self.len))
    }

    pub fn keys(&self) -> &Tensor<4> {
        &self.both[0]
    }

    pub fn values(&self) -> &Tensor<4> {
        &self.both[1]
    }

    pub fn positions(&self) -> &Tensor<3, Int> {
        &self.positions
    }

    /// Without the slots behind them.
    pub fn held_positions(&self) -> Tensor<3, Int> {
        first(&self.positions, self.len)
    }

    pub fn kv_bytes(&self) -> usize {
        let bytes = self.both.each_ref().map(ops::bytes);
        bytes.into_iter().fold(0, usize::saturating_add)
    }

    pub fn position_bytes(&self) -> usize {
        ops::bytes(&self.positions)
    }
}

impl Store {
    /// Lets copies that are made from now on share the entries, as long as nothing changes them.
    pub fn lend(&mut self) {
        let device = self.positions.device();
        if self.prefix.is_some() || self.len < LEAST_SHARED {
            return;
        }
        let Vectors::Floats(both) = &mut self.vectors else {
            return;
        };
        let [batch, kv_heads, _, width] = both[0].dims();
        let (none, positions) = match ops::is_cpu(&device) {
            true => {
                let dims = [batch, kv_heads, 0, width];
                let none = both.each_ref().map(Tensor::dtype);
                let none = none.map(|dtype| Tensor::zeros(dims, (&device, dtype)));
                (none, Tensor::zeros([batch, kv_heads, 0], &device))
            }
            // Tensors without elements are nothing for GPUs.
            false => (both.clone(), self.positions.clone()),
        };
        self.prefix = Some(Arc::new(Prefix {
            both: std::mem::replace(both, none),
            positions: std::mem::replace(&mut self.positions, positions),
            len: self.len,
        }));
    }

    /// The entries that copies share.
    pub fn prefix(&self) -> Option<&Arc<Prefix>> {
        self.prefix.as_ref()
    }

    /// Whether it has no slots of its own: on GPUs as long as it has a prefix.
    pub(super) fn only_shares(&self) -> bool {
        self.prefix.is_some() && !ops::is_cpu(&self.positions.device())
    }

    /// How many those are.
    pub(super) fn before(&self) -> usize {
        self.prefix.as_ref().map_or(0, |prefix| prefix.len)
    }

    /// How many entries lie in slots of its own.
    pub(super) fn behind(&self) -> usize {
        self.len.saturating_sub(self.before())
    }

    /// All entries without free slots: of its own keys, values or positions, behind those that are shared.
    pub(super) fn held<const D: usize, K: Basic>(
        &self,
        own: &Tensor<D, K>,
        shared: impl Fn(&Prefix) -> &Tensor<D, K>,
    ) -> Tensor<D, K> {
        let behind = self.behind();
        match &self.prefix {
            None => first(own, behind),
            Some(prefix) => {
                let shared = first(shared(prefix), prefix.len);
                match behind {
                    0 => shared,
                    _ => Tensor::cat(vec![shared, first(own, behind)], 2),
                }
            }
        }
    }

    /// Takes the shared entries over, to change them.
    pub(super) fn own(&mut self) {
        let Some(prefix) = &self.prefix else {
            return;
        };
        let (both, positions) = match self.behind() {
            // Others that have them are not written to: burn then copies them.
            0 => (prefix.both.clone(), prefix.positions.clone()),
            _ => ([self.keys(), self.values()], self.positions()),
        };
        self.vectors = Vectors::Floats(both);
        self.positions = positions;
        self.prefix = None;
    }

    /// Makes ready for what comes next outside of an arena. GPUs read one piece of memory there.
    pub fn prepare(&mut self) {
        if self.prefix.is_none() {
            return;
        }
        match ops::is_cpu(&self.positions.device()) {
            true => self.reclaim(),
            false => self.own(),
        }
    }

    /// Takes over what nobody else shares any longer, if that moves nothing.
    fn reclaim(&mut self) {
        let alone = self
            .prefix
            .as_mut()
            .is_some_and(|prefix| Arc::get_mut(prefix).is_some());
        if alone && self.behind() == 0 {
            self.own();
        }
    }
}

/// The first entries.
pub(super) fn first<const D: usize, K: Basic>(all: &Tensor<D, K>, count: usize) -> Tensor<D, K> {
    match all.dims()[2] == count {
        true => all.clone(),
        false => all.clone().slice_dim(2, 0..count),
    }
}
