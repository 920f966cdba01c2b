//! Slots that the same layer of several caches shares on a GPU, so that a decoded token of all of them takes as many launches as one of a
//! single cache. Every KV head of every cache has a range of slots side by side; a cache that joins or leaves moves its own
//! entries and no others, until the slots have to grow.

mod free;
mod lent;
mod member;

pub(super) use member::{Held, Member};

use super::store::Prefix;
use crate::ops::{self, Head, Slots, Table, most_tensor_bytes};
use crate::policy::{Protect, TokenRule};
use burn::tensor::{DType, Device, Int, Tensor, s};
use free::Free;
use lent::Lent;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A range has room for so many tokens more, or for a part of its length, before it moves, unless its budget is less.
const SLACK: usize = 64;
const SLACK_PART: usize = 16;
/// Slots grow by at least this part of them. With a quarter there were up to 1.55 times as many as were ever needed at once, with a
/// sixteenth 1.29 times (`tests::room_of_ranges`).
const GROWTH_PART: usize = 16;

/// The slots of a layer.
#[derive(Debug)]
pub(super) struct Arena {
    head_dim: usize,
    device: Device,
    /// Nothing before the first range.
    slots: Option<Slots>,
    free: Free,
    /// The ids of heads.
    ids: Free,
    /// By the ids of the heads that are given a token together, until a range of any moves.
    tables: Vec<(Vec<usize>, Table)>,
    /// Where entries lie that copies share.
    lent: Vec<(Weak<Prefix>, Weak<Lent>)>,
}

/// Who shares it.
pub(super) type Shared = Arc<Mutex<Arena>>;

/// What a policy does with the entries of a member.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keeping {
    /// `None` if nothing goes and nothing is remembered.
    pub rule: Option<TokenRule>,
    /// How many entries stay after a token, `usize::MAX` if none goes.
    pub budget: usize,
    pub protect: Protect,
}

impl Keeping {
    /// The slots of a head that holds `len` entries.
    pub fn capacity(&self, len: usize) -> usize {
        capacity(len, self.budget)
    }

    /// Whether its first entries may lie where others share them.
    pub fn shares(&self) -> bool {
        self.budget == usize::MAX && matches!(self.rule, None | Some(TokenRule::Forgets))
    }
}

/// Makes room at once for ranges of so many slots together.
pub(super) fn reserve(arena: &Shared, slots: usize, dtype: DType) {
    // Where that is too much each finds out for itself.
    let _ = locked(arena).reserve(slots, dtype);
}

/// The entries of a member outside of an arena.
pub(super) struct Entries {
    /// Keys, values `[1, kv_heads, entries, head_dim]` and positions `[1, kv_heads, entries]`.
    pub keys: Tensor<4>,
    pub values: Tensor<4>,
    pub positions: Tensor<3, Int>,
    /// `[1, kv_heads, entries]`, if the rule keeps such.
    pub sums: Option<Tensor<3>>,
}

fn locked(arena: &Shared) -> MutexGuard<'_, Arena> {
    arena.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Arena {
    /// Without slots.
    pub fn new(head_dim: usize, device: &Device) -> Shared {
        Arc::new(Mutex::new(Self {
            head_dim,
            device: device.clone(),
            slots: None,
            free: Free::default(),
            ids: Free::default(),
            tables: Vec::new(),
            lent: Vec::new(),
        }))
    }

    /// A range of this length of slots for vectors of this type; `None` if a tensor would become larger than the device allows.
    fn take(&mut self, length: usize, dtype: DType) -> Option<Range<usize>> {
        if self.free.missing(length) > 0 {
            self.reserve(length, dtype)?;
        }
        self.free.take(length)
    }

    /// Makes room for this many slots side by side.
    fn reserve(&mut self, length: usize, dtype: DType) -> Option<()> {
        let (old, missing) = (self.free.bound, self.free.missing(length));
        if missing > 0 {
            let bytes = self.head_dim.saturating_mul(dtype.size());
            let most = most_tensor_bytes(&self.device).checked_div(bytes)?;
            let more = missing.max(old / GROWTH_PART).min(most.saturating_sub(old));
            if more < missing {
                return None;
            }
            self.grow(more, dtype);
        }
        Some(())
    }

    fn grow(&mut self, more: usize, dtype: DType) {
        self.free.grow(more);
        let all = self.free.bound;
        self.slots = Some(match self.slots.take() {
            None => {
                let vectors = || Tensor::zeros([1, 1, all, self.head_dim], (&self.device, dtype));
                Slots {
                    keys: vectors(),
                    values: vectors(),
                    positions: Tensor::zeros([1, 1, all], &self.device),
                    sums: Tensor::zeros([all], &self.device),
                    // One more than there are ids.
                    nans: Tensor::zeros([1], &self.device),
                }
            }
            Some(old) => {
                let entries = (old.keys, old.values, old.positions);
                let (keys, values, positions) = ops::grow(entries, all);
                let room = Tensor::zeros([more], &self.device);
                Slots {
                    keys,
                    values,
                    positions,
                    sums: Tensor::cat(vec![old.sums, room], 0),
                    nans: old.nans,
                }
            }
        });
    }

    /// Ids for so many heads, whose NaN scores are counted from 0 on.
    fn name(&mut self, count: usize) -> Range<usize> {
        let more = self.ids.missing(count);
        self.ids.grow(more);
        let ids = self.ids.take(count).unwrap_or_default();
        if let Some(slots) = &mut self.slots {
            let zeros = |count: usize| Tensor::<1>::zeros([count], &self.device);
            slots.nans.inplace(|nans| {
                let nans = match more {
                    0 => nans,
                    _ => Tensor::cat(vec![nans, zeros(more)], 0),
                };
                nans.slice_assign(s![ids.clone()], zeros(count))
            });
        }
        ids
    }

    /// Writes the entries of heads into their ranges of `capacity` slots, the first of which begins at `start`.
    fn put(&mut self, entries: Entries, start: usize, capacity: usize) {
        let Some(slots) = &mut self.slots else {
            return;
        };
        let [_, heads, count, width] = entries.keys.dims();
        let length = heads.saturating_mul(capacity);
        let all = start..start.saturating_add(length);
        let own = (entries.keys, entries.values, entries.positions);
        let (keys, values, positions) = match count == capacity {
            true => own,
            false => ops::grow(own, capacity),
        };
        let write = |old: &mut Tensor<4>, new: Tensor<4>| {
            let new = new.reshape([1, 1, length, width]);
            old.inplace(|old| old.slice_assign(s![.., .., all.clone(), ..], new));
        };
        write(&mut slots.keys, keys);
        write(&mut slots.values, values);
        let positions = positions.reshape([1, 1, length]);
        let old = &mut slots.positions;
        old.inplace(|old| old.slice_assign(s![.., .., all.clone()], positions));
        if let Some(sums) = entries.sums {
            let sums = ops::extend(sums, capacity.saturating_sub(count)).reshape([length]);
            let old = &mut slots.sums;
            old.inplace(|old| old.slice_assign(s![all], sums));
        }
    }

    /// Copies of the entries of these heads, which hold as many each, without the first ones.
    fn get(&self, heads: &[Head], without: usize) -> Option<Entries> {
        let slots = self.slots.as_ref()?;
        let all = heads.first().map_or(0, |head| head.len);
        let count = all.saturating_sub(without);
        let dims = [1, heads.len(), count];
        let places = |head: &Head| head.ranges().into_iter().flatten().skip(without);
        let index = heads.iter().flat_map(places).map(|slot| slot as i64);
        let index: Vec<i64> = index.collect();
        let index = Tensor::<1, Int>::from_data(index.as_slice(), &self.device);
        let vectors = |all: &Tensor<4>| {
            let taken = all.clone().select(2, index.clone());
            taken.reshape([1, heads.len(), count, self.head_dim])
        };
        Some(Entries {
            keys: vectors(&slots.keys),
            values: vectors(&slots.values),
            positions: slots
                .positions
                .clone()
                .select(2, index.clone())
                .reshape(dims),
            sums: Some(slots.sums.clone().select(0, index.clone()).reshape(dims)),
        })
    }

    /// A token of several members: `q [sequences, heads, 1, head_dim]`, `k`, `v [sequences, kv_heads, 1, head_dim]` → `[sequences, heads,
    /// 1, head_dim]`. The heads of the members, one behind the other, are the KV heads of the sequences. `None` where a range
    /// would have to grow beyond what the device allows; then nothing has changed.
    pub fn decode(
        arena: &Shared,
        members: &mut [&mut Member],
        [q, k, v]: [Tensor<4>; 3],
        softcap: Option<f64>,
    ) -> Option<Tensor<4>> {
        let mut own = locked(arena);
        for member in members.iter_mut() {
            member.make_room(&mut own)?;
        }
        let heads = || members.iter().flat_map(|member| &member.heads);
        let ids: Vec<usize> = heads().map(|head| head.id).collect();
        let known = own.tables.iter().position(|(of, _)| *of == ids);
        let known = known.map(|index| own.tables.swap_remove(index).1);
        let mut table = known.unwrap_or_else(|| Table::of(heads().cloned().collect(), &own.device));
        // Others with one of these heads would be a token behind.
        own.tables
            .retain(|(of, _)| !of.iter().any(|id| ids.contains(id)));
        let most = heads().map(Head::with_newest).max().unwrap_or(1);
        let slots = own.slots.take()?;
        let (output, slots) = slots.decode(q, [k, v], &mut table, most, softcap);
        own.slots = Some(slots);
        own.tables.push((ids, table));
        for head in members.iter_mut().flat_map(|member| &mut member.heads) {
            head.advance();
        }
        Some(output)
    }

    /// How many slots there are.
    #[cfg(test)]
    pub fn slots(&self) -> usize {
        self.free.bound
    }

    /// How many of them nobody has.
    #[cfg(test)]
    pub fn free_slots(&self) -> usize {
        self.free.count()
    }

    /// Forgets where heads were.
    fn moved(&mut self) {
        self.tables.clear();
    }
}

/// The slots for `len` entries of a head that never holds more than one beyond its budget.
fn capacity(len: usize, budget: usize) -> usize {
    let slack = len.saturating_add(SLACK.max(len / SLACK_PART));
    slack.min(budget.saturating_add(1))
}

#[cfg(test)]
mod tests;
