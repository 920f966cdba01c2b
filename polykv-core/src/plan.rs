//! Plans: which policy and how many entries each layer has in each phase (PolyKV, arXiv 2606.15157).
//!
//! A [`Plan`] is a value with policies as objects, whatever crate they come from. A [`PlanFile`] is the same as text with
//! names, which [`PlanFile::build`] looks up in a [`Registry`](crate::Registry). [`Plan::resolve`] computes the budgets for
//! one prompt.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

mod check;
mod file;
mod range;
mod resolve;
#[allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "an order holds each index of the layers once"
)]
mod shuffle;

pub use file::{FileCodes, FileHeads, FileRule, MAX_FILE_BYTES, PlanFile, SCHEMA};
pub use range::{LayerRange, LayerSet};
pub use resolve::{Eviction, LayerEvictions, Resolved};
pub use shuffle::Moved;

use crate::allocate::Allocator;
use crate::budget::{Budget, EntryCost};
use crate::codes::Codes;
use crate::phase::Phase;
use crate::policy::Policy;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// The most layers that a plan may have.
const MAX_LAYERS: usize = 1024;

/// The eviction rules of every layer and the budget that they share, for prompts of any length.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// How many entries per KV head the layers may keep in each phase.
    pub budget: Budget,
    /// Whether layers that keep everything come on top of the budget instead of being charged to it. The other layers then
    /// share the part of the budget that they would have if every layer had its share.
    pub allow_full_extra: bool,
    /// The allocator that splits the budget anew for each prompt; no layer may then state a share. `None` splits it by the
    /// layers' shares.
    pub online: Option<Arc<dyn Allocator>>,
    /// While decoding a layer that exceeds its budget `b` is cut to `b - every + 1` entries, so that evictions are `every` tokens
    /// apart and it never holds more than `b`: from 1, the default, to 2^20. It is not cut below what its policy protects.
    pub every: usize,
    /// Entries per layer on average that the budget never falls below, however short a prompt is, up to 2^20; 0, the default,
    /// sets no such limit. A ratio of a short prompt would else leave little of it, or less than what policies protect.
    pub at_least: usize,
    /// One per layer, from the first to the last.
    pub layers: Vec<LayerPlan>,
}

/// The eviction rules of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerPlan {
    /// What happens once, after the prompt.
    pub prefill: Rule,
    /// What happens after every generated token.
    pub decode: Rule,
    /// The codes in which the layer keeps its entries from the end of a prompt on; `None` keeps them in the type of the cache.
    pub kv: Option<Codes>,
    /// How an eviction divides the layer's budget over its KV heads: a part for each of them, above 0, at most 1e6. Its
    /// policies then neither merge nor divide budgets themselves. `None` leaves the division to the policy.
    pub heads: Option<Arc<[f64]>>,
}

/// The eviction rule of a layer in one phase.
#[derive(Clone, Debug)]
pub enum Rule {
    /// The layer keeps everything.
    Keep,
    /// The layer evicts down to its share of the budget.
    Evict {
        /// Decides which entries stay.
        policy: Arc<dyn Policy>,
        /// Decides how many entries stay.
        share: Share,
    },
}

/// A layer's part of the budget. All layers that evict in a phase state it in the same way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Share {
    /// A part relative to those of the other layers; above 0, at most 1e6.
    Part(f64),
    /// This many entries per KV head, at least 1.
    Entries(usize),
}

impl Rule {
    /// A rule that evicts by `policy`, with the share `Share::Part(1.0)`.
    #[must_use]
    pub fn evict(policy: Arc<dyn Policy>) -> Self {
        Self::Evict {
            policy,
            share: Share::Part(1.0),
        }
    }

    /// The policy of the rule; `None` if the layer keeps everything.
    pub fn policy(&self) -> Option<&Arc<dyn Policy>> {
        match self {
            Self::Keep => None,
            Self::Evict { policy, .. } => Some(policy),
        }
    }

    /// The same rule with another share; [`Rule::Keep`] has none and stays as it is.
    #[must_use]
    pub fn with_share(self, share: Share) -> Self {
        match self {
            Self::Keep => Self::Keep,
            Self::Evict { policy, .. } => Self::Evict { policy, share },
        }
    }
}

/// Rules are equal if their policies do the same (see [`Policy::key`]) with the same share.
impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Keep, Self::Keep) => true,
            (
                Self::Evict { policy, share },
                Self::Evict {
                    policy: other,
                    share: other_share,
                },
            ) => share == other_share && policy.key() == other.key(),
            _ => false,
        }
    }
}

impl LayerPlan {
    /// A layer that keeps everything in both phases.
    pub const KEEP: Self = Self {
        prefill: Rule::Keep,
        decode: Rule::Keep,
        kv: None,
        heads: None,
    };

    /// The rule of one phase.
    pub fn rule(&self, phase: Phase) -> &Rule {
        match phase {
            Phase::Prefill => &self.prefill,
            Phase::Decode => &self.decode,
        }
    }

    /// The rule of one phase, for changing it.
    pub fn rule_mut(&mut self, phase: Phase) -> &mut Rule {
        match phase {
            Phase::Prefill => &mut self.prefill,
            Phase::Decode => &mut self.decode,
        }
    }
}

impl Plan {
    /// A plan with these layers under a budget, which is split by the layers' shares.
    #[must_use]
    pub fn new(layers: Vec<LayerPlan>, budget: Budget) -> Self {
        Self {
            budget,
            allow_full_extra: false,
            online: None,
            every: 1,
            at_least: 0,
            layers,
        }
    }

    /// A plan with one policy and equal shares in all layers, in each of `phases`. In any other phase everything is kept.
    #[must_use]
    pub fn uniform(
        layers: usize,
        policy: Arc<dyn Policy>,
        budget: Budget,
        phases: &[Phase],
    ) -> Self {
        let mut layer = LayerPlan::KEEP;
        for &phase in phases {
            *layer.rule_mut(phase) = Rule::evict(policy.clone());
        }
        Self::new(vec![layer; layers], budget)
    }

    /// A plan that keeps everything in every layer (FullKV).
    #[must_use]
    pub fn full(layers: usize) -> Self {
        Self::new(vec![LayerPlan::KEEP; layers], Budget::Ratio(1.0))
    }

    /// The rules of one phase, from the first layer to the last.
    pub fn rules(&self, phase: Phase) -> impl Iterator<Item = &Rule> {
        self.layers.iter().map(move |layer| layer.rule(phase))
    }

    /// Replaces the rules of one phase, from the first layer to the last. If there are fewer rules than layers, the last
    /// layers keep theirs.
    pub fn set_rules(&mut self, phase: Phase, rules: impl IntoIterator<Item = Rule>) {
        for (layer, rule) in self.layers.iter_mut().zip(rules) {
            *layer.rule_mut(phase) = rule;
        }
    }

    /// The same plan with the entries of all layers in these codes.
    #[must_use]
    pub fn with_kv(mut self, codes: Codes) -> Self {
        let layers = self.layers.iter_mut();
        layers.for_each(|layer| layer.kv = Some(codes));
        self
    }

    /// Divides the budget of each layer over its KV heads by `parts [layer][head]`, see [`LayerPlan::heads`]. A head alone has all
    /// of its layer's; layers without parts stay as they are.
    pub fn set_heads(&mut self, parts: &[Vec<f64>]) {
        for (layer, parts) in self.layers.iter_mut().zip(parts) {
            layer.heads = (parts.len() > 1).then(|| parts.as_slice().into());
        }
    }

    /// Bytes of one entry in a layer, where an entry costs `cost`.
    pub fn entry_bytes(&self, layer: usize, cost: &EntryCost) -> usize {
        let codes = self.layers.get(layer).and_then(|layer| layer.kv);
        cost.bytes_in(codes)
    }

    /// Whether the layers keep their entries in different ways.
    fn mixes_codes(&self) -> bool {
        let mut layers = self.layers.iter();
        let first = layers.next().map(|layer| layer.kv);
        layers.any(|layer| Some(layer.kv) != first)
    }

    /// Bytes that the layers take beside their entries, where an entry costs `cost`.
    fn bytes_beside(&self, cost: &EntryCost) -> usize {
        let layers = self.layers.iter();
        let beside = layers.map(|layer| cost.bytes_beside(layer.kv));
        beside.fold(0, usize::saturating_add)
    }

    /// The bytes of all layers together for a prompt of `prompt` tokens; `None` under a budget that counts entries.
    fn bytes(&self, prompt: usize, cost: &EntryCost) -> Option<usize> {
        let bytes = self.budget.bytes(prompt, cost)?;
        let layers = 0..self.layers.len();
        let sizes = layers.map(|layer| self.entry_bytes(layer, cost));
        let least = sizes.fold(0, usize::saturating_add);
        let least = least.saturating_mul(self.at_least);
        let beside = match self.at_least {
            0 => 0,
            _ => self.bytes_beside(cost),
        };
        Some(bytes.max(least.saturating_add(beside)))
    }

    /// The most entries per KV head that all layers may hold together, for a prompt of `prompt` tokens, where an entry costs
    /// `cost`: a budget in bytes is one of the layers whose entries are the smallest.
    pub fn most_entries(&self, prompt: usize, cost: &EntryCost) -> usize {
        let Some(bytes) = self.bytes(prompt, cost) else {
            let least = self.at_least.saturating_mul(self.layers.len());
            return self.budget.total(prompt, cost).max(least);
        };
        let sizes = (0..self.layers.len()).map(|layer| self.entry_bytes(layer, cost));
        let size = sizes.min().unwrap_or(cost.bytes).max(1);
        bytes
            .saturating_sub(self.bytes_beside(cost))
            .checked_div(size)
            .unwrap_or(0)
    }

    /// A fingerprint of what the plan does, whatever the name and the wording of the file that states it: the first 8 bytes
    /// of the SHA-256 of its budget, its allocator and every rule with all parameters, as 16 hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        let online = self.online.as_ref().map(|allocator| allocator.name());
        let extra = self.allow_full_extra;
        hash.update(format!("{:?} {online:?} {extra}\n", self.budget));
        for phase in Phase::BOTH {
            for rule in self.rules(phase) {
                let text = match rule {
                    Rule::Keep => "keep\n".to_string(),
                    Rule::Evict { policy, share } => format!("{share:?} {}\n", policy.key()),
                };
                hash.update(text);
            }
        }
        if self.every > 1 {
            hash.update(format!("every {}\n", self.every));
        }
        if self.at_least > 0 {
            hash.update(format!("at least {}\n", self.at_least));
        }
        if self.layers.iter().any(|layer| layer.kv.is_some()) {
            let codes = self.layers.iter().map(|layer| layer.kv);
            hash.update(format!("{:?}\n", codes.collect::<Vec<_>>()));
        }
        if self.layers.iter().any(|layer| layer.heads.is_some()) {
            let heads = self.layers.iter().map(|layer| &layer.heads);
            hash.update(format!("{:?}\n", heads.collect::<Vec<_>>()));
        }
        let digest = hash.finalize();
        let digits = digest.iter().take(8).map(|byte| format!("{byte:02x}"));
        digits.collect()
    }
}

#[cfg(test)]
mod tests;
