//! The few entries beside the codes that stay in floats.

use super::numbers;
use crate::ops::{bytes, take};
use burn::tensor::{Device, Int, Tensor, TensorData, s};

/// The first tokens of a sequence: attention goes to them from everywhere, and their keys are unlike all others.
const SINKS: usize = 1;

/// The latest entries, which the next tokens attend to most.
const RECENT: usize = Exact::RECENT;

/// Keys and values in floats of some entries of each head, which are in codes as well.
#[derive(Clone, Debug)]
pub(crate) struct Exact {
    /// `[batch, kv_heads, Exact::COUNT, head_dim]`
    pub keys: Tensor<4>,
    pub values: Tensor<4>,
    /// Where they are among the entries, `[batch * kv_heads][Exact::COUNT]`; −1 for none.
    pub slots: Vec<i64>,
    /// Which of the recent ones the next entry takes the place of.
    pub next: usize,
}

impl Exact {
    /// Entries of each head that stay in floats.
    pub const COUNT: usize = SINKS + RECENT;

    /// Of these the latest.
    pub const RECENT: usize = 8;

    /// The first and the latest of entries in floats, `[batch, kv_heads, n, head_dim]`, whose `positions [batch, kv_heads,
    /// count]` are those of the first `count`.
    pub fn of([keys, values]: [&Tensor<4>; 2], positions: &Tensor<3, Int>) -> Self {
        let [batch, kv_heads, count] = positions.dims();
        let positions = numbers(positions);
        let mut slots = Vec::with_capacity(batch * kv_heads * Self::COUNT);
        for positions in positions.chunks(count.max(1)) {
            let mut latest: Vec<(i64, i64)> = positions.iter().copied().zip(0..).collect();
            latest.sort_unstable();
            let sinks = latest
                .iter()
                .take_while(|(position, _)| *position < SINKS as i64);
            let sinks: Vec<i64> = sinks.map(|(_, slot)| *slot).collect();
            let others = &latest[sinks.len()..];
            let recent = &others[others.len().saturating_sub(RECENT)..];
            let padded = |found: usize, wanted: usize| std::iter::repeat_n(-1, wanted - found);
            slots.extend(&sinks);
            slots.extend(padded(sinks.len(), SINKS));
            // The oldest is the next to go.
            slots.extend(padded(recent.len(), RECENT));
            slots.extend(recent.iter().map(|(_, slot)| *slot));
        }
        let dims = [batch, kv_heads, Self::COUNT];
        let of = |all: &Tensor<4>| take(all.clone(), places(&slots, dims, &all.device()));
        Self {
            keys: of(keys),
            values: of(values),
            slots,
            next: 0,
        }
    }

    pub fn bytes(&self) -> usize {
        bytes(&self.keys).saturating_add(bytes(&self.values))
    }

    pub fn of_head(&self, row: usize, head: usize) -> Self {
        let of = |all: &Tensor<4>| all.clone().narrow(0, row, 1).narrow(1, head, 1);
        let first = (row * self.keys.dims()[1] + head) * Self::COUNT;
        Self {
            keys: of(&self.keys),
            values: of(&self.values),
            slots: self.slots[first..first + Self::COUNT].to_vec(),
            next: self.next,
        }
    }

    /// A new entry in the same slot of all heads, `[batch, kv_heads, 1, head_dim]` each, takes the oldest one's place.
    pub fn push(&mut self, slot: usize, key: Tensor<4>, value: Tensor<4>) {
        let place = SINKS + self.next;
        self.next = (self.next + 1) % RECENT;
        for (all, new) in [(&mut self.keys, key), (&mut self.values, value)] {
            let new = new.cast(all.dtype());
            all.inplace(|t| t.slice_assign(s![.., .., place..place + 1, ..], new));
        }
        for slots in self.slots.chunks_exact_mut(Self::COUNT) {
            slots[place] = slot as i64;
        }
    }

    /// The entry in slot `last` of all heads has moved into the slot of each head's victim, which is gone.
    pub fn replace(&mut self, victims: &[i64], last: i64) {
        for (slots, &victim) in self.slots.chunks_exact_mut(Self::COUNT).zip(victims) {
            for slot in slots {
                *slot = match *slot {
                    slot if slot == victim => -1,
                    slot if slot == last => victim,
                    slot => slot,
                };
            }
        }
    }

    /// Only the entries in `kept [batch * kv_heads][count]` stay, in this order.
    pub fn keep(&mut self, kept: &[i64]) {
        let heads = self.slots.len() / Self::COUNT;
        let count = kept.len() / heads.max(1);
        let kept = kept.chunks(count.max(1));
        for (slots, kept) in self.slots.chunks_exact_mut(Self::COUNT).zip(kept) {
            for slot in slots.iter_mut().filter(|slot| **slot >= 0) {
                let place = kept.iter().position(|kept| kept == slot);
                *slot = place.map_or(-1, |place| place as i64);
            }
        }
    }

    /// Entries in `changed [batch * kv_heads][count]` are no longer what they were.
    pub fn forget(&mut self, changed: &[i64]) {
        let heads = self.slots.len() / Self::COUNT;
        let count = changed.len() / heads.max(1);
        let changed = changed.chunks(count.max(1));
        for (slots, changed) in self.slots.chunks_exact_mut(Self::COUNT).zip(changed) {
            for slot in slots.iter_mut().filter(|slot| changed.contains(slot)) {
                *slot = -1;
            }
        }
    }

    /// Takes the keys anew from all entries in floats, `[batch, kv_heads, n, head_dim]`.
    pub fn set_keys(&mut self, keys: &Tensor<4>) {
        let [batch, kv_heads, ..] = keys.dims();
        let places = places(&self.slots, [batch, kv_heads, Self::COUNT], &keys.device());
        self.keys = take(keys.clone(), places).cast(self.keys.dtype());
    }
}

/// Slots to gather from; where there is none, any.
fn places(slots: &[i64], dims: [usize; 3], device: &Device) -> Tensor<3, Int> {
    let slots: Vec<i64> = slots.iter().map(|slot| (*slot).max(0)).collect();
    Tensor::from_data(TensorData::new(slots, dims), device)
}
