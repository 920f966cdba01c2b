//! The keys and values of a layer in codes.

use super::{Channels, Coded, Exact, numbers};
use crate::codes::Codes;
use crate::ops::{AttentionBlock, Mask};
use burn::tensor::{DType, Int, Tensor};

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
    /// On a device without kernels, see [`has_codes`](super::has_codes), and for shapes that do not fit.
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

    /// The keys of the first `count` entries in f32, `[batch, kv_heads, count, head_dim]`.
    #[must_use]
    pub fn keys(&self, count: usize) -> Tensor<4> {
        let exact = self.exact.as_ref();
        let keys = self.keys.first(count).vectors();
        put_exact(keys, exact.map(|exact| (&exact.keys, &exact.slots[..])))
    }

    /// The values of the first `count` entries, as [`CodedEntries::keys`].
    #[must_use]
    pub fn values(&self, count: usize) -> Tensor<4> {
        let exact = self.exact.as_ref();
        let values = self.values.first(count).vectors();
        put_exact(values, exact.map(|exact| (&exact.values, &exact.slots[..])))
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
        let (output, row) = cpu!(attend(q, self, entries, mask));
        let block = AttentionBlock::of_probabilities(row, heads / kv_heads, mask.clone());
        (output, block)
    }

    /// The entries at `slots [batch, kv_heads, count]`, in room for `capacity` of them.
    pub(crate) fn keep(&mut self, slots: &Tensor<3, Int>, capacity: usize) {
        for all in [&mut self.keys, &mut self.values] {
            all.keep(slots, capacity);
        }
        if let Some(exact) = &mut self.exact {
            exact.keep(&numbers(slots));
        }
    }

    pub(crate) fn grow(&mut self, capacity: usize) {
        for all in [&mut self.keys, &mut self.values] {
            all.grow(capacity);
        }
    }

    /// A new entry in the same slot of all heads, `[batch, kv_heads, 1, head_dim]` each.
    pub(crate) fn write(&mut self, slot: usize, [key, value]: [Tensor<4>; 2]) {
        if let Some(exact) = &mut self.exact {
            exact.push(slot, key.clone(), value.clone());
        }
        self.keys.write(slot, key);
        self.values.write(slot, value);
    }

    /// The entry in slot `last`, `key` and `value`, moves into the slots of `victims [batch, kv_heads, 1]`.
    pub(crate) fn replace(
        &mut self,
        victims: &Tensor<3, Int>,
        last: usize,
        [key, value]: [Tensor<4>; 2],
    ) {
        self.keys.put(victims, key);
        self.values.put(victims, value);
        if let Some(exact) = &mut self.exact {
            exact.replace(&numbers(victims), last as i64);
        }
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
        let at = |all: &Coded, exact: Option<&Tensor<4>>| {
            let slots = self.exact.iter().flat_map(|exact| &exact.slots);
            let here = slots.map(|&other| if other == slot as i64 { 0 } else { -1 });
            let here: Vec<i64> = here.collect();
            put_exact(
                all.at(slot).vectors(),
                exact.map(|exact| (exact, &here[..])),
            )
        };
        let exact = self.exact.as_ref();
        [
            at(&self.keys, exact.map(|exact| &exact.keys)),
            at(&self.values, exact.map(|exact| &exact.values)),
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
        let [batch, kv_heads, count, _] = values.dims();
        if let Some(keys) = keys {
            self.keys.add(slots, keys);
        }
        self.values.add(slots, values);
        if let Some(exact) = &mut self.exact {
            match slots {
                Some(slots) => exact.forget(&numbers(slots)),
                None => exact.forget(
                    &(0..count as i64)
                        .collect::<Vec<_>>()
                        .repeat(batch * kv_heads),
                ),
            }
        }
    }
}

/// Vectors with those that are exact in their slots.
fn put_exact(vectors: Tensor<4>, exact: Option<(&Tensor<4>, &[i64])>) -> Tensor<4> {
    match exact {
        None => vectors,
        Some((exact, slots)) => {
            let exact = exact.clone().cast(DType::F32);
            cpu!(put_rows(vectors, slots, exact))
        }
    }
}

/// Positions `[batch, kv_heads, n]` at `slots [batch, kv_heads, count]`, in room for `capacity` of them.
pub(crate) fn keep_positions(
    positions: Tensor<3, Int>,
    slots: &Tensor<3, Int>,
    capacity: usize,
) -> Tensor<3, Int> {
    cpu!(gather_positions(positions, slots, capacity))
}

/// Positions with `position` at `slots [batch, kv_heads, 1]`, in place while nobody else holds them.
pub(crate) fn put_position(
    positions: Tensor<3, Int>,
    slots: &Tensor<3, Int>,
    position: usize,
) -> Tensor<3, Int> {
    cpu!(put_position(positions, slots, position))
}

/// [`put_position`] in the same slot of all heads.
pub(crate) fn write_position(
    positions: Tensor<3, Int>,
    slot: usize,
    position: usize,
) -> Tensor<3, Int> {
    cpu!(write_position(positions, slot, position))
}
