//! Prompts that evict nothing.

use super::prompt::{Drive, Prompt, PromptCache};
use super::{KvCache, LayerCache, Stage};
use crate::Result;
use crate::facts::ModelFacts;
use burn::tensor::Tensor;

/// A cache that takes in a prompt without evicting anything but what leaves a layer's window, whatever its plan says. The budgets stay those of the prompt
/// before it; the first decode step afterwards brings the cache back to them.
#[derive(Debug)]
pub struct Untrimmed<'a>(&'a mut KvCache);

impl KvCache {
    /// This cache as one that takes in prompts without evicting anything, for example the scored continuation of an
    /// evaluation, or a question about a compressed text.
    #[must_use]
    pub fn untrimmed(&mut self) -> Untrimmed<'_> {
        Untrimmed(self)
    }
}

impl Untrimmed<'_> {
    /// The cache that this borrows, for inspection.
    pub fn cache(&self) -> &KvCache {
        self.0
    }
}

impl<'a> Prompt<Untrimmed<'a>> {
    /// The same prompt for the layers from `layer` on only, to run the upper part of a model over what those layers hold. The
    /// layers below do not get the prompt, so that the cache refuses any further prompt or token until it is cleared.
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
            .for_each(|layer| layer.announce(tokens));
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

    fn layers_to_repeat(&self) -> usize {
        0
    }

    fn repeat(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        self.0.repeat(layer, q, k, v)
    }

    fn end_layer(&mut self, layer: usize) -> Result<()> {
        self.0.run(layer, LayerCache::leave_window)?;
        self.0.code(layer)
    }

    fn end(&mut self) -> Result<()> {
        self.0.stage = Stage::Ready;
        Ok(())
    }
}
