//! The keys and values of a layer in codes.

use super::{Channels, Coded, Exact};
use crate::codes::Codes;
use crate::ops::kernels::{CodeOps, ExactEntries, Place, kernel};
use crate::ops::route::Route;
use crate::ops::{AttentionBlock, Mask, bytes, oracle};
use burn::backend::Dispatch;
use burn::tensor::{IndexingUpdateOp, Int, Tensor};

/// Keys and values in codes, `[batch, kv_heads, n, head_dim]`. In 4 bits the first entry of a sequence and its latest are kept in
/// floats beside their codes: they are attended to most.
#[derive(Clone, Debug)]
pub struct CodedEntries {
    pub(crate) keys: Coded,
    pub(crate) values: Coded,
    pub(crate) exact: Option<Exact>,
}

impl CodedEntries {
    /// Codes keys and values, of which the first entries have `positions [batch, kv_heads, count]`.
    ///
    /// # Panics
    /// For shapes that do not fit.
    #[must_use]
    pub fn of(
        [keys, values]: [Tensor<4>; 2],
        positions: &Tensor<3, Int>,
        codes: Codes,
        channels: Channels,
    ) -> Self {
        let exact = (codes == Codes::Q4).then(|| Exact::of([&keys, &values], positions));
        Self {
            keys: Coded::of(keys, codes, Some(channels)),
            values: Coded::of(values, codes, None),
            exact,
        }
    }

    /// How many entries each head has room for.
    pub fn capacity(&self) -> usize {
        self.keys.capacity()
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        let exact = self.exact.as_ref().map_or(0, Exact::bytes);
        let codes = self.keys.bytes().saturating_add(self.values.bytes());
        codes.saturating_add(exact)
    }

    /// Bytes that say where the entries in floats are.
    pub fn place_bytes(&self) -> usize {
        self.exact.as_ref().map_or(0, |exact| bytes(&exact.slots))
    }

    /// The keys of the first `count` entries in f32, `[batch, kv_heads, count, head_dim]`.
    #[must_use]
    pub fn keys(&self, count: usize) -> Tensor<4> {
        self.keys.range(0, count, self.exact_keys())
    }

    /// The values of the first `count` entries, as [`CodedEntries::keys`].
    #[must_use]
    pub fn values(&self, count: usize) -> Tensor<4> {
        self.values.range(0, count, self.exact_values())
    }

    fn exact_keys(&self) -> Option<(&Tensor<4>, &Tensor<3, Int>)> {
        let exact = self.exact.as_ref();
        exact.map(|exact| (&exact.keys, &exact.slots))
    }

    fn exact_values(&self) -> Option<(&Tensor<4>, &Tensor<3, Int>)> {
        let exact = self.exact.as_ref();
        exact.map(|exact| (&exact.values, &exact.slots))
    }

    /// The first `count` entries of one KV head in one row.
    #[must_use]
    pub fn of_head(&self, count: usize, row: usize, head: usize) -> Self {
        let exact = self.exact.as_ref();
        Self {
            keys: self.keys.first(count).of_head(row, head),
            values: self.values.first(count).of_head(row, head),
            exact: exact.map(|exact| exact.of_head(row, head)),
        }
    }

    /// Attention of one query per head over the first `entries` (at least 1): `q [batch, heads, 1, head_dim]` in f32 → the output
    /// `[batch, heads, 1, head_dim]` and the attention. The other entries are not read, and no vector is decoded into memory.
    ///
    /// # Panics
    /// If the shapes do not fit, and for more entries than there are.
    pub fn attend(&self, q: Tensor<4>, entries: usize, mask: &Mask) -> (Tensor<4>, AttentionBlock) {
        let [batch, kv_heads, all, _] = self.keys.dims();
        let [rows, heads, tokens, head_dim] = q.dims();
        let shape = [batch, 1, self.keys.head_dim];
        assert_eq!([rows, tokens, head_dim], shape, "queries for keys");
        assert!(
            heads.is_multiple_of(kv_heads),
            "{heads} query heads for {kv_heads} KV heads"
        );
        assert!((1..=all).contains(&entries), "{entries} entries of {all}");
        mask.check([batch, kv_heads, entries], 1);
        let (output, row) = match Route::of(&q) {
            Route::Plain => {
                let (keys, values) = (self.keys(entries), self.values(entries));
                oracle::attend_token(q, keys, values, None, mask)
            }
            _ => kernel!(CodeOps::attend_codes(
                q,
                self.keys.words.clone(),
                self.values.words.clone(),
                Channels::kernel(self.keys.channels.as_ref()),
                self.exact_kernel(),
                self.keys.codes,
                entries,
                mask.kernel()
            )),
        };
        let block = AttentionBlock::of_probabilities(row, heads / kv_heads, mask.clone());
        (output, block)
    }

    fn exact_kernel(&self) -> ExactEntries<Dispatch> {
        match &self.exact {
            None => ExactEntries::None,
            Some(exact) => ExactEntries::Rows {
                keys: exact.keys.clone().into_dispatch(),
                values: exact.values.clone().into_dispatch(),
                slots: exact.slots.clone().into_dispatch(),
            },
        }
    }

    /// The entries at `slots [batch, kv_heads, count]`, in room for `capacity` of them, and their positions of `positions [batch,
    /// kv_heads, n]` likewise.
    pub(crate) fn keep(
        &mut self,
        positions: Tensor<3, Int>,
        slots: &Tensor<3, Int>,
        capacity: usize,
    ) -> Tensor<3, Int> {
        if let Some(exact) = &mut self.exact {
            exact.keep(slots);
        }
        let [keys, values] = [&mut self.keys, &mut self.values].map(|all| all.words.extract());
        let slots = slots.clone();
        let (keys, values, positions) = match Route::on(&positions.device()) {
            Route::Plain => oracle::codes::compact(keys, values, positions, slots, capacity),
            _ => kernel!(CodeOps::compact_codes(
                keys, values, positions, slots, capacity
            )),
        };
        (self.keys.words, self.values.words) = (keys, values);
        positions
    }

    pub(crate) fn grow(&mut self, capacity: usize) {
        for all in [&mut self.keys, &mut self.values] {
            all.grow(capacity);
        }
    }

    /// A new entry in the same slot of all heads, `[batch, kv_heads, 1, head_dim]` each, at `position`.
    pub(crate) fn write(
        &mut self,
        positions: Tensor<3, Int>,
        slot: usize,
        [key, value]: [Tensor<4>; 2],
        position: usize,
    ) -> Tensor<3, Int> {
        if let Some(exact) = &mut self.exact {
            exact.push(slot, key.clone(), value.clone());
        }
        let place = Place::Same { slot };
        self.put(positions, place, [key, value], position)
    }

    /// The entry in slot `last`, which is `key`, `value` and `position`, moves into the slots of `victims [batch, kv_heads, 1]`.
    pub(crate) fn replace(
        &mut self,
        positions: Tensor<3, Int>,
        victims: Tensor<3, Int>,
        last: usize,
        new: [Tensor<4>; 2],
        position: usize,
    ) -> Tensor<3, Int> {
        if let Some(exact) = &mut self.exact {
            exact.replace(victims.clone(), last);
        }
        let slots = victims.into_dispatch();
        self.put(positions, Place::Each { slots }, new, position)
    }

    fn put(
        &mut self,
        positions: Tensor<3, Int>,
        place: Place<Dispatch>,
        [key, value]: [Tensor<4>; 2],
        position: usize,
    ) -> Tensor<3, Int> {
        if Route::on(&positions.device()) == Route::Plain {
            return self.put_plain(positions, place, [key, value], position);
        }
        let relative = Channels::kernel(self.keys.channels.as_ref());
        let [keys, values] = [&mut self.keys, &mut self.values].map(|all| all.words.extract());
        let codes = self.keys.codes;
        let (keys, values, positions) = kernel!(CodeOps::put_codes(
            keys, values, positions, place, key, value, relative, codes, position
        ));
        (self.keys.words, self.values.words) = (keys, values);
        positions
    }

    fn put_plain(
        &mut self,
        positions: Tensor<3, Int>,
        place: Place<Dispatch>,
        new: [Tensor<4>; 2],
        position: usize,
    ) -> Tensor<3, Int> {
        let slots = match place {
            Place::Same { slot } => {
                let [batch, kv_heads, _] = positions.dims();
                Tensor::full([batch, kv_heads, 1], slot as i64, &positions.device())
            }
            Place::Each { slots } => Tensor::from_dispatch(slots),
        };
        let slots = oracle::choice::existing(slots, positions.dims()[2]);
        for (all, new) in [&mut self.keys, &mut self.values].into_iter().zip(new) {
            all.put(&slots, new);
        }
        let moved = slots.full_like(position as i64);
        positions.scatter(2, slots, moved, IndexingUpdateOp::Assign)
    }

    /// New keys in floats for the first entries.
    pub(crate) fn set_keys(&mut self, keys: Tensor<4>) {
        if let Some(exact) = &mut self.exact {
            exact.set_keys(&keys);
        }
        self.keys.set(0, keys);
    }

    /// Key and value of the entry in one slot of all heads, in f32.
    pub(crate) fn at(&self, slot: usize) -> [Tensor<4>; 2] {
        [
            self.keys.range(slot, 1, self.exact_keys()),
            self.values.range(slot, 1, self.exact_values()),
        ]
    }

    /// Adds to the keys, if there is something for them, and the values at `slots [batch, kv_heads, count]`, or to the first ones.
    /// What was exact there is no longer.
    pub(crate) fn add(
        &mut self,
        slots: Option<&Tensor<3, Int>>,
        keys: Option<Tensor<4>>,
        values: Tensor<4>,
    ) {
        let count = values.dims()[2];
        if let Some(keys) = keys {
            self.keys.add(slots, keys);
        }
        self.values.add(slots, values);
        if let Some(exact) = &mut self.exact {
            match slots {
                Some(slots) => exact.forget(slots),
                None => exact.forget_first(count),
            }
        }
    }
}
