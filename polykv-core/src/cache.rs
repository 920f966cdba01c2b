//! The KV cache of a model: one [`LayerCache`] per layer under one plan.

mod cascade;
mod estimate;
mod facts;
mod layer;
mod order;
mod prompt;
mod queries;
mod report;
mod shared;
mod slots;
mod spans;
mod states;
mod store;

pub use estimate::CacheEstimate;
pub use facts::{LayerFacts, ModelFacts, RopeFacts};
pub use layer::LayerCache;
pub use prompt::{PromptCache, Untrimmed};
pub use report::CacheReport;
pub use shared::SharedPrefill;
pub use spans::Spans;

use crate::budget::EntryCost;
use crate::ops::Nans;
use crate::plan::Plan;
use crate::{Error, Result};
use burn::tensor::{DType, Device, Tensor};
use cascade::Cascade;

/// What a layer's keys, values and queries look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerShape {
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// What keys and values are stored as; they are given and read in f32.
    pub dtype: DType,
}

impl LayerShape {
    /// Query heads per KV head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// What an entry costs in a cache of this shape.
    pub fn cost(&self, layers: usize) -> EntryCost {
        EntryCost {
            layers,
            bytes: 2 * self.batch * self.kv_heads * self.head_dim * self.dtype.size(),
        }
    }

    /// # Errors
    /// Names the dimension that is zero or does not divide.
    pub fn validate(&self) -> Result<()> {
        for (field, value) in [
            ("batch", self.batch),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
        ] {
            if value == 0 {
                return Err(Error::invalid("layer shape", field, 0, "at least 1"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let allowed = format!("a multiple of kv_heads, {}", self.kv_heads);
            return Err(Error::invalid("layer shape", "heads", self.heads, allowed));
        }
        Ok(())
    }
}

/// The caches of all layers. A model calls, for each layer in turn, [`KvCache::prefill`] for every chunk of the
/// prompt and then [`KvCache::end_prefill`] once; afterwards [`KvCache::decode`] per layer and token. Running a layer
/// over the whole prompt before the next one starts keeps the peak at one layer's full cache plus the budgets.
///
/// A clone continues on its own from the same state; its tensors are copied when one of the two changes them.
#[derive(Clone, Debug)]
pub struct KvCache {
    plan: Plan,
    shape: LayerShape,
    device: Device,
    layers: Vec<LayerCache>,
    facts: ModelFacts,
    spans: Spans,
    /// What is known of the layers of a prompt on its way, if the budgets depend on it.
    cascade: Option<Cascade>,
    peak_bytes: usize,
}

impl KvCache {
    /// An empty cache under a valid plan.
    ///
    /// # Errors
    /// A shape that cannot be.
    pub fn new(plan: Plan, shape: LayerShape, device: &Device) -> Result<Self> {
        shape.validate()?;
        plan.validate("plan")?;
        let mut cache = Self {
            plan,
            shape,
            device: device.clone(),
            layers: Vec::new(),
            facts: ModelFacts::default(),
            spans: Spans::default(),
            cascade: None,
            peak_bytes: 0,
        };
        cache.clear();
        Ok(cache)
    }

    /// A cache under `plan` that takes layer `l` from `caches[picks[l]]`. The caches have taken in the same tokens, and
    /// `plan` gives each layer the rules of the cache it comes from. The layers share their tensors with the originals until
    /// one of them changes.
    ///
    /// # Errors
    /// A number of picks other than the plan's layers, a pick that is no cache, a cache with fewer layers.
    pub fn of_layers(plan: Plan, caches: &[Self], picks: &[usize]) -> Result<Self> {
        let refused = |field: &str, found: usize, allowed: String| {
            Err(Error::invalid("cache of layers", field, found, allowed))
        };
        if picks.len() != plan.layers {
            return refused("picks", picks.len(), format!("{}, the layers", plan.layers));
        }
        let mut layers = Vec::with_capacity(picks.len());
        for (layer, &pick) in picks.iter().enumerate() {
            let Some(cache) = caches.get(pick) else {
                return refused("pick", pick, format!("below {}", caches.len()));
            };
            match cache.layers.get(layer) {
                Some(own) => layers.push(own.clone()),
                None => return refused("layer", layer, format!("below {}", cache.layers.len())),
            }
        }
        let Some(first) = picks.first().map(|&pick| &caches[pick]) else {
            return refused("picks", 0, "at least 1".into());
        };
        let mut cache = Self {
            plan,
            shape: first.shape,
            device: first.device.clone(),
            layers,
            facts: first.facts.clone(),
            spans: first.spans.clone(),
            cascade: None,
            peak_bytes: 0,
        };
        cache.peak_bytes = cache.kv_bytes();
        Ok(cache)
    }

    /// Forgets everything, protected spans too; the next prompt starts at position 0.
    pub fn clear(&mut self) {
        self.layers = (0..self.plan.layers)
            .map(|layer| LayerCache::new(layer, self.shape, &self.device))
            .collect();
        self.spans = Spans::default();
        self.cascade = None;
        self.peak_bytes = 0;
    }

    /// Positions that no policy evicts from the next prompt on, beside those that the policies protect themselves. They
    /// are charged to the budgets. Call it before the prompt that holds them: what is evicted does not come back.
    pub fn protect(&mut self, spans: Spans) {
        self.spans = spans;
    }

    /// What some policies need to know of the model. Models tell it themselves before a prompt.
    pub fn set_facts(&mut self, facts: &ModelFacts) {
        self.facts = facts.clone();
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn shape(&self) -> LayerShape {
        self.shape
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The layers, for inspection.
    pub fn layers(&self) -> &[LayerCache] {
        &self.layers
    }

    /// How many tokens have been seen: the position of the next one.
    pub fn seen(&self) -> usize {
        self.layers.iter().map(LayerCache::seen).max().unwrap_or(0)
    }

    /// Announces a prompt of `tokens` tokens: fixes every layer's budget for what then is the whole sequence, and
    /// checks that the plan can be carried out. Call it before the first chunk.
    ///
    /// # Errors
    /// What [`Plan::resolve`] refuses, a budget that the protected spans exceed, and a policy that needs more of the
    /// model than [`KvCache::set_facts`] told, before anything is computed.
    pub fn begin_prefill(&mut self, tokens: usize) -> Result<()> {
        let resolved = self.plan.resolve(
            "plan",
            self.seen() + tokens,
            self.shape.cost(self.plan.layers),
        )?;
        resolved.check_spans("plan", &self.spans)?;
        for (layer, rules) in resolved.layers.iter().enumerate() {
            self.facts.layer(layer).check(layer, rules)?;
        }
        self.cascade = Cascade::of(self.plan.online.as_deref(), &resolved, &self.spans)?;
        for (index, rules) in resolved.layers.into_iter().enumerate() {
            let facts = self.facts.layer(index);
            self.layers[index].begin_prefill(rules, facts, self.spans.clone(), tokens);
        }
        if let Some(cascade) = &self.cascade {
            let needs = cascade.online()?.needs();
            self.layers.iter_mut().for_each(|own| own.need(needs));
        }
        Ok(())
    }

    /// Attention of a chunk of the prompt in one layer; the chunk's keys and values are appended.
    ///
    /// `q [batch, heads, tokens, head_dim]`, `k`, `v [batch, kv_heads, tokens, head_dim]`, all after rotary embedding
    /// at the positions from [`LayerCache::seen`] on → `[batch, heads, tokens, head_dim]`.
    ///
    /// # Errors
    /// Shapes that do not match the cache's, a layer that is not there, or no [`KvCache::begin_prefill`] before.
    pub fn prefill(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        self.run(layer, |cache| cache.prefill(q, k, v))
    }

    /// Applies the layer's prefill rule once the whole prompt went through [`KvCache::prefill`]. Under an allocator that has
    /// to see the layers ([`Online`](crate::allocate::Online)) the layers before it may be cut again.
    ///
    /// # Errors
    /// A NaN score, with the layer and the policy.
    pub fn end_prefill(&mut self, layer: usize) -> Result<()> {
        match self.cascade.take() {
            Some(cascade) => self.end_prefill_in_steps(layer, cascade),
            None => self.run(layer, LayerCache::end_prefill),
        }
    }

    /// Attention of one new token per sequence in one layer, then eviction under the layer's decode rule.
    ///
    /// `q [batch, heads, 1, head_dim]`, `k`, `v [batch, kv_heads, 1, head_dim]` → `[batch, heads, 1, head_dim]`.
    ///
    /// # Errors
    /// As [`KvCache::prefill`].
    pub fn decode(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        self.run(layer, |cache| cache.decode(q, k, v))
    }

    /// Reports NaN scores of earlier evictions. Devices choose without being waited for, so the check is apart: call it
    /// where the device is waited for anyway, now and then and at the end: it reads from every layer. On the CPU prefill
    /// reports at once.
    ///
    /// # Errors
    /// If there were any.
    pub fn check(&mut self) -> Result<()> {
        let mut counts = Vec::new();
        let mut known = false;
        for layer in &mut self.layers {
            match layer.take_nans() {
                Nans::Known(nan) => known |= nan,
                Nans::OnDevice(count) => counts.push(count),
            }
        }
        Nans::Known(known).check()?;
        match counts.is_empty() {
            true => Ok(()),
            false => Nans::OnDevice(Tensor::cat(counts, 0)).check(),
        }
    }

    /// What is kept and what it costs, measured from the tensors that exist.
    pub fn report(&self) -> CacheReport {
        CacheReport::of(&self.layers, self.peak_bytes.max(self.kv_bytes()))
    }

    fn kv_bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::kv_bytes).sum()
    }

    /// Runs a step of one layer and notes the peak: while a layer's tensors change size, old and new exist side by
    /// side.
    fn run<T>(
        &mut self,
        layer: usize,
        step: impl FnOnce(&mut LayerCache) -> Result<T>,
    ) -> Result<T> {
        let layers = self.layers.len();
        let cache = self.layers.get_mut(layer).ok_or_else(|| {
            Error::invalid("cache", "layer", layer, format!("0 to {}", layers - 1))
        })?;
        let before = cache.kv_bytes();
        let output = step(cache)?;
        if cache.kv_bytes() != before {
            self.peak_bytes = self.peak_bytes.max(self.kv_bytes() + before);
        }
        Ok(output)
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests;
