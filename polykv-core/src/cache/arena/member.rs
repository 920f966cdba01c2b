//! What a cache has in an arena.

use super::lent::Lent;
use super::{Arena, Entries, Keeping, Shared, capacity, locked};
use crate::cache::store::Prefix;
use crate::ops::Head;
use burn::tensor::{DType, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// The entries of a cache's layer, or of one of its KV heads, in an arena until it is dropped: a range for each head, all of the same
/// length, one behind the other. The first entries may lie in ranges that copies share.
#[derive(Debug)]
pub struct Member {
    arena: Shared,
    pub(super) heads: Vec<Head>,
    /// Slots of each head of its own.
    capacity: usize,
    lent: Option<Arc<Lent>>,
}

/// What is to lie in an arena.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub kv_heads: usize,
    /// Entries of each.
    pub len: usize,
    /// Tokens that the sequence has been given.
    pub seen: usize,
    pub dtype: DType,
}

impl Member {
    /// Ranges for the entries of these heads of a sequence after `seen` tokens; `None` where the device has no room for tensors so large.
    pub fn join(
        arena: &Shared,
        entries: &Held,
        keeping: Keeping,
        prefix: Option<&Arc<Prefix>>,
    ) -> Option<Self> {
        let Held {
            kv_heads,
            len,
            seen,
            dtype,
        } = *entries;
        let lent = match prefix {
            Some(prefix) => Some(Lent::of(arena, prefix, kv_heads, dtype)?),
            None => None,
        };
        let shared = prefix.map_or(0, |prefix| prefix.len());
        let capacity = keeping.capacity(len.saturating_sub(shared));
        let mut own = locked(arena);
        let all = own.take(kv_heads.saturating_mul(capacity), dtype)?;
        let starts = all.step_by(capacity.max(1));
        let shared_starts = lent.as_ref().map_or(0, |lent| lent.start());
        let shared_starts =
            (0..kv_heads).map(|head| shared_starts.saturating_add(head.saturating_mul(shared)));
        let places = starts.zip(shared_starts).zip(own.name(kv_heads));
        let heads = places.map(|((start, shared_start), id)| Head {
            start,
            shared_start,
            shared,
            len,
            seen,
            budget: keeping.budget,
            rule: keeping.rule,
            sinks: keeping.protect.sinks,
            recent: keeping.protect.recent,
            id,
            evicted: false,
        });
        Some(Self {
            arena: arena.clone(),
            heads: heads.collect(),
            capacity,
            lent,
        })
    }

    /// Writes the entries that it joined with.
    pub fn fill(&self, entries: Entries) {
        locked(&self.arena).put(entries, self.range().start, self.capacity);
    }

    /// Whom its slots are shared with.
    pub fn arena(&self) -> &Shared {
        &self.arena
    }

    /// Entries per KV head.
    pub fn len(&self) -> usize {
        self.heads.first().map_or(0, |head| head.len)
    }

    /// The slots of all its heads.
    pub fn slots(&self) -> usize {
        self.heads.len().saturating_mul(self.capacity)
    }

    /// How many slots of the arena nobody has, and how many of those lie side by side at most.
    pub fn free_slots(&self) -> [usize; 2] {
        let own = locked(&self.arena);
        [own.free.count(), own.free.longest()]
    }

    /// Bytes of the positions and the sums in its slots and in those that it shares.
    pub fn aux_bytes(&self) -> usize {
        let own = locked(&self.arena);
        let positions = own
            .slots
            .as_ref()
            .map_or(0, |own| own.positions.dtype().size());
        let each = positions.saturating_add(size_of::<f32>());
        let shared = self.lent.as_ref().map_or(0, |lent| lent.slots());
        self.slots().saturating_add(shared).saturating_mul(each)
    }

    /// The slots that it shares, of all its heads.
    pub fn lent(&self) -> Option<&Arc<Lent>> {
        self.lent.as_ref()
    }

    fn shared(&self) -> usize {
        self.heads.first().map_or(0, |head| head.shared)
    }

    /// Whether entries have gone since it joined.
    pub fn has_evicted(&self) -> bool {
        self.heads.iter().any(|head| head.evicted)
    }

    /// Copies of its entries.
    pub fn entries(&self) -> Option<Entries> {
        locked(&self.arena).get(&self.heads, 0)
    }

    /// The number of NaN scores of each head, `[1, heads]`, if it evicts.
    pub fn nans(&self) -> Option<Tensor<2>> {
        let own = locked(&self.arena);
        let evicts = |head: &&Head| head.budget < usize::MAX;
        let first = self.heads.first().filter(evicts)?.id;
        let nans = own.slots.as_ref()?.nans.clone();
        let count = self.heads.len();
        Some(nans.narrow(0, first, count).reshape([1, count]))
    }

    /// Moves to longer ranges if there is no slot for another entry.
    pub(super) fn make_room(&mut self, own: &mut Arena) -> Option<()> {
        let len = self.len().saturating_sub(self.shared());
        if len < self.capacity {
            return Some(());
        }
        let budget = self.heads.first().map_or(usize::MAX, |head| head.budget);
        let capacity = capacity(len.saturating_add(1), budget);
        let entries = own.get(&self.heads, self.shared())?;
        let all = own.take(
            self.heads.len().saturating_mul(capacity),
            entries.keys.dtype(),
        )?;
        own.put(entries, all.start, capacity);
        own.free.give(self.range());
        for (head, start) in self.heads.iter_mut().zip(all.step_by(capacity)) {
            head.start = start;
        }
        self.capacity = capacity;
        own.moved();
        Some(())
    }

    fn range(&self) -> Range<usize> {
        let start = self.heads.first().map_or(0, |head| head.start);
        start..start.saturating_add(self.slots())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut own = locked(&self.arena);
        own.free.give(self.range());
        let first = self.heads.first().map_or(0, |head| head.id);
        own.ids.give(first..first.saturating_add(self.heads.len()));
        own.moved();
    }
}
