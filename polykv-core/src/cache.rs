//! The KV cache of a model under one plan: one [`LayerCache`] per layer.
//!
//! A prompt runs through a [`Prompt`], layer by layer; afterwards [`KvCache::decode`] takes one token per sequence and
//! layer.

mod cascade;
mod check;
mod estimate;
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
mod untrimmed;

pub use estimate::CacheEstimate;
pub use layer::LayerCache;
pub use prompt::{Prompt, PromptCache};
pub use report::CacheReport;
pub use shared::SharedPrefill;
pub use spans::Spans;
pub use untrimmed::Untrimmed;

use crate::facts::ModelFacts;
use crate::plan::Plan;
use crate::shape::LayerShape;
use crate::{Error, Result};
use burn::tensor::{Device, Tensor};
use cascade::Cascade;
use prompt::Drive;

/// Tokens between looks at NaN scores while decoding on a device that has to be waited for.
const CHECK_EVERY: usize = 32;

/// The caches of all layers.
///
/// A prompt goes through [`KvCache::prompt`], every token after it through [`KvCache::decode`]. Running a layer over the
/// whole prompt before the next one starts keeps the peak at one layer's full cache plus the budgets.
///
/// Attention scores are `q·k` times 1/√head_dim, or times [`ModelFacts::scale`] if the model tells it. All rows of the batch take in
/// the same number of tokens, without padding; they may stand at different positions, see [`KvCache::starting_at`].
///
/// NaN scores are an error of the call that meets them. A device that computes on its own (a GPU) is asked when a prompt
/// ends, after every 32 decoded tokens, and by [`KvCache::report`]; from then on the cache refuses everything until
/// [`KvCache::clear`].
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
    /// The position of each row's first token.
    first: Vec<usize>,
    stage: Stage,
    /// What is known of the layers of a prompt on its way, if the budgets depend on it.
    cascade: Option<Cascade>,
    peak_bytes: usize,
}

/// What a cache can take next.
#[derive(Clone, Debug, PartialEq)]
enum Stage {
    /// A prompt or a token.
    Ready,
    /// More of a prompt of so many tokens.
    Prompt(usize),
    /// Nothing: scores were NaN.
    Failed(String),
}

impl KvCache {
    /// An empty cache under a plan, for layers of one shape on one device.
    ///
    /// # Errors
    /// What [`Plan::check`] refuses, a dimension of zero, and query heads that are no multiple of the KV heads.
    pub fn new(plan: Plan, shape: LayerShape, device: &Device) -> Result<Self> {
        shape.check()?;
        plan.check()?;
        let mut cache = Self {
            plan,
            shape,
            device: device.clone(),
            layers: Vec::new(),
            facts: ModelFacts::default(),
            spans: Spans::default(),
            first: vec![0; shape.batch],
            stage: Stage::Ready,
            cascade: None,
            peak_bytes: 0,
        };
        cache.clear();
        Ok(cache)
    }

    /// The same empty cache with the position of each row's first token, `first[row]`, where 0 is the rule. Keys and
    /// queries are given rotated for these positions. Eviction does not depend on them: sinks are the first tokens that a
    /// row was given.
    ///
    /// # Errors
    /// Another number of positions than rows, and a cache that holds something.
    pub fn starting_at(mut self, first: &[usize]) -> Result<Self> {
        if first.len() != self.shape.batch {
            let allowed = format!("{}, the rows of the batch", self.shape.batch);
            return Err(Error::shape(
                "cache",
                "first positions",
                first.len(),
                allowed,
            ));
        }
        if self.seen() > 0 {
            let found = format!("set after {} tokens", self.seen());
            return Err(Error::order(
                "cache",
                "first positions",
                found,
                "set before",
            ));
        }
        self.first = first.to_vec();
        Ok(self)
    }

    /// A cache under `plan` that takes layer `l` from `caches[picks[l]]`. The caches have taken in the same tokens, and
    /// `plan` gives each layer the rules of the cache it comes from. The layers share their tensors with the originals
    /// until one of them changes.
    ///
    /// # Errors
    /// A number of picks other than the plan's layers, a pick that is no cache, a cache with fewer layers or an unfinished
    /// prompt.
    pub fn of_layers(plan: Plan, caches: &[Self], picks: &[usize]) -> Result<Self> {
        let refused = |field: &str, found: usize, allowed: String| {
            Err(Error::shape("cache of layers", field, found, allowed))
        };
        if picks.len() != plan.layers.len() {
            let allowed = format!("{}, the layers", plan.layers.len());
            return refused("picks", picks.len(), allowed);
        }
        let mut layers = Vec::with_capacity(picks.len());
        for (layer, &pick) in picks.iter().enumerate() {
            let Some(cache) = caches.get(pick) else {
                return refused("pick", pick, format!("below {}", caches.len()));
            };
            cache.check_ready("cache of layers")?;
            match cache.layers.get(layer) {
                Some(chosen) => layers.push(chosen.clone()),
                None => return refused("layer", layer, format!("below {}", cache.layers.len())),
            }
        }
        let Some(first) = picks.first().map(|&pick| &caches[pick]) else {
            return refused("picks", 0, "at least 1".into());
        };
        let mut cache = Self {
            plan,
            layers,
            cascade: None,
            peak_bytes: 0,
            ..first.clone()
        };
        cache.peak_bytes = cache.kv_bytes();
        Ok(cache)
    }

    /// Forgets everything, protected spans too; each row starts at its first position again.
    pub fn clear(&mut self) {
        self.layers = (0..self.plan.layers.len())
            .map(|layer| LayerCache::new(layer, self.shape, &self.device))
            .collect();
        self.spans = Spans::default();
        self.stage = Stage::Ready;
        self.cascade = None;
        self.peak_bytes = 0;
    }

    /// Protects positions from eviction from the next prompt on, beside those that the policies protect themselves; 0 is
    /// the first token given. They are charged to the budgets. Call it before the prompt that holds them: what is evicted
    /// does not come back.
    pub fn protect(&mut self, spans: Spans) {
        self.spans = spans;
    }

    /// Tells what some policies need to know of the model. Models tell it themselves before a prompt.
    pub fn set_facts(&mut self, facts: &ModelFacts) {
        self.facts = facts.clone();
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The shape of every layer.
    pub fn shape(&self) -> LayerShape {
        self.shape
    }

    /// Where the tensors lie.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The layers, for inspection.
    pub fn layers(&self) -> &[LayerCache] {
        &self.layers
    }

    /// How many tokens each row has been given.
    pub fn seen(&self) -> usize {
        self.layers.iter().map(LayerCache::seen).max().unwrap_or(0)
    }

    /// The position of each row's next token.
    pub fn next_positions(&self) -> Vec<usize> {
        self.first.iter().map(|first| first + self.seen()).collect()
    }

    /// Announces a prompt of `tokens` tokens per row: fixes every layer's budget for what then is the whole sequence, and
    /// checks that the plan can be carried out. While the prompt runs it borrows the cache; [`Prompt::new`] takes the
    /// cache itself, for a prompt that is continued later.
    ///
    /// # Errors
    /// A prompt without tokens, what [`Plan::resolve`] refuses, a budget that the protected spans exceed, a policy that
    /// needs more of the model than [`KvCache::set_facts`] told, and an unfinished prompt before this one.
    pub fn prompt(&mut self, tokens: usize) -> Result<Prompt<&mut Self>> {
        Prompt::new(self, tokens)
    }

    /// Attention of one new token per row in one layer, then eviction under the layer's decode rule.
    ///
    /// `q [batch, heads, 1, head_dim]`, `k`, `v [batch, kv_heads, 1, head_dim]`, rotated for
    /// [`KvCache::next_positions`] → `[batch, heads, 1, head_dim]`.
    ///
    /// # Errors
    /// Shapes that do not match the cache's, a layer that is not there, a prompt that has not run or not ended, and NaN
    /// scores.
    pub fn decode(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        self.check_ready("decode")?;
        let q = self.scaled(q);
        let output = self.run(layer, |cache| cache.decode(q, k, v))?;
        let cache = &self.layers[layer];
        let last = layer + 1 == self.layers.len();
        if cache.has_known_nans() || last && cache.seen().is_multiple_of(CHECK_EVERY) {
            self.check()?;
        }
        Ok(output)
    }

    /// Makes room for `tokens` more per row in the layers that do not evict while decoding, so that these do not grow on the
    /// way. Layers with a budget have their room already.
    pub fn reserve(&mut self, tokens: usize) {
        for layer in 0..self.layers.len() {
            let before = self.layers[layer].kv_bytes();
            self.layers[layer].reserve(tokens);
            if self.layers[layer].kv_bytes() != before {
                self.peak_bytes = self.peak_bytes.max(self.kv_bytes() + before);
            }
        }
    }

    /// Waits for the device and reports NaN scores of the evictions so far. Prompts, decoding and [`KvCache::report`] do
    /// it by themselves.
    ///
    /// # Errors
    /// If there were any, naming the first layer.
    pub fn check(&mut self) -> Result<()> {
        if let Stage::Failed(reason) = &self.stage {
            return Err(Error::NotFinite(reason.clone()));
        }
        let failed = layer::first_nan(&mut self.layers)?;
        match failed {
            None => Ok(()),
            Some(reason) => {
                self.stage = Stage::Failed(reason.clone());
                Err(Error::NotFinite(reason))
            }
        }
    }

    /// What is kept and what it costs, measured from the tensors that exist.
    ///
    /// # Errors
    /// NaN scores of earlier evictions.
    pub fn report(&mut self) -> Result<CacheReport> {
        self.check()?;
        Ok(CacheReport::of(
            &self.layers,
            self.peak_bytes.max(self.kv_bytes()),
        ))
    }

    /// Bytes of keys and values held now, free slots included.
    pub fn kv_bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::kv_bytes).sum()
    }

    /// Queries with which scores scaled by 1/√head_dim become those that the model wants.
    fn scaled(&self, q: Tensor<4>) -> Tensor<4> {
        match self.facts.scale {
            Some(scale) => q.mul_scalar((scale * (self.shape.head_dim as f64).sqrt()) as f32),
            None => q,
        }
    }

    fn check_ready(&self, call: &str) -> Result<()> {
        match &self.stage {
            Stage::Ready => Ok(()),
            Stage::Prompt(tokens) => {
                let found = format!("{call} within a prompt of {tokens} tokens");
                let allowed = "Prompt::finish before it, or KvCache::clear";
                Err(Error::order("cache", "call", found, allowed))
            }
            Stage::Failed(reason) => Err(Error::NotFinite(reason.clone())),
        }
    }

    /// Enters a prompt, which takes in tokens at one position of all layers.
    fn enter(&mut self, tokens: usize) -> Result<()> {
        self.check_ready("a prompt")?;
        let seen = self.seen();
        if let Some(layer) = self.layers.iter().position(|layer| layer.seen() != seen) {
            let found = format!("after {} tokens", self.layers[layer].seen());
            let allowed = format!("after {seen}, as others, or KvCache::clear");
            return Err(Error::order(
                "cache",
                format!("layer {layer}"),
                found,
                allowed,
            ));
        }
        self.stage = Stage::Prompt(tokens);
        Ok(())
    }

    fn begin_prompt(&mut self, tokens: usize) -> Result<()> {
        let seen = self.seen().saturating_add(tokens);
        let resolved = self
            .plan
            .resolve(seen, self.shape.cost(self.layers.len()))?;
        resolved.check_spans(&self.spans)?;
        self.facts.check(&resolved)?;
        let cascade = Cascade::of(self.plan.online.clone(), &resolved, &self.spans)?;
        for (index, rules) in resolved.layers.into_iter().enumerate() {
            let facts = self.facts.layer(index);
            self.layers[index].begin(rules, facts, self.spans.clone(), tokens);
        }
        if let Some(cascade) = &cascade {
            let needs = cascade.online()?.needs();
            self.layers.iter_mut().for_each(|layer| layer.need(needs));
        }
        self.cascade = cascade;
        Ok(())
    }

    fn trim(&mut self, layer: usize) -> Result<()> {
        match self.cascade.take() {
            Some(cascade) => self.trim_in_steps(layer, cascade),
            None => self.run(layer, LayerCache::end_prompt),
        }
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
            let allowed = format!("0 to {}", layers.saturating_sub(1));
            Error::shape("cache", "layer", layer, allowed)
        })?;
        let before = cache.kv_bytes();
        let output = step(cache)?;
        if cache.kv_bytes() != before {
            self.peak_bytes = self.peak_bytes.max(self.kv_bytes() + before);
        }
        Ok(output)
    }
}

impl PromptCache for KvCache {
    fn seen(&self) -> usize {
        Self::seen(self)
    }

    fn next_positions(&self) -> Vec<usize> {
        Self::next_positions(self)
    }

    fn set_facts(&mut self, facts: &ModelFacts) {
        Self::set_facts(self, facts);
    }
}

impl Drive for KvCache {
    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn begin(&mut self, tokens: usize) -> Result<()> {
        self.enter(tokens)?;
        let begun = self.begin_prompt(tokens);
        if begun.is_err() {
            self.stage = Stage::Ready;
        }
        begun
    }

    fn attend(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        let q = self.scaled(q);
        self.run(layer, |cache| cache.prefill(q, k, v))
    }

    fn end_layer(&mut self, layer: usize) -> Result<()> {
        self.trim(layer)
    }

    fn end(&mut self) -> Result<()> {
        self.stage = Stage::Ready;
        self.check()
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests;
