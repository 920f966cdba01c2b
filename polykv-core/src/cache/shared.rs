//! One prompt under many plans.

use super::{KvCache, LayerCache, LayerShape, ModelFacts, PromptCache};
use crate::plan::Plan;
use crate::{Error, Result};
use burn::tensor::{Device, Tensor};

/// Runs a prompt once for any number of plans: eviction after a layer's prompt changes nothing inside the prompt. While
/// a layer's full keys and values are at hand, every plan takes its cut of them before the next layer starts, so the
/// peak is one layer's full cache plus the budgets of all plans. Plans that do the same in a layer share one cut.
///
/// Each cache of [`SharedPrefill::finish`] is what [`KvCache`] would be after the same prompt alone.
#[derive(Debug)]
pub struct SharedPrefill {
    caches: Vec<KvCache>,
    /// For each layer and cache the first cache with the same rules there.
    firsts: Vec<Vec<usize>>,
    shape: LayerShape,
    device: Device,
    /// The layer at hand.
    leader: Option<LayerCache>,
    /// Tokens of the announced prompt.
    tokens: Option<usize>,
    peak_bytes: usize,
}

impl SharedPrefill {
    /// Empty caches under `plans`, which are for one model.
    ///
    /// # Errors
    /// No plan, plans with different numbers of layers, and what [`KvCache::new`] refuses.
    pub fn new(plans: Vec<Plan>, shape: LayerShape, device: &Device) -> Result<Self> {
        let Some(layers) = plans.first().map(|plan| plan.layers) else {
            return Err(Error::invalid("shared prefill", "plans", 0, "at least 1"));
        };
        if let Some(other) = plans.iter().find(|plan| plan.layers != layers) {
            let allowed = format!("{layers}, as in the first plan");
            return Err(Error::invalid(
                "shared prefill",
                "layers",
                other.layers,
                allowed,
            ));
        }
        let caches = plans
            .into_iter()
            .map(|plan| KvCache::new(plan, shape, device))
            .collect::<Result<_>>()?;
        Ok(Self {
            caches,
            firsts: Vec::new(),
            shape,
            device: device.clone(),
            leader: None,
            tokens: None,
            peak_bytes: 0,
        })
    }

    /// The most bytes of keys and values held so far. A layer that a plan keeps whole counts for each such plan,
    /// though they share one copy until they change it.
    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes
    }

    /// One cache per plan, in their order, ready for decode steps or more prompt.
    pub fn finish(self) -> Vec<KvCache> {
        self.caches
    }

    fn note_peak(&mut self) {
        let own: usize = self.caches.iter().map(KvCache::kv_bytes).sum();
        let leader = self.leader.as_ref().map_or(0, LayerCache::kv_bytes);
        self.peak_bytes = self.peak_bytes.max(own + leader);
    }

    fn no_layer(&self, layer: usize, allowed: impl std::fmt::Display) -> Error {
        Error::invalid("shared prefill", "layer", layer, allowed)
    }
}

impl PromptCache for SharedPrefill {
    fn seen(&self) -> usize {
        self.caches.first().map_or(0, KvCache::seen)
    }

    fn set_facts(&mut self, facts: &ModelFacts) {
        let caches = self.caches.iter_mut();
        caches.for_each(|cache| cache.set_facts(facts));
    }

    /// # Errors
    /// A second prompt, and what any of the plans refuses.
    fn begin_prefill(&mut self, tokens: usize) -> Result<()> {
        if self.tokens.is_some() {
            let allowed = "one; give more to the caches of finish()";
            return Err(Error::invalid("shared prefill", "prompts", 2, allowed));
        }
        for cache in &mut self.caches {
            cache.begin_prefill(tokens)?;
        }
        self.firsts = (0..self.caches[0].layers.len())
            .map(|layer| firsts(&self.caches, layer))
            .collect();
        self.tokens = Some(tokens);
        Ok(())
    }

    fn prefill(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        let tokens = self.tokens.ok_or_else(|| {
            Error::invalid("shared prefill", "call", "prefill", "begin_prefill first")
        })?;
        let layers = self.caches.first().map_or(0, |cache| cache.layers.len());
        if layer >= layers {
            return Err(self.no_layer(layer, format!("0 to {}", layers - 1)));
        }
        if let Some(leader) = &self.leader
            && leader.index() != layer
        {
            let allowed = format!("{}, until its end_prefill", leader.index());
            return Err(self.no_layer(layer, allowed));
        }
        let leader = self.leader.take().unwrap_or_else(|| {
            let followers = self.caches.iter().map(|cache| &cache.layers[layer]);
            LayerCache::leader(layer, self.shape, &self.device, tokens, followers)
        });
        let firsts = &self.firsts[layer];
        let mut followers: Vec<&mut LayerCache> = self
            .caches
            .iter_mut()
            .enumerate()
            .filter(|(index, _)| firsts[*index] == *index)
            .map(|(_, cache)| &mut cache.layers[layer])
            .collect();
        let output = self.leader.insert(leader).lead(&mut followers, q, k, v)?;
        self.note_peak();
        Ok(output)
    }

    fn end_prefill(&mut self, layer: usize) -> Result<()> {
        let own = self.leader.take_if(|leader| leader.index() == layer);
        let leader = own.ok_or_else(|| self.no_layer(layer, "the one that was just prefilled"))?;
        for index in 0..self.caches.len() {
            let first = self.firsts[layer][index];
            let cut = (first < index).then(|| self.caches[first].layers[layer].clone());
            let cache = &mut self.caches[index];
            // Two steps, so that the cache's own peak is what it would be alone.
            cache.run(layer, |own| {
                own.follow(&leader);
                Ok(())
            })?;
            cache.run(layer, |own| match cut {
                Some(cut) => {
                    *own = cut;
                    Ok(())
                }
                None => own.end_prefill(),
            })?;
        }
        self.leader = Some(leader);
        self.note_peak();
        self.leader = None;
        Ok(())
    }
}

/// For each cache the first one with the same rules in a layer, itself if there is none before it.
fn firsts(caches: &[KvCache], layer: usize) -> Vec<usize> {
    let layers: Vec<&LayerCache> = caches.iter().map(|cache| &cache.layers[layer]).collect();
    let first = |index: usize| {
        let same = |other: &usize| layers[*other].same_rules(layers[index]);
        (0..index).find(same).unwrap_or(index)
    };
    (0..layers.len()).map(first).collect()
}
