//! Entries that copies of a cache's layer share in an arena.

use super::{Entries, Shared, locked};
use crate::cache::store::Prefix;
use burn::tensor::DType;
use std::ops::Range;
use std::sync::Arc;

/// Ranges of the KV heads one behind the other, all of the same length and without free slots, until it is dropped.
#[derive(Debug)]
pub struct Lent {
    arena: Shared,
    range: Range<usize>,
}

impl Lent {
    /// Where the entries of `prefix` lie, which are brought there unless they are there; `None` where the device has no room for
    /// tensors so large.
    pub fn of(
        arena: &Shared,
        prefix: &Arc<Prefix>,
        kv_heads: usize,
        dtype: DType,
    ) -> Option<Arc<Self>> {
        let mut own = locked(arena);
        own.lent.retain(|(_, lent)| lent.strong_count() > 0);
        let place = Arc::downgrade(prefix);
        let known = own.lent.iter().find(|(other, _)| other.ptr_eq(&place));
        if let Some(lent) = known.and_then(|(_, lent)| lent.upgrade()) {
            return Some(lent);
        }
        let len = prefix.len();
        let range = own.take(kv_heads.saturating_mul(len), dtype)?;
        let [keys, values] = prefix.both();
        let entries = Entries {
            keys,
            values,
            positions: prefix.held_positions(),
            sums: None,
        };
        own.put(entries, range.start, len);
        let lent = Arc::new(Self {
            arena: arena.clone(),
            range,
        });
        own.lent.push((place, Arc::downgrade(&lent)));
        Some(lent)
    }

    /// The first slot.
    pub fn start(&self) -> usize {
        self.range.start
    }

    pub fn slots(&self) -> usize {
        self.range.len()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        locked(&self.arena).free.give(self.range.clone());
    }
}
