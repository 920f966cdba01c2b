//! Dense storage of one layer's entries.

use crate::ops::{self, Entries};
use crate::policy::Merge;
use crate::shape::LayerShape;
use burn::tensor::{DType, Device, Int, Tensor, s};

/// Keys, values and positions of the entries in slots `0..len`; slots beyond are free.
#[derive(Clone, Debug)]
pub(super) struct Store {
    /// `[batch, kv_heads, capacity, head_dim]`
    keys: Tensor<4>,
    values: Tensor<4>,
    /// `[batch, kv_heads, capacity]`
    positions: Tensor<3, Int>,
    len: usize,
}

impl Store {
    pub fn new(shape: LayerShape, capacity: usize, device: &Device) -> Self {
        let dtype = shape.dtype;
        let dims = [shape.batch, shape.kv_heads, capacity, shape.head_dim];
        Self {
            keys: Tensor::zeros(dims, (device, dtype)),
            values: Tensor::zeros(dims, (device, dtype)),
            positions: Tensor::zeros([shape.batch, shape.kv_heads, capacity], device),
            len: 0,
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
            keys,
            values,
            positions,
            len,
        }
    }

    /// The entries of one KV head in one row, without free slots.
    pub fn of_head(&self, row: usize, head: usize) -> Self {
        Self {
            keys: self.keys().narrow(0, row, 1).narrow(1, head, 1),
            values: self.values().narrow(0, row, 1).narrow(1, head, 1),
            positions: self.positions().narrow(0, row, 1).narrow(1, head, 1),
            len: self.len,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn capacity(&self) -> usize {
        self.keys.dims()[2]
    }

    /// Bytes of keys and values, free slots included.
    pub fn kv_bytes(&self) -> usize {
        ops::bytes(&self.keys).saturating_add(ops::bytes(&self.values))
    }

    /// Bytes of the positions.
    pub fn position_bytes(&self) -> usize {
        ops::bytes(&self.positions)
    }

    pub fn keys(&self) -> Tensor<4> {
        match self.len == self.capacity() {
            true => self.keys.clone(),
            false => self.keys.clone().slice(s![.., .., 0..self.len, ..]),
        }
    }

    pub fn values(&self) -> Tensor<4> {
        match self.len == self.capacity() {
            true => self.values.clone(),
            false => self.values.clone().slice(s![.., .., 0..self.len, ..]),
        }
    }

    /// Keys and values with the free slots behind the entries.
    pub fn whole(&self) -> (Tensor<4>, Tensor<4>) {
        (self.keys.clone(), self.values.clone())
    }

    pub fn positions(&self) -> Tensor<3, Int> {
        match self.len == self.capacity() {
            true => self.positions.clone(),
            false => self.positions.clone().slice(s![.., .., 0..self.len]),
        }
    }

    /// Overwrites the keys of all entries, `[batch, kv_heads, entries, head_dim]` of the type that is stored.
    pub fn set_keys(&mut self, keys: Tensor<4>) {
        let entries = 0..self.len;
        self.keys
            .inplace(|t| t.slice_assign(s![.., .., entries, ..], keys));
    }

    /// Moves the entries into storage for `capacity` entries.
    pub fn resize(&mut self, capacity: usize) {
        let entries = (self.keys(), self.values(), self.positions());
        self.set(ops::grow(entries, capacity));
    }

    fn set(&mut self, (keys, values, positions): Entries) {
        self.keys = keys;
        self.values = values;
        self.positions = positions;
    }

    /// The tensors without another holder; they must be set again.
    fn extract(&mut self) -> Entries {
        (
            self.keys.extract(),
            self.values.extract(),
            self.positions.extract(),
        )
    }

    /// Writes entries into the next free slots, in place while nobody else holds the tensors; the capacity must suffice.
    /// Several entries have the stored type, one may have f32.
    pub fn append(&mut self, keys: Tensor<4>, values: Tensor<4>, first_position: usize) {
        let [batch, kv_heads, tokens, _] = keys.dims();
        if tokens == 1 {
            let (slot, entries) = (self.len, self.extract());
            self.set(ops::write(entries, slot, keys, values, first_position));
            self.len = slot.saturating_add(1);
            return;
        }
        let slots = self.len..self.len.saturating_add(tokens);
        let device = self.positions.device();
        let first = first_position as i64;
        let new = Tensor::<1, Int>::arange(first..first.saturating_add(tokens as i64), &device)
            .reshape([1, 1, tokens])
            .expand([batch, kv_heads, tokens]);
        self.len = slots.end;
        let range = slots.clone();
        self.keys
            .inplace(|t| t.slice_assign(s![.., .., range, ..], keys));
        let range = slots.clone();
        self.values
            .inplace(|t| t.slice_assign(s![.., .., range, ..], values));
        self.positions
            .inplace(|t| t.slice_assign(s![.., .., slots], new));
    }

    /// A slot of every head, `[batch, kv_heads, 1]`.
    fn slot(&self, slot: usize) -> Tensor<3, Int> {
        let [batch, kv_heads, _] = self.positions.dims();
        Tensor::full([batch, kv_heads, 1], slot as i64, &self.positions.device())
    }

    /// Keeps the entries in `slots [batch, kv_heads, count]`, in that order, in storage for `capacity`.
    pub fn keep(&mut self, slots: Tensor<3, Int>, capacity: usize) {
        let count = slots.dims()[2];
        let entries = self.extract();
        self.set(ops::compact(entries, slots, capacity.max(count)));
        self.len = count;
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
        let entries = self.extract();
        self.set(ops::replace(entries, victim, key, value, position));
        self.len = self.len.saturating_sub(1);
    }

    /// Copies of the last entry's key and value, `[batch, kv_heads, 1, head_dim]` each.
    pub fn last(&self) -> (Tensor<4>, Tensor<4>) {
        let slot = self.slot(self.len.saturating_sub(1));
        let last = |tensor: &Tensor<4>| ops::take(tensor.clone(), slot.clone());
        (last(&self.keys), last(&self.values))
    }

    /// Adds to keys and values, in place while nobody else holds the tensors; to the entries in `merge.slots`, or to the
    /// first ones.
    pub fn merge(&mut self, merge: Merge) {
        let slots = merge.slots;
        let add = |tensor: &mut Tensor<4>, delta: Tensor<4>| {
            let count = delta.dims()[2];
            let dtype = tensor.dtype();
            let old = match &slots {
                Some(slots) => ops::take(tensor.clone(), slots.clone()),
                None => tensor.clone().narrow(2, 0, count),
            };
            let sum = old.cast(DType::F32).add(delta).cast(dtype);
            tensor.inplace(|t| match slots.clone() {
                Some(slots) => ops::put(t, slots, sum),
                None => t.slice_assign(s![.., .., 0..count, ..], sum),
            });
        };
        if let Some(delta) = merge.keys {
            add(&mut self.keys, delta);
        }
        add(&mut self.values, merge.values);
    }

    /// Where the keys and values lie in memory.
    #[cfg(all(test, feature = "flex"))]
    pub fn addresses(&self) -> [usize; 2] {
        [&self.keys, &self.values].map(|tensor| {
            let tensor = tensor.clone();
            let tensor = tensor.try_into_primitive::<burn::backend::Flex>().unwrap();
            tensor.storage::<f32>().as_ptr() as usize
        })
    }
}
