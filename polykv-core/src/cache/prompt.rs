//! What a model needs of a cache to run a prompt.

use super::{KvCache, ModelFacts};
use crate::Result;
use burn::tensor::Tensor;
use std::fmt;

/// A cache that takes a prompt in, layer by layer: [`KvCache`] under one plan, [`SharedPrefill`](super::SharedPrefill)
/// under several, [`Untrimmed`] without eviction. The calls are those of [`KvCache`], with the same shapes and errors.
pub trait PromptCache: fmt::Debug {
    /// How many tokens have been seen: the position of the next one.
    fn seen(&self) -> usize;

    /// What some policies need to know of the model; before [`PromptCache::begin_prefill`].
    fn set_facts(&mut self, facts: &ModelFacts);

    /// # Errors
    /// As [`KvCache::begin_prefill`].
    fn begin_prefill(&mut self, tokens: usize) -> Result<()>;

    /// # Errors
    /// As [`KvCache::prefill`].
    fn prefill(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>>;

    /// # Errors
    /// As [`KvCache::end_prefill`].
    fn end_prefill(&mut self, layer: usize) -> Result<()>;
}

impl PromptCache for KvCache {
    fn seen(&self) -> usize {
        KvCache::seen(self)
    }

    fn set_facts(&mut self, facts: &ModelFacts) {
        KvCache::set_facts(self, facts);
    }

    fn begin_prefill(&mut self, tokens: usize) -> Result<()> {
        KvCache::begin_prefill(self, tokens)
    }

    fn prefill(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        KvCache::prefill(self, layer, q, k, v)
    }

    fn end_prefill(&mut self, layer: usize) -> Result<()> {
        KvCache::end_prefill(self, layer)
    }
}

/// A cache that grows by everything it is given, whatever its plan says; what it held is kept as well. The budgets stay
/// those of the last [`KvCache::begin_prefill`], and the first decode step brings the cache back to them.
#[derive(Debug)]
pub struct Untrimmed<'a>(&'a mut KvCache);

impl KvCache {
    /// Takes tokens in without evicting any: an evaluation's continuation, or a question after compression.
    pub fn untrimmed(&mut self) -> Untrimmed<'_> {
        Untrimmed(self)
    }
}

impl PromptCache for Untrimmed<'_> {
    fn seen(&self) -> usize {
        self.0.seen()
    }

    fn set_facts(&mut self, facts: &ModelFacts) {
        self.0.set_facts(facts);
    }

    fn begin_prefill(&mut self, tokens: usize) -> Result<()> {
        self.0.layers.iter_mut().for_each(|own| own.expect(tokens));
        Ok(())
    }

    fn prefill(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        self.0.prefill(layer, q, k, v)
    }

    fn end_prefill(&mut self, _layer: usize) -> Result<()> {
        Ok(())
    }
}
