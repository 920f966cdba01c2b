//! Plans: which policy and how many entries each layer gets in each phase.
//!
//! A [`Plan`] is a value: policies are objects, whatever crate they come from. A [`PlanFile`] is the same as text, with
//! names; [`PlanFile::build`] looks these up in a [`Registry`](crate::Registry). [`Plan::resolve`] turns a plan into
//! budgets for one prompt.

mod file;
mod range;
mod resolve;
mod shuffle;

pub use file::{FileRule, MAX_FILE_BYTES, PlanFile, SCHEMA};
pub use range::{LayerRange, LayerSet};
pub use resolve::{Eviction, LayerEvictions, Resolved};

use crate::allocate::{Allocator, Basis};
use crate::budget::Budget;
use crate::phase::Phase;
use crate::policy::Policy;
use crate::{Error, Result};
use std::sync::Arc;

/// The most layers that a plan may have.
const MAX_LAYERS: usize = 1024;

/// What each layer does in each phase, independent of any prompt.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// Entries per KV head that each phase may keep.
    pub budget: Budget,
    /// Layers that keep everything come on top of the budget instead of being charged to it.
    pub allow_full_extra: bool,
    /// The allocator that splits the budget anew for each prompt; the layers then state no shares.
    pub online: Option<Arc<dyn Allocator>>,
    /// One per layer, from the first to the last.
    pub layers: Vec<LayerPlan>,
}

/// What one layer does.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerPlan {
    /// Once, after the prompt.
    pub prefill: Rule,
    /// After every generated token.
    pub decode: Rule,
}

/// What a layer does in one phase.
#[derive(Clone, Debug)]
pub enum Rule {
    /// Everything stays.
    Keep,
    /// The layer is cut to a share of the budget.
    Evict {
        /// What stays.
        policy: Arc<dyn Policy>,
        /// How much stays.
        share: Share,
    },
}

/// A layer's claim on the budget. A phase states it in one way throughout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Share {
    /// In proportion to the other layers' parts; above 0, at most 1e6.
    Part(f64),
    /// So many entries per KV head, at least 1.
    Entries(usize),
}

impl Rule {
    /// The layer is cut by `policy` to an even share of the budget.
    pub fn evict(policy: Arc<dyn Policy>) -> Self {
        Self::Evict {
            policy,
            share: Share::Part(1.0),
        }
    }

    /// The policy, unless the layer keeps everything.
    pub fn policy(&self) -> Option<&Arc<dyn Policy>> {
        match self {
            Self::Keep => None,
            Self::Evict { policy, .. } => Some(policy),
        }
    }

    /// The same rule with another share; a layer that keeps everything has none.
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
    /// Everything stays in both phases.
    pub const KEEP: Self = Self {
        prefill: Rule::Keep,
        decode: Rule::Keep,
    };

    /// The rule of one phase.
    pub fn rule(&self, phase: Phase) -> &Rule {
        match phase {
            Phase::Prefill => &self.prefill,
            Phase::Decode => &self.decode,
        }
    }

    /// The rule of one phase, to change it.
    pub fn rule_mut(&mut self, phase: Phase) -> &mut Rule {
        match phase {
            Phase::Prefill => &mut self.prefill,
            Phase::Decode => &mut self.decode,
        }
    }
}

impl Plan {
    /// A plan of these layers under a budget, without an allocator.
    pub fn new(layers: Vec<LayerPlan>, budget: Budget) -> Self {
        Self {
            budget,
            allow_full_extra: false,
            online: None,
            layers,
        }
    }

    /// One policy with the same budget in every layer. The phase that `phases` leaves out keeps everything.
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

    /// Everything is kept in every layer (FullKV).
    pub fn full(layers: usize) -> Self {
        Self::new(vec![LayerPlan::KEEP; layers], Budget::Ratio(1.0))
    }

    /// The rules of one phase, from the first layer to the last.
    pub fn rules(&self, phase: Phase) -> impl Iterator<Item = &Rule> {
        self.layers.iter().map(move |layer| layer.rule(phase))
    }

    /// Replaces the rules of one phase, from the first layer to the last; layers without one stay as they are.
    pub fn set_rules(&mut self, phase: Phase, rules: impl IntoIterator<Item = Rule>) {
        for (layer, rule) in self.layers.iter_mut().zip(rules) {
            *layer.rule_mut(phase) = rule;
        }
    }

    /// Checks what can be checked without a prompt or a model.
    ///
    /// # Errors
    /// A number of layers, a budget or a share out of range, two kinds of shares in one phase, and an allocator that does
    /// not go with the policies or shares. The error names the field, the value found and the values allowed.
    pub fn check(&self) -> Result<()> {
        if self.layers.is_empty() || self.layers.len() > MAX_LAYERS {
            let allowed = format!("1 to {MAX_LAYERS}");
            return Err(Error::plan("layers", self.layers.len(), allowed));
        }
        self.budget.check()?;
        for phase in Phase::BOTH {
            self.check_shares(phase)?;
        }
        match &self.online {
            Some(allocator) => self.check_online(&**allocator),
            None => Ok(()),
        }
    }

    fn check_shares(&self, phase: Phase) -> Result<()> {
        let mut parts = 0;
        let mut entries = 0;
        for (layer, rule) in self.rules(phase).enumerate() {
            let field = || format!("{phase} share of layer {layer}");
            match rule {
                Rule::Keep => {}
                Rule::Evict { share, .. } => match *share {
                    Share::Part(part) if !(part.is_finite() && part > 0.0 && part <= 1e6) => {
                        return Err(Error::plan(field(), part, "above 0, at most 1e6"));
                    }
                    Share::Entries(0) => {
                        return Err(Error::plan(field(), "0 entries", "at least 1"));
                    }
                    Share::Part(_) => parts += 1,
                    Share::Entries(_) => entries += 1,
                },
            }
        }
        if parts > 0 && entries > 0 {
            let found = "tokens in some rules and shares in others";
            return Err(Error::plan(phase, found, "tokens in all rules or in none"));
        }
        Ok(())
    }

    fn check_online(&self, allocator: &dyn Allocator) -> Result<()> {
        let name = allocator.name();
        if !allocator.basis().is_online() {
            let allowed = "an allocator that splits the budget for each prompt";
            return Err(Error::plan("online", format!("'{name}'"), allowed));
        }
        let stated = |rule: &Rule| match rule {
            Rule::Keep => false,
            Rule::Evict { share, .. } => *share != Share::Part(1.0),
        };
        if Phase::BOTH
            .into_iter()
            .any(|phase| self.rules(phase).any(stated))
        {
            let found = format!("{name} beside tokens or shares in the rules");
            return Err(Error::plan("online", found, "one or the other"));
        }
        if allocator.basis() == Basis::Layers {
            let mut policies = self.rules(Phase::Prefill).filter_map(Rule::policy);
            if let Some(policy) = policies.find(|policy| !policy.can_cut_in_steps()) {
                let found = format!("{name} beside policy {}", policy.name());
                let allowed = "an allocator that need not see the layers first, or in the prefill a policy that neither \
                               merges nor chooses in stages";
                return Err(Error::plan("online", found, allowed));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
