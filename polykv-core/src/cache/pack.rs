//! Moving what a cache holds to consecutive rotary positions, so that a sequence goes on beyond the positions of its model
//! (StreamingLLM, arXiv 2309.17453).

use super::KvCache;
use crate::phase::Phase;
use crate::plan::Rule;
use crate::{Error, Policy, Result};
use std::sync::Arc;

/// How far an entry may have been moved: offsets are kept as f32, which holds every whole number up to here.
pub(super) const FARTHEST: usize = 1 << 24;

impl KvCache {
    /// Rotates the keys of all layers, and the queries that policies remember, as if the entries had followed one another without
    /// gaps: the latest entry of every head is moved to one position before [`KvCache::next_positions`], which falls to what
    /// the fullest layer holds, and those before it follow downwards in their order. Nothing else changes: policies, windows
    /// and protected positions still count the tokens that were given. Keys are rotated in f32 and stored in the cache's type.
    ///
    /// # Errors
    /// A cache within a prompt or a token; a model that did not state its rotary frequencies; a policy that computes with
    /// rotary positions; entries that would move by more than 2²⁴ positions.
    pub fn pack(&mut self) -> Result<()> {
        self.check_ready("pack")?;
        let seen = self.seen();
        if let Some(layer) = self.layers.iter().position(|layer| layer.seen() != seen) {
            let found = format!("pack within a token, before layer {layer}");
            let allowed = "after all layers had the token";
            return Err(Error::order("cache", "call", found, allowed));
        }
        self.check_packs()?;
        let most = self.layers.iter().map(|layer| layer.entries()).max();
        let shift = seen.saturating_sub(most.unwrap_or(0));
        if shift > FARTHEST {
            let found = format!("{shift} positions");
            return Err(Error::invalid("cache", "packing by", found, FARTHEST));
        }
        if shift <= self.shift {
            // There are no gaps.
            return Ok(());
        }
        let moved = shift.saturating_sub(self.shift);
        for index in 0..self.layers.len() {
            self.run(index, |layer| layer.pack(shift, moved))?;
        }
        self.shift = shift;
        Ok(())
    }

    /// Checks that [`KvCache::pack`] can move the keys of every layer, once the model has stated what it does.
    ///
    /// # Errors
    /// A model that did not state its rotary frequencies; a policy that computes with rotary positions.
    pub fn check_packs(&self) -> Result<()> {
        let positioned = |policy: &&Arc<dyn Policy>| policy.needs().rope;
        for layer in 0..self.layers.len() {
            let place = format!("layer {layer}");
            if self.facts.layer(layer).rope.is_none() {
                let found = "unknown";
                let allowed = "stated by the model (KvCache::set_facts), to move keys";
                return Err(Error::invalid(place, "rotary embedding", found, allowed));
            }
            let rules = Phase::BOTH.map(|phase| self.plan.rules(phase).nth(layer));
            let mut policies = rules.into_iter().flatten().filter_map(Rule::policy);
            if let Some(policy) = policies.find(positioned) {
                return Err(Error::unsupported(
                    format!("moving the keys of {place}"),
                    format!("policy {} computes with their positions", policy.name()),
                ));
            }
        }
        Ok(())
    }
}
