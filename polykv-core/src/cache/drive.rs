//! How a [`Prompt`](super::Prompt) runs through a [`KvCache`].

use super::cascade::Cascade;
use super::prompt::Drive;
use super::{KvCache, LayerCache, PromptCache, Stage};
use crate::facts::ModelFacts;
use crate::{Error, Result};
use burn::tensor::Tensor;

impl KvCache {
    /// Enters the stage of a prompt, if all layers have been given the same number of tokens.
    pub(super) fn enter(&mut self, tokens: usize) -> Result<()> {
        self.check_ready("a prompt")?;
        let seen = self.seen();
        let mut others = self.layers.iter().enumerate();
        if let Some((layer, other)) = others.find(|(_, layer)| layer.seen() != seen) {
            let found = format!("after {} tokens", other.seen());
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
        let resolved = self.plan.resolve(seen, &self.cost())?;
        resolved.check_spans(&self.spans)?;
        self.facts.check(&resolved)?;
        let cascade = Cascade::of(self.plan.online.clone(), &resolved, &self.spans)?;
        let rules = resolved.layers.into_iter().enumerate();
        for (layer, (index, rules)) in self.layers.iter_mut().zip(rules) {
            let facts = self.facts.layer(index);
            let spans = self.spans.clone();
            layer.begin(rules, facts, self.facts.softcap, spans, tokens);
        }
        if let Some(cascade) = &cascade {
            let needs = cascade.online()?.needs();
            self.layers
                .iter_mut()
                .for_each(|layer| layer.add_needs(needs));
        }
        self.cascade = cascade;
        Ok(())
    }

    pub(super) fn trim(&mut self, layer: usize) -> Result<()> {
        if let Some(cache) = self.layers.get_mut(layer) {
            cache.measure_channels();
        }
        match self.cascade.take() {
            Some(cascade) => self.trim_in_steps(layer, cascade)?,
            None => self.run(layer, LayerCache::end_prompt)?,
        }
        self.code(layer)
    }

    /// Brings a layer that has had the prompt into the codes that the plan states.
    pub(super) fn code(&mut self, layer: usize) -> Result<()> {
        self.run(layer, |cache| {
            cache.code();
            Ok(())
        })
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

    fn layers_to_repeat(&self) -> usize {
        let last = self.layers.iter().rposition(LayerCache::wants_repetition);
        last.map_or(0, |last| last.saturating_add(1))
    }

    fn repeat(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        let q = self.scaled(q);
        self.run(layer, |cache| cache.repeat(q, k, v))
    }

    fn end_layer(&mut self, layer: usize) -> Result<()> {
        self.trim(layer)
    }

    fn end(&mut self) -> Result<()> {
        self.stage = Stage::Ready;
        self.check()
    }
}
