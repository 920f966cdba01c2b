//! What a layer holds, and its memory.

use super::LayerCache;
use super::joined::Joined;
use crate::cache::report::Tally;
use crate::cache::store::Store;
use crate::ops::{self, Places};
use burn::tensor::{Int, Tensor};
use std::sync::Arc;

impl LayerCache {
    /// How many tokens per sequence the layer has been given, which is the position of the next one counted from the first.
    pub fn seen(&self) -> usize {
        self.seen
    }

    /// Entries per sequence and KV head; of the head with the most where heads have budgets of their own, see
    /// [`LayerCache::head_entries`].
    pub fn entries(&self) -> usize {
        self.len()
    }

    /// The positions of the entries in slot order, `[batch, kv_heads, entries]`, counted from the first token that the layer
    /// was given; −1 behind the entries of a head that has fewer than others. `None` before any token.
    pub fn positions(&self) -> Option<Tensor<3, Int>> {
        match self.is_divided() {
            true => self.positions_of_heads(),
            false => self.apart().store.as_ref().map(Store::positions),
        }
    }

    /// The keys of the entries in slot order, `[batch, kv_heads, entries, head_dim]`, of the type in which they are stored, in
    /// f32 if that is codes; 0 behind the entries of a head that has fewer than others. `None` before any token.
    pub fn keys(&self) -> Option<Tensor<4>> {
        match self.is_divided() {
            true => self.keys_of_heads(),
            false => self.apart().store.as_ref().map(Store::keys),
        }
    }

    /// The causal attention of the latest queries, scaled for 1/√head_dim, over the entries: `q [batch, heads, tokens,
    /// head_dim]` → `[batch, kv_heads, group, tokens, entries]`, 0 behind the entries of a head that has fewer than others.
    /// `None` before any token.
    pub(in crate::cache) fn attention(&self, q: Tensor<4>) -> Option<Tensor<5>> {
        if self.is_divided() {
            return self.attention_of_heads(&q);
        }
        let own = self.apart();
        let store = own.store.as_ref()?;
        let places = Places {
            positions: store.positions(),
            seen: self.seen,
            window: self.facts.window,
        };
        Some(ops::window_attention(
            q,
            store.keys(),
            &places,
            self.softcap,
        ))
    }

    /// Bytes of keys and values, free slots included.
    pub fn kv_bytes(&self) -> usize {
        let own = self.store.as_ref().map_or(0, Store::kv_bytes);
        let own = own.saturating_add(
            self.joined
                .as_ref()
                .map_or(0, |own| own.kv_bytes(self.shape)),
        );
        let heads = self.heads.iter().map(Self::kv_bytes);
        heads.fold(own, usize::saturating_add)
    }

    /// Adds its keys and values to those of other layers.
    pub(in crate::cache) fn count(&self, tally: &mut Tally) {
        if let Some(store) = &self.store {
            tally.own = tally.own.saturating_add(store.own_kv_bytes());
            let prefix = store
                .prefix()
                .map(|prefix| (Arc::as_ptr(prefix) as usize, prefix.kv_bytes()));
            tally.shared.extend(prefix);
        }
        if let Some(joined) = &self.joined {
            tally.own = tally.own.saturating_add(joined.own_kv_bytes(self.shape));
            tally.shared.extend(joined.shared_bytes(self.shape));
            tally.free.extend([joined.free_bytes(self.shape)]);
        }
        self.heads.iter().for_each(|part| part.count(tally));
    }

    /// Bytes of positions, statistics and remembered queries.
    pub fn aux_bytes(&self) -> usize {
        let heads = self.heads.iter().map(Self::aux_bytes);
        let own = [
            self.store.as_ref().map_or(0, Store::aux_bytes),
            self.joined.as_ref().map_or(0, Joined::aux_bytes),
            self.order.bytes(),
            self.queries.bytes(),
            self.states.bytes(),
            self.scores.as_ref().map_or(0, ops::bytes),
        ]
        .into_iter();
        own.chain(heads).fold(0, usize::saturating_add)
    }

    /// Bytes that keys and values would occupy in the cache's type without eviction: those of all tokens, or of as many as the
    /// layer's window holds.
    pub fn full_bytes(&self) -> usize {
        match self.store.is_some() || self.joined.is_some() {
            true => {
                let entry = self.shape.cost(&[]).bytes;
                entry.saturating_mul(self.seen.min(self.most_entries()))
            }
            false => {
                let heads = self.heads.iter().map(Self::full_bytes);
                heads.fold(0, usize::saturating_add)
            }
        }
    }

    /// The most bytes that keys and values occupied while they moved, old and new ones, since this was last asked.
    pub(in crate::cache) fn take_moving(&mut self) -> usize {
        let own = std::mem::take(&mut self.moving);
        let heads = self.heads.iter_mut().map(|part| {
            let now = part.kv_bytes();
            let moving = part.take_moving();
            (now.max(moving), moving > 0)
        });
        let heads = heads.fold((0usize, false), |(sum, any), (bytes, moved)| {
            (sum.saturating_add(bytes), any || moved)
        });
        match heads {
            (sum, true) => own.max(sum),
            (_, false) => own,
        }
    }
}
