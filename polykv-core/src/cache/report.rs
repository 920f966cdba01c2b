use super::{KvCache, LayerCache};
use serde::Serialize;
use std::collections::BTreeMap;

/// What a cache holds, measured from its tensors.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CacheReport {
    /// Tokens that each sequence has been given.
    pub seen: usize,
    /// Entries per sequence and KV head in each layer, the mean where heads have budgets of their own.
    pub kept: Vec<f64>,
    /// The fewest and the most entries of a KV head in each layer. They are equal unless heads have budgets of their own.
    pub kept_heads: Vec<[usize; 2]>,
    /// Bytes of keys and values over all layers, free slots included.
    pub bytes: usize,
    /// The largest `bytes` so far, transient copies included.
    pub peak_bytes: usize,
    /// Bytes of positions, statistics and remembered queries.
    pub aux_bytes: usize,
    /// Bytes that keys and values would occupy in the cache's type without eviction: those of all tokens, in layers with a
    /// window of as many as it holds.
    pub full_bytes: usize,
}

impl CacheReport {
    pub(super) fn of(layers: &[LayerCache], peak_bytes: usize) -> Self {
        Self {
            seen: layers.iter().map(LayerCache::seen).max().unwrap_or(0),
            kept: layers.iter().map(LayerCache::entries_mean).collect(),
            kept_heads: layers.iter().map(LayerCache::head_range).collect(),
            bytes: layers.iter().map(LayerCache::kv_bytes).sum(),
            peak_bytes,
            aux_bytes: layers.iter().map(LayerCache::aux_bytes).sum(),
            full_bytes: layers.iter().map(LayerCache::full_bytes).sum(),
        }
    }

    /// The entries of the KV head with the fewest and of the one with the most, if there are heads of one layer that differ.
    pub fn divided_heads(&self) -> Option<[usize; 2]> {
        let heads = self.kept_heads.iter();
        let differ = heads.clone().any(|[least, most]| least != most);
        let least = heads.clone().map(|head| head[0]).min()?;
        let most = heads.map(|head| head[1]).max()?;
        differ.then_some([least, most])
    }

    /// The entries of the layer with the fewest.
    pub fn kept_min(&self) -> f64 {
        self.kept.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The mean of the entries over all layers.
    pub fn kept_mean(&self) -> f64 {
        self.kept.iter().sum::<f64>() / self.kept.len().max(1) as f64
    }

    /// The entries of the layer with the most.
    pub fn kept_max(&self) -> f64 {
        self.kept.iter().copied().fold(0.0, f64::max)
    }
}

/// Keys and values of several caches together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Holdings {
    /// Bytes of keys and values, free slots included. What copies share counts once, while [`KvCache::kv_bytes`] of each counts it.
    pub bytes: usize,
    /// Of these, bytes that are shared or may be, by a cache and copies of it.
    pub shared_bytes: usize,
    /// Of these, bytes of slots beside those of other caches ([`KvCache::decode_together`]) that no cache has.
    pub free_bytes: usize,
    /// Of these, bytes of the slots that lie side by side, the most of each layer: the closer to `free_bytes`, the less the free
    /// slots are fragmented.
    pub free_run_bytes: usize,
}

/// What [`Holdings`] are summed from.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub own: usize,
    /// By where it lies.
    pub shared: BTreeMap<usize, usize>,
    /// Free bytes and those side by side, by where they lie.
    pub free: BTreeMap<usize, [usize; 2]>,
}

impl KvCache {
    /// What caches hold together.
    pub fn holdings<'a>(caches: impl IntoIterator<Item = &'a Self>) -> Holdings {
        let mut tally = Tally::default();
        for layer in caches.into_iter().flat_map(|cache| &cache.layers) {
            layer.count(&mut tally);
        }
        let sum = |bytes: &mut dyn Iterator<Item = usize>| bytes.fold(0, usize::saturating_add);
        let shared_bytes = sum(&mut tally.shared.into_values());
        let free_bytes = sum(&mut tally.free.values().map(|[free, _]| *free));
        Holdings {
            bytes: sum(&mut [tally.own, shared_bytes, free_bytes].into_iter()),
            shared_bytes,
            free_bytes,
            free_run_bytes: sum(&mut tally.free.values().map(|[_, run]| *run)),
        }
    }
}
