//! What a plan can be without a prompt.

use super::{MAX_LAYERS, Plan, Rule, Share};
use crate::allocate::{Allocator, Basis};
use crate::phase::Phase;
use crate::policy::{HeadBudgets, Policy};
use crate::{Error, Result};
use std::sync::Arc;

/// The most entries that a plan may state as the least that its budget comes to.
const MOST_AT_LEAST: usize = 1 << 20;

/// The most tokens between two evictions that a plan may state.
const MOST_EVERY: usize = 1 << 20;

impl Plan {
    /// Checks what can be checked without a prompt or a model.
    ///
    /// # Errors
    /// A number of layers, a budget or a share out of range, both kinds of [`Share`] in one phase, parts of KV heads beside a
    /// policy that merges or divides budgets itself, an allocator beside stated shares, and one that splits by what the layers do ([`Basis::Layers`]) beside a prefill policy that cannot cut in steps
    /// ([`Policy::can_cut_in_steps`]).
    pub fn check(&self) -> Result<()> {
        if self.layers.is_empty() || self.layers.len() > MAX_LAYERS {
            let allowed = format!("1 to {MAX_LAYERS}");
            return Err(Error::plan("layers", self.layers.len(), allowed));
        }
        self.budget.check()?;
        if !(1..=MOST_EVERY).contains(&self.every) {
            let allowed = format!("1 to {MOST_EVERY}");
            return Err(Error::plan("every", self.every, allowed));
        }
        if self.at_least > MOST_AT_LEAST {
            let allowed = format!("0 to {MOST_AT_LEAST}");
            return Err(Error::plan("at_least", self.at_least, allowed));
        }
        for phase in Phase::BOTH {
            self.check_shares(phase)?;
            self.check_divided(phase)?;
        }
        match &self.online {
            Some(allocator) => self.check_online(&**allocator),
            None => Ok(()),
        }?;
        let looks = |allocator: &Arc<dyn Allocator>| allocator.basis() == Basis::Layers;
        if self.budget.counts_bytes()
            && self.mixes_codes()
            && let Some(allocator) = self.online.as_ref().filter(|allocator| looks(allocator))
        {
            let found = format!("different formats beside allocator {}", allocator.name());
            let allowed = "one format for all layers, or a budget in entries";
            return Err(Error::plan("kv", found, allowed));
        }
        Ok(())
    }

    /// Checks the parts of KV heads and that the policies under them can be divided.
    fn check_divided(&self, phase: Phase) -> Result<()> {
        for (layer, own) in self.layers.iter().enumerate() {
            let Some(heads) = &own.heads else { continue };
            let usable = |part: &f64| *part > 0.0 && *part <= 1e6;
            let wrong = heads.iter().find(|part| !usable(part));
            if let Some(found) = wrong
                .map(f64::to_string)
                .or(heads.is_empty().then(String::new))
            {
                let field = format!("heads of layer {layer}");
                return Err(Error::plan(field, found, "parts above 0, at most 1e6"));
            }
            let whole = |policy: &&Arc<dyn Policy>| !policy.can_be_divided();
            if let Some(policy) = own.rule(phase).policy().filter(whole) {
                let found = format!("of layer {layer} beside policy {}", policy.name());
                let allowed = "a policy that neither merges nor divides budgets itself";
                return Err(Error::plan("heads", found, allowed));
            }
        }
        Ok(())
    }

    /// Checks that layers and policies with shares for the KV heads have one for each of `kv_heads`.
    pub(crate) fn check_heads(&self, kv_heads: usize) -> Result<()> {
        for (layer, own) in self.layers.iter().enumerate() {
            let parts = own.heads.as_ref().map(|heads| heads.len());
            if let Some(parts) = parts.filter(|&parts| parts != kv_heads) {
                let field = format!("heads of layer {layer}");
                let allowed = format!("{kv_heads} parts, one per KV head");
                return Err(Error::plan(field, parts, allowed));
            }
        }
        for phase in Phase::BOTH {
            for (layer, rule) in self.rules(phase).enumerate() {
                let heads = rule.policy().map(|policy| policy.heads());
                if let Some(HeadBudgets::Shares(shares)) = heads
                    && shares.len() != kv_heads
                {
                    let field = format!("{phase} shares of the heads of layer {layer}");
                    let allowed = format!("{kv_heads}, one per KV head");
                    return Err(Error::plan(field, shares.len(), allowed));
                }
            }
        }
        Ok(())
    }

    fn check_shares(&self, phase: Phase) -> Result<()> {
        let [mut parts, mut entries] = [false; 2];
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
                    Share::Part(_) => parts = true,
                    Share::Entries(_) => entries = true,
                },
            }
        }
        if parts && entries {
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
            let mut rules = Phase::BOTH.into_iter().flat_map(|phase| self.rules(phase));
            let divides = |policy: &&Arc<dyn Policy>| policy.heads() != HeadBudgets::Even;
            let divided = self.layers.iter().any(|layer| layer.heads.is_some());
            let divided = divided.then(|| "parts of KV heads".to_string());
            let policy = rules.find_map(|rule| rule.policy().filter(divides));
            if let Some(other) = policy
                .map(|policy| format!("policy {}", policy.name()))
                .or(divided)
            {
                let found = format!("{name} beside {other}");
                let allowed = "an allocator that need not see the layers first, or policies that treat all heads alike";
                return Err(Error::plan("online", found, allowed));
            }
        }
        Ok(())
    }
}
