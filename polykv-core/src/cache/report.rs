use super::LayerCache;
use serde::Serialize;

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
