//! The KV cache of a model under one plan: one [`LayerCache`] per layer.
//!
//! A prompt runs through a [`Prompt`], layer by layer; afterwards [`KvCache::decode`] takes one token per sequence and
//! layer.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

mod arena;
mod cascade;
mod check;
mod drive;
mod estimate;
mod layer;
mod order;
mod pack;
mod prompt;
mod queries;
mod report;
mod session;
mod shared;
mod slots;
mod spans;
mod states;
mod store;
mod together;
mod untrimmed;

pub use estimate::CacheEstimate;
pub use layer::LayerCache;
pub use prompt::{Prompt, PromptCache};
pub use report::{CacheReport, Holdings};
pub use session::{Session, SessionInfo};
pub use shared::SharedPrefill;
pub use spans::Spans;
pub use untrimmed::Untrimmed;

#[cfg(feature = "testing")]
pub(crate) use together::in_arenas;

use crate::awake;
use crate::budget::EntryCost;
use crate::facts::ModelFacts;
use crate::plan::Plan;
use crate::shape::LayerShape;
use crate::{Error, Result, ops};
use burn::tensor::{Device, Tensor};
use cascade::Cascade;

/// Decoded tokens between two checks for NaN scores on a device that has to be waited for.
const CHECK_EVERY: usize = 32;

/// The KV cache of a model: one [`LayerCache`] per layer under one [`Plan`].
///
/// A prompt goes through [`KvCache::prompt`], every token after it through [`KvCache::decode`]. Each layer is given the
/// whole prompt before the next one starts, which keeps the peak at one layer's full cache plus the budgets.
///
/// Attention logits are `q·k` times 1/√head_dim, or times [`ModelFacts::scale`] if the model states one. All rows of the
/// batch are given the same number of tokens, without padding; they may be at different positions, see
/// [`KvCache::starting_at`].
///
/// Scores that are NaN are an error of kind [`ErrorKind::NotFinite`](crate::ErrorKind::NotFinite). On the CPU the call that
/// computes them returns it. A GPU is asked when a prompt ends, after every 32 decoded tokens, and by [`KvCache::report`].
/// After such an error the cache refuses everything until [`KvCache::clear`].
///
/// A clone continues independently from the same state. The two share tensors until one of them changes them.
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
    /// How far the positions of the next tokens have been moved down, see [`KvCache::pack`].
    shift: usize,
    stage: Stage,
    /// The budgets of a prompt that is running, if they depend on what the layers do with it.
    cascade: Option<Cascade>,
    peak_bytes: usize,
}

/// What a cache can be given next.
#[derive(Clone, Debug, PartialEq)]
enum Stage {
    /// A prompt or a token.
    Ready,
    /// More of a prompt of this many tokens.
    Prompt(usize),
    /// Nothing: scores were NaN.
    Failed(String),
}

impl KvCache {
    /// An empty cache under a plan, for layers that all have this shape, on this device.
    ///
    /// # Errors
    /// What [`Plan::check`] and [`LayerShape::check`] refuse, and a policy that states shares for another number of KV heads.
    pub fn new(plan: Plan, shape: LayerShape, device: &Device) -> Result<Self> {
        shape.check()?;
        plan.check()?;
        plan.check_heads(shape.kv_heads)?;
        let mut cache = Self {
            plan,
            shape,
            device: device.clone(),
            layers: Vec::new(),
            facts: ModelFacts::default(),
            spans: Spans::default(),
            first: vec![0; shape.batch],
            shift: 0,
            stage: Stage::Ready,
            cascade: None,
            peak_bytes: 0,
        };
        cache.clear();
        Ok(cache)
    }

    /// The same empty cache, where the first token of row `row` is at position `first[row]`; without this call it is at 0.
    /// Callers give keys and queries rotated for the positions that follow. Eviction does not depend on them: sinks are the
    /// first tokens that a row was given.
    ///
    /// # Errors
    /// Another number of positions than rows, and a cache that has been given tokens.
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

    /// A cache under `plan` whose layer `l` is a copy of that layer of `caches[picks[l]]`. The caches must have been given
    /// the same tokens, and `plan` must give each layer the rules of the cache that it comes from. A copy shares its tensors
    /// with the original until one of the two changes them.
    ///
    /// # Errors
    /// A number of picks other than the plan's layers, a pick that is no index of `caches`, a cache with too few layers, and
    /// one with an unfinished prompt.
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
        let Some(first) = picks.first().and_then(|&pick| caches.get(pick)) else {
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

    /// Empties the cache and forgets the protected positions. Each row starts at its first position again; plan, shape and
    /// what the model stated stay.
    pub fn clear(&mut self) {
        self.layers = (0..self.plan.layers.len())
            .map(|layer| LayerCache::new(layer, self.shape, &self.device))
            .collect();
        self.spans = Spans::default();
        self.shift = 0;
        self.stage = Stage::Ready;
        self.cascade = None;
        self.peak_bytes = 0;
    }

    /// Protects positions from eviction beside those that the policies protect, from the next prompt on; 0 is the first token
    /// that a row was given. The positions are charged to the budgets. Call it before the prompt that contains them, since
    /// evicted entries do not come back.
    pub fn protect(&mut self, spans: Spans) {
        self.spans = spans;
    }

    /// States what some policies need to know of the model, from the next prompt on. The models of polykv-models do this
    /// themselves.
    pub fn set_facts(&mut self, facts: &ModelFacts) {
        self.facts = facts.clone();
    }

    /// What the plan's budget needs to know of the model: the windows that [`KvCache::set_facts`] stated and the memory of an
    /// entry.
    pub fn cost(&self) -> EntryCost {
        self.shape.cost(&self.facts.windows(self.layers.len()))
    }

    /// The plan that the cache carries out.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The shape of every layer.
    pub fn shape(&self) -> LayerShape {
        self.shape
    }

    /// The device of the cache's tensors.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The caches of the layers, from the first to the last, for inspection.
    pub fn layers(&self) -> &[LayerCache] {
        &self.layers
    }

    /// How many tokens each row has been given, in the layer that is furthest.
    pub fn seen(&self) -> usize {
        self.layers.iter().map(LayerCache::seen).max().unwrap_or(0)
    }

    /// The position of each row's next token, for which its query and key are rotated.
    pub fn next_positions(&self) -> Vec<usize> {
        let seen = self.seen().saturating_sub(self.shift);
        let next = |first: &usize| first.saturating_add(seen);
        self.first.iter().map(next).collect()
    }

    /// Announces a prompt of `tokens` tokens per row. This fixes the budget of every layer, where ratios are taken of all
    /// tokens including this prompt, and checks that the plan can be carried out. The prompt borrows the cache;
    /// [`Prompt::new`] takes ownership instead, for a prompt that is continued later.
    ///
    /// # Errors
    /// A prompt without tokens, what [`Plan::resolve`] refuses, a budget that the protected positions exceed, a policy that
    /// needs more of the model than [`KvCache::set_facts`] stated, and a cache with an unfinished prompt or NaN scores.
    pub fn prompt(&mut self, tokens: usize) -> Result<Prompt<&mut Self>> {
        Prompt::new(self, tokens)
    }

    /// Attention of one new token per row in one layer, then eviction under the layer's decode rule.
    ///
    /// `q [batch, heads, 1, head_dim]`, `k`, `v [batch, kv_heads, 1, head_dim]`, rotated for
    /// [`KvCache::next_positions`] → `[batch, heads, 1, head_dim]`.
    ///
    /// # Errors
    /// Shapes that do not match the cache's, a layer that does not exist, a cache that has had no prompt or has an unfinished
    /// one, and NaN scores.
    pub fn decode(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        self.check_ready("decode")?;
        let divided = self.layers.get(layer).is_some_and(LayerCache::is_divided);
        if divided && self.shape.batch == 1 && ops::is_cube(&self.device) {
            // Its heads share launches.
            let (output, errors) = Self::decode_together(&mut [self], layer, [q, k, v])?;
            return errors.into_iter().flatten().next().map_or(Ok(output), Err);
        }
        self.decode_alone(layer, q, k, v)
    }

    fn decode_alone(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        self.check_ready("decode")?;
        awake::again();
        let q = self.scaled(q);
        let output = self.run(layer, |cache| cache.decode(q, k, v))?;
        self.check_when_due(layer)?;
        Ok(output)
    }

    /// Checks the scores so far after a decoded token, if they are known or have not been checked for long.
    fn check_when_due(&mut self, layer: usize) -> Result<()> {
        let last = layer.saturating_add(1) == self.layers.len();
        let due = self.layers.get(layer).is_some_and(|cache| {
            cache.has_known_nans() || last && cache.seen().is_multiple_of(CHECK_EVERY)
        });
        match due {
            true => self.check(),
            false => Ok(()),
        }
    }

    /// Allocates slots for `tokens` more tokens per row in the layers that keep everything while decoding, so that they need
    /// not grow. Layers with a decode budget have their slots already.
    pub fn reserve(&mut self, tokens: usize) {
        let mut all = self.kv_bytes();
        for layer in &mut self.layers {
            let before = layer.kv_bytes();
            layer.reserve(tokens);
            let after = layer.kv_bytes();
            if after != before {
                // Old and new ones exist side by side.
                let both = all.saturating_add(after);
                self.peak_bytes = self.peak_bytes.max(both);
                all = both.saturating_sub(before);
            }
        }
    }

    /// Waits for the device and checks the scores of the evictions so far. Prompts, decoding and [`KvCache::report`] call it
    /// themselves.
    ///
    /// # Errors
    /// A score that was NaN, naming the first layer with one, and a device that cannot be read.
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

    /// What explains logits that are not finite: the first layer whose keys or values are not, with the likely cause. `None`
    /// where all of them are finite. Waits for the device.
    ///
    /// # Errors
    /// A device that cannot be read.
    pub fn not_finite(&self) -> Result<Option<String>> {
        for layer in &self.layers {
            if let Some(found) = layer.not_finite()? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The entries that the cache holds and their memory, measured from its tensors.
    ///
    /// # Errors
    /// What [`KvCache::check`] reports.
    pub fn report(&mut self) -> Result<CacheReport> {
        self.check()?;
        Ok(CacheReport::of(
            &self.layers,
            self.peak_bytes.max(self.kv_bytes()),
        ))
    }

    /// Bytes of the keys and values of all layers now, free slots included.
    pub fn kv_bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::kv_bytes).sum()
    }

    /// Bytes of positions, statistics and remembered queries of all layers now.
    pub fn aux_bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::aux_bytes).sum()
    }

    /// Bytes that keys and values would occupy now without eviction, see [`CacheReport::full_bytes`].
    pub fn full_bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::full_bytes).sum()
    }

    /// The causal attention of the last queries that a layer was given, over the entries that it holds: `q [batch, heads,
    /// tokens, head_dim]` as the layer was given them → `[batch, kv_heads, group, tokens, entries]`.
    ///
    /// # Errors
    /// A layer that does not exist or holds nothing.
    pub fn attention(&self, layer: usize, q: Tensor<4>) -> Result<Tensor<5>> {
        let cache = self.layers.get(layer);
        let attention = cache.and_then(|cache| cache.attention(self.scaled(q)));
        attention.ok_or_else(|| Error::Failed(format!("layer {layer} holds nothing")))
    }

    /// Queries multiplied so that logits scaled by 1/√head_dim are those of the model's own scale.
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

    /// Runs a step of one layer and updates the peak: while a layer's tensors change size, old and new ones exist side by
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
        cache.leave();
        let output = step(cache)?;
        let (after, mut moving) = (cache.kv_bytes(), cache.take_moving());
        if after != before {
            moving = moving.max(before.saturating_add(after));
        }
        let others = self.kv_bytes().saturating_sub(after);
        self.peak_bytes = self.peak_bytes.max(others.saturating_add(moving));
        Ok(output)
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests;
