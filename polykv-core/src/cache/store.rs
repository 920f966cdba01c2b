//! Storage of one layer's entries.

mod coded;
mod merge;
mod prefix;

pub use prefix::{LEAST_SHARED, Prefix};

use crate::ops::coded::{Channels, CodedEntries};
use crate::ops::{self, AttentionBlock, Entries, Mask, Nans, Protected, Statistics, StepScores};
use crate::policy::Stored;
use crate::shape::LayerShape;
use burn::tensor::{DType, Device, Int, Tensor, s};
use std::sync::Arc;

/// Keys, values and positions of the entries, which lie in the first slots, behind those of a prefix if there is one.
#[derive(Clone, Debug)]
pub(super) struct Store {
    vectors: Vectors,
    /// `[batch, kv_heads, capacity]`
    positions: Tensor<3, Int>,
    /// With those of the prefix.
    len: usize,
    /// What keys are coded relative to, once they have been coded.
    channels: Option<Channels>,
    /// The first entries, while copies share them; the others are floats.
    prefix: Option<Arc<Prefix>>,
}

/// Keys and values `[batch, kv_heads, capacity, head_dim]`.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one per layer")]
enum Vectors {
    Floats([Tensor<4>; 2]),
    Codes(Box<CodedEntries>),
}

impl Store {
    pub fn new(shape: LayerShape, capacity: usize, device: &Device) -> Self {
        let dtype = shape.dtype;
        let dims = [shape.batch, shape.kv_heads, capacity, shape.head_dim];
        let zeros = || Tensor::zeros(dims, (device, dtype));
        Self {
            vectors: Vectors::Floats([zeros(), zeros()]),
            positions: Tensor::zeros([shape.batch, shape.kv_heads, capacity], device),
            len: 0,
            channels: None,
            prefix: None,
        }
    }

    /// Storage for `capacity` entries that holds these.
    pub fn of(entries: Entries, capacity: usize) -> Self {
        let len = entries.2.dims()[2];
        let (keys, values, positions) = match capacity > len {
            true => ops::grow(entries, capacity),
            false => entries,
        };
        Self {
            vectors: Vectors::Floats([keys, values]),
            positions,
            len,
            channels: None,
            prefix: None,
        }
    }

    /// The entries of one KV head in one row, without free slots.
    pub fn of_head(&self, row: usize, head: usize) -> Self {
        let vectors = match &self.vectors {
            Vectors::Floats(_) => {
                let of = |all: Tensor<4>| all.narrow(0, row, 1).narrow(1, head, 1);
                Vectors::Floats([self.keys(), self.values()].map(of))
            }
            Vectors::Codes(coded) => Vectors::Codes(coded.of_head(self.len, row, head).into()),
        };
        let channels = self.channels.as_ref();
        Self {
            vectors,
            positions: self.positions().narrow(0, row, 1).narrow(1, head, 1),
            len: self.len,
            channels: channels.map(|channels| channels.of_head(row, head)),
            prefix: None,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn capacity(&self) -> usize {
        match (&self.prefix, self.slots()) {
            (Some(prefix), 0) => prefix.capacity(),
            (_, own) => self.before().saturating_add(own),
        }
    }

    /// Whether so many entries can be appended.
    pub fn has_room(&self, tokens: usize) -> bool {
        self.behind().saturating_add(tokens) <= self.slots()
    }

    /// Those of its own.
    fn slots(&self) -> usize {
        match self.only_shares() {
            true => 0,
            false => self.positions.dims()[2],
        }
    }

    /// Bytes of keys and values, free slots included.
    pub fn kv_bytes(&self) -> usize {
        let shared = self.prefix.as_ref().map_or(0, |prefix| prefix.kv_bytes());
        self.own_kv_bytes().saturating_add(shared)
    }

    /// The same without those of the prefix.
    pub fn own_kv_bytes(&self) -> usize {
        if self.only_shares() {
            return 0;
        }
        match &self.vectors {
            Vectors::Floats([keys, values]) => ops::bytes(keys).saturating_add(ops::bytes(values)),
            Vectors::Codes(coded) => coded.bytes(),
        }
    }

    /// Bytes of the positions, of what keys are coded relative to, and of where entries in floats are among those in codes.
    pub fn aux_bytes(&self) -> usize {
        let channels = self.channels.as_ref().map_or(0, Channels::bytes);
        let places = match &self.vectors {
            Vectors::Floats(_) => 0,
            Vectors::Codes(coded) => coded.place_bytes(),
        };
        let shared = self
            .prefix
            .as_ref()
            .map_or(0, |prefix| prefix.position_bytes());
        let positions = match self.only_shares() {
            true => 0,
            false => ops::bytes(&self.positions),
        };
        let parts = [positions, shared, channels, places];
        parts.into_iter().fold(0, usize::saturating_add)
    }

    /// The keys, of the type in which the cache stores floats; in f32 if they are in codes.
    pub fn keys(&self) -> Tensor<4> {
        self.stored().0.tensor()
    }

    /// The values, as [`Store::keys`].
    pub fn values(&self) -> Tensor<4> {
        self.stored().1.tensor()
    }

    /// Keys and values without the free slots.
    pub fn stored(&self) -> (Stored, Stored) {
        match &self.vectors {
            Vectors::Floats([keys, values]) => {
                let keys = self.held(keys, |prefix| prefix.keys());
                let values = self.held(values, |prefix| prefix.values());
                (keys.into(), values.into())
            }
            Vectors::Codes(coded) => Stored::of_codes(coded, self.len),
        }
    }

    pub fn positions(&self) -> Tensor<3, Int> {
        self.held(&self.positions, |prefix| prefix.positions())
    }

    /// Attention of one query per head over the entries.
    pub fn attend(&self, q: Tensor<4>, mask: &Mask) -> (Tensor<4>, AttentionBlock) {
        match (&self.vectors, &self.prefix) {
            (Vectors::Floats(own), Some(prefix)) if self.behind() > 0 => {
                let behind = own.each_ref().map(|all| prefix::first(all, self.behind()));
                ops::attend_behind(q, prefix.both(), behind, mask)
            }
            (Vectors::Floats([keys, values]), None) => {
                ops::attend_first(q, keys.clone(), values.clone(), self.len, mask)
            }
            (Vectors::Floats(_), Some(_)) => {
                ops::attend_first(q, self.keys(), self.values(), self.len, mask)
            }
            (Vectors::Codes(coded), _) => coded.attend(q, self.len, mask),
        }
    }

    /// Whether [`Store::attend_new`] is less work than appending and attending.
    pub fn attends_new(&self, q: &Tensor<4>) -> bool {
        match &self.vectors {
            Vectors::Floats(both) => ops::attends_new(q, both.each_ref().map(Tensor::dtype)),
            Vectors::Codes(_) => false,
        }
    }

    /// Appends one entry, for which there is room, and attends to all: [`Store::append`] and [`Store::attend`] without a window.
    pub fn attend_new(
        &mut self,
        q: Tensor<4>,
        new: [Tensor<4>; 2],
        position: usize,
        mask: &Mask,
    ) -> (Tensor<4>, AttentionBlock) {
        self.own();
        #[cfg(feature = "cube")]
        if let Some(entries) = self.extract() {
            self.len = self.len.saturating_add(1);
            let (output, block, entries) =
                ops::attend_new(q, entries, new, self.len, position, mask);
            self.set(entries);
            return (output, block);
        }
        self.append(new, position);
        self.attend(q, mask)
    }

    /// Overwrites the keys of all entries, `[batch, kv_heads, entries, head_dim]` of the type that is stored.
    pub fn set_keys(&mut self, new: Tensor<4>) {
        self.own();
        let entries = 0..self.len;
        match &mut self.vectors {
            Vectors::Floats([keys, _]) => {
                keys.inplace(|t| t.slice_assign(s![.., .., entries, ..], new));
            }
            Vectors::Codes(coded) => coded.set_keys(new.cast(DType::F32)),
        }
    }

    /// Moves the entries into storage for `capacity` entries.
    pub fn resize(&mut self, capacity: usize) {
        let (behind, own) = (self.behind(), capacity.saturating_sub(self.before()));
        match &mut self.vectors {
            Vectors::Floats(both) => {
                let [keys, values] = both.each_ref().map(|all| prefix::first(all, behind));
                let positions = prefix::first(&self.positions, behind);
                self.set(ops::grow((keys, values, positions), own));
            }
            Vectors::Codes(coded) => {
                coded.grow(capacity);
                let [batch, kv_heads, count] = self.positions.dims();
                let old = self.positions.extract();
                let room = Tensor::zeros([batch, kv_heads, capacity], &old.device());
                self.positions = room.slice_assign(s![.., .., 0..count], old);
            }
        }
    }

    fn set(&mut self, (keys, values, positions): Entries) {
        self.vectors = Vectors::Floats([keys, values]);
        self.positions = positions;
    }

    /// Floats without another holder; they must be set again. `None` if the entries are in codes.
    fn extract(&mut self) -> Option<Entries> {
        match &mut self.vectors {
            Vectors::Floats([keys, values]) => {
                Some((keys.extract(), values.extract(), self.positions.extract()))
            }
            Vectors::Codes(_) => None,
        }
    }

    /// Writes entries into the next free slots, in place while nobody else holds the tensors; the capacity must suffice.
    /// Several entries have the stored type, one may have f32.
    pub fn append(&mut self, new: [Tensor<4>; 2], first_position: usize) {
        let [batch, kv_heads, tokens, _] = new[0].dims();
        let slots = self.behind()..self.behind().saturating_add(tokens);
        self.len = self.len.saturating_add(tokens);
        if tokens == 1 {
            return self.write(slots.start, new, first_position);
        }
        match &mut self.vectors {
            Vectors::Floats(both) => {
                for (all, new) in both.iter_mut().zip(new) {
                    let range = slots.clone();
                    all.inplace(|t| t.slice_assign(s![.., .., range, ..], new));
                }
                let first = first_position as i64;
                let numbers = first..first.saturating_add(tokens as i64);
                let numbers = Tensor::<1, Int>::arange(numbers, &self.positions.device())
                    .reshape([1, 1, tokens])
                    .expand([batch, kv_heads, tokens]);
                self.positions
                    .inplace(|t| t.slice_assign(s![.., .., slots], numbers));
            }
            Vectors::Codes(coded) => {
                for (slot, token) in slots.zip(0..tokens) {
                    let new = new.each_ref().map(|all| all.clone().narrow(2, token, 1));
                    let position = first_position.saturating_add(token);
                    self.positions = coded.write(self.positions.extract(), slot, new, position);
                }
            }
        }
    }

    /// Overwrites the same slot of all heads.
    fn write(&mut self, slot: usize, new: [Tensor<4>; 2], position: usize) {
        if let Some(entries) = self.extract() {
            let [key, value] = new;
            return self.set(ops::write(entries, slot, key, value, position));
        }
        if let Vectors::Codes(coded) = &mut self.vectors {
            self.positions = coded.write(self.positions.extract(), slot, new, position);
        }
    }

    /// Keeps the entries in `slots [batch, kv_heads, count]`, in that order, in storage for `capacity`.
    pub fn keep(&mut self, slots: Tensor<3, Int>, capacity: usize) {
        self.own();
        let count = slots.dims()[2];
        let capacity = capacity.max(count);
        self.len = count;
        if let Some(entries) = self.extract() {
            return self.set(ops::compact(entries, slots, capacity));
        }
        if let Vectors::Codes(coded) = &mut self.vectors {
            self.positions = coded.keep(self.positions.extract(), &slots, capacity);
        }
    }

    /// Drops the entry with the lowest score as [`Store::replace`] does. Returns its slot, whether a score is or was NaN, and the
    /// statistics of the entries that stay if [`ops::evict`] has them.
    pub fn evict(
        &mut self,
        scores: StepScores,
        protected: Protected<'_>,
        before: Nans,
        [key, value]: [Tensor<4>; 2],
        position: usize,
    ) -> (Tensor<3, Int>, Nans, Option<Statistics>) {
        self.own();
        let count = self.len;
        if let Some(entries) = self.extract() {
            self.len = count.saturating_sub(1);
            let entry = [key, value];
            let evicted = ops::evict(scores, count, protected, before, entries, entry, position);
            self.set(evicted.entries);
            return (evicted.victim, evicted.nans, evicted.statistics);
        }
        let positions = self.positions();
        let scores = scores.tensor(&positions);
        let (victim, nans) = ops::drop_lowest_after(scores, positions, protected, before);
        self.replace(victim.clone(), key, value, position);
        (victim, nans, None)
    }

    /// Drops the entry in `victim [batch, kv_heads, 1]` by moving the last entry, whose key and value are `key` and
    /// `value [batch, kv_heads, 1, head_dim]`, into its slot.
    pub fn replace(
        &mut self,
        victim: Tensor<3, Int>,
        key: Tensor<4>,
        value: Tensor<4>,
        position: usize,
    ) {
        self.own();
        self.len = self.len.saturating_sub(1);
        if let Some(entries) = self.extract() {
            return self.set(ops::replace(entries, victim, key, value, position));
        }
        if let Vectors::Codes(coded) = &mut self.vectors {
            let (positions, last) = (self.positions.extract(), self.len);
            self.positions = coded.replace(positions, victim, last, [key, value], position);
        }
    }

    /// Copies of the last entry's key and value, `[batch, kv_heads, 1, head_dim]` each.
    pub fn last(&self) -> (Tensor<4>, Tensor<4>) {
        let slot = self.len.saturating_sub(1);
        let [keys, values] = match &self.vectors {
            Vectors::Floats(_) if self.prefix.is_some() => {
                [self.keys(), self.values()].map(|all| all.narrow(2, slot, 1))
            }
            Vectors::Floats(both) => {
                let [batch, kv_heads, _] = self.positions.dims();
                let device = self.positions.device();
                let slots = Tensor::full([batch, kv_heads, 1], slot as i64, &device);
                both.each_ref()
                    .map(|all| ops::take(all.clone(), slots.clone()))
            }
            Vectors::Codes(coded) => coded.at(slot),
        };
        (keys, values)
    }

    /// Where the keys and values lie in memory.
    #[cfg(all(test, feature = "flex"))]
    pub fn addresses(&self) -> [usize; 2] {
        match &self.vectors {
            Vectors::Floats(both) => both.each_ref().map(|tensor| {
                let tensor = tensor.clone();
                let tensor = tensor.try_into_primitive::<burn::backend::Flex>().unwrap();
                tensor.storage::<f32>().as_ptr() as usize
            }),
            Vectors::Codes(coded) => [&coded.keys, &coded.values].map(|all| all.address()),
        }
    }
}
