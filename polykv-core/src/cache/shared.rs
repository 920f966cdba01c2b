//! One prompt under several plans.

use super::prompt::{Drive, PromptCache};
use super::{KvCache, LayerCache};
use crate::facts::ModelFacts;
use crate::plan::Plan;
use crate::shape::LayerShape;
use crate::{Error, Result};
use burn::tensor::{Device, Tensor};
use std::collections::BTreeMap;

/// Runs one prompt for several plans at once. Layers evict only after they have been given the whole prompt, so that its
/// attention is the same under every plan. When a layer ends, each plan evicts from a copy of the full layer before the next
/// one starts: the peak is one layer's full cache plus the budgets of all plans. Plans with the same rule in a layer evict
/// there once.
///
/// It takes one prompt, through a [`Prompt`](super::Prompt). Each cache of [`SharedPrefill::into_caches`] then is what a
/// [`KvCache`] under that plan would be after the same prompt.
#[derive(Debug)]
pub struct SharedPrefill {
    caches: Vec<KvCache>,
    shape: LayerShape,
    device: Device,
    /// For each cache and layer the first cache that has the same rules there.
    origins: Vec<Vec<usize>>,
    /// The full cache of the layer that is next.
    leader: Option<LayerCache>,
    /// Tokens of the announced prompt.
    tokens: Option<usize>,
    peak_bytes: usize,
}

impl SharedPrefill {
    /// Empty caches under `plans`, in this order, for one model.
    ///
    /// # Errors
    /// An empty list of plans, plans with different numbers of layers, and what [`KvCache::new`] refuses.
    pub fn new(plans: Vec<Plan>, shape: LayerShape, device: &Device) -> Result<Self> {
        let Some(layers) = plans.first().map(|plan| plan.layers.len()) else {
            return Err(Error::invalid("shared prefill", "plans", 0, "at least 1"));
        };
        if let Some(other) = plans.iter().find(|plan| plan.layers.len() != layers) {
            let allowed = format!("{layers}, as in the first plan");
            return Err(Error::invalid(
                "shared prefill",
                "layers",
                other.layers.len(),
                allowed,
            ));
        }
        let caches = plans
            .into_iter()
            .map(|plan| KvCache::new(plan, shape, device))
            .collect::<Result<_>>()?;
        Ok(Self {
            caches,
            shape,
            device: device.clone(),
            origins: Vec::new(),
            leader: None,
            tokens: None,
            peak_bytes: 0,
        })
    }

    /// The most bytes of keys and values so far. A layer that several plans keep whole counts once for each of them, though
    /// they share one copy until they change it.
    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes
    }

    /// One cache per plan, in the order of the plans, ready to decode or for another prompt.
    #[must_use]
    pub fn into_caches(self) -> Vec<KvCache> {
        self.caches
    }

    fn scaled(&self, q: Tensor<4>) -> Tensor<4> {
        match self.caches.first() {
            Some(cache) => cache.scaled(q),
            None => q,
        }
    }

    fn note_peak(&mut self) {
        let budgets: usize = self.caches.iter().map(KvCache::kv_bytes).sum();
        let leader = self.leader.as_ref().map_or(0, LayerCache::kv_bytes);
        self.peak_bytes = self.peak_bytes.max(budgets.saturating_add(leader));
    }
}

impl PromptCache for SharedPrefill {
    fn seen(&self) -> usize {
        self.caches.first().map_or(0, KvCache::seen)
    }

    fn next_positions(&self) -> Vec<usize> {
        let first = self.caches.first();
        first.map(KvCache::next_positions).unwrap_or_default()
    }

    fn set_facts(&mut self, facts: &ModelFacts) {
        let caches = self.caches.iter_mut();
        caches.for_each(|cache| cache.set_facts(facts));
    }
}

impl Drive for SharedPrefill {
    fn layers(&self) -> usize {
        self.caches.first().map_or(0, |cache| cache.layers.len())
    }

    fn begin(&mut self, tokens: usize) -> Result<()> {
        if self.tokens.is_some() {
            let allowed = "one; give more to the caches of into_caches()";
            return Err(Error::order("shared prefill", "prompts", 2, allowed));
        }
        for cache in &mut self.caches {
            cache.begin(tokens)?;
        }
        self.origins = origins(&self.caches);
        self.tokens = Some(tokens);
        Ok(())
    }

    fn attend(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        let q = self.scaled(q);
        let tokens = self.tokens.unwrap_or(0);
        let leader = self.leader.take().unwrap_or_else(|| {
            let followers = self
                .caches
                .iter()
                .filter_map(|cache| cache.layers.get(layer));
            LayerCache::leader(layer, self.shape, &self.device, tokens, followers)
        });
        let mut followers = followers(&mut self.caches, &self.origins, layer);
        let output = self
            .leader
            .insert(leader)
            .attend_for(&mut followers, q, k, v)?;
        self.note_peak();
        Ok(output)
    }

    fn layers_to_repeat(&self) -> usize {
        let caches = self.caches.iter();
        caches.map(Drive::layers_to_repeat).max().unwrap_or(0)
    }

    fn repeat(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        let q = self.scaled(q);
        let Some(leader) = &mut self.leader else {
            let found = format!("layer {layer} repeats without a prompt");
            return Err(Error::Failed(found));
        };
        let mut followers = followers(&mut self.caches, &self.origins, layer);
        followers.retain(|follower| follower.wants_repetition());
        leader.repeat_for(&mut followers, q, k, v)
    }

    fn end_layer(&mut self, layer: usize) -> Result<()> {
        let Some(leader) = self.leader.take() else {
            return Err(Error::Failed(format!(
                "layer {layer} ends without a prompt"
            )));
        };
        for (index, origins) in self.origins.iter().enumerate() {
            let Some((before, [cache, ..])) = self.caches.split_at_mut_checked(index) else {
                continue;
            };
            // None where the cache is the first with its rules.
            let origin = origins.get(layer).and_then(|&origin| before.get(origin));
            let cut = origin.and_then(|cache| cache.layers.get(layer)).cloned();
            // Two steps, so that the cache's own peak is what it would be alone.
            cache.run(layer, |cache| {
                cache.copy_entries(&leader);
                Ok(())
            })?;
            match cut {
                None => cache.trim(layer)?,
                Some(cut) => cache.run(layer, |cache| {
                    *cache = cut;
                    Ok(())
                })?,
            }
        }
        self.leader = Some(leader);
        self.note_peak();
        self.leader = None;
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.caches.iter_mut().try_for_each(KvCache::end)
    }
}

/// The caches of one layer that evict by rules which no cache before them has.
fn followers<'a>(
    caches: &'a mut [KvCache],
    origins: &[Vec<usize>],
    layer: usize,
) -> Vec<&'a mut LayerCache> {
    let caches = caches.iter_mut().zip(origins).enumerate();
    caches
        .filter(|(index, (_, origins))| origins.get(layer) == Some(index))
        .filter_map(|(_, (cache, _))| cache.layers.get_mut(layer))
        .collect()
}

/// For each cache and layer the first cache with the same rules there. A cache whose budgets depend on its other layers
/// shares nothing.
fn origins(caches: &[KvCache]) -> Vec<Vec<usize>> {
    let mut known: BTreeMap<(usize, String), usize> = BTreeMap::new();
    let caches = caches.iter().enumerate();
    caches
        .map(|(index, cache)| {
            let layers = cache.layers.iter().enumerate();
            let origin = |(layer, layer_cache): (usize, &LayerCache)| match &cache.cascade {
                Some(_) => index,
                None => *known
                    .entry((layer, layer_cache.rules_key()))
                    .or_insert(index),
            };
            layers.map(origin).collect()
        })
        .collect()
}
