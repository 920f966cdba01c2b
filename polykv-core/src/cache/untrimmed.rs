//! Prompts that evict nothing.

use super::prompt::{Drive, Prompt, PromptCache};
use super::{KvCache, Stage};
use crate::Result;
use crate::facts::ModelFacts;
use burn::tensor::Tensor;

/// A cache that grows by everything it is given, whatever its plan says; what it held is kept as well. The budgets stay
/// those of the last prompt, and the first decode step brings the cache back to them.
#[derive(Debug)]
pub struct Untrimmed<'a>(&'a mut KvCache);

impl KvCache {
    /// Takes tokens in without evicting any: the continuation of an evaluation, or a question after compression.
    pub fn untrimmed(&mut self) -> Untrimmed<'_> {
        Untrimmed(self)
    }
}

impl Untrimmed<'_> {
    /// The cache itself, for inspection.
    pub fn cache(&self) -> &KvCache {
        self.0
    }
}

impl<'a> Prompt<Untrimmed<'a>> {
    /// The prompt for the layers from `layer` on, for running the upper part of a model over what its layers hold. The
    /// layers below are left behind, so that the cache afterwards takes nothing more until it is cleared.
    pub fn above(self, layer: usize) -> Self {
        self.skip_to(layer)
    }
}

impl PromptCache for Untrimmed<'_> {
    fn seen(&self) -> usize {
        self.0.seen()
    }

    fn next_positions(&self) -> Vec<usize> {
        self.0.next_positions()
    }

    fn set_facts(&mut self, facts: &ModelFacts) {
        self.0.set_facts(facts);
    }
}

impl Drive for Untrimmed<'_> {
    fn layers(&self) -> usize {
        self.0.layers.len()
    }

    fn begin(&mut self, tokens: usize) -> Result<()> {
        self.0.enter(tokens)?;
        self.0
            .layers
            .iter_mut()
            .for_each(|layer| layer.expect(tokens));
        Ok(())
    }

    fn attend(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        self.0.attend(layer, q, k, v)
    }

    fn end_layer(&mut self, _layer: usize) -> Result<()> {
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.0.stage = Stage::Ready;
        Ok(())
    }
}
