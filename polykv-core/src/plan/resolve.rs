//! From a plan to the budgets of one prompt.

use super::Plan;
use crate::allocate::{self, LayerStat, Uniform};
use crate::budget::EntryCost;
use crate::policy::{self, Phase, Policy};
use crate::{Error, Result};
use std::sync::Arc;

/// A policy with the entries that it may keep; `None` keeps everything.
#[derive(Clone, Debug)]
pub struct PhaseRule {
    pub policy: Arc<dyn Policy>,
    pub budget: Option<usize>,
}

impl PhaseRule {
    /// True if both evict by the same policy with the same parameters.
    pub fn same_policy(&self, other: &Self) -> bool {
        self.budget.is_some()
            && other.budget.is_some()
            && self.policy.name() == other.policy.name()
            && self.policy.params() == other.policy.params()
    }
}

/// What one layer does.
#[derive(Clone, Debug)]
pub struct LayerRules {
    pub prefill: PhaseRule,
    pub decode: PhaseRule,
}

impl LayerRules {
    /// True if both keep the same in both phases.
    pub fn same(&self, other: &Self) -> bool {
        let same = |own: &PhaseRule, other: &PhaseRule| {
            own.budget == other.budget && (own.budget.is_none() || own.same_policy(other))
        };
        same(&self.prefill, &other.prefill) && same(&self.decode, &other.decode)
    }
}

/// A plan's rules with budgets for one prompt, one per layer.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub layers: Vec<LayerRules>,
}

impl Resolved {
    /// The sum of a phase's budgets over the layers that evict.
    pub fn total(&self, phase: Phase) -> usize {
        let budget = |layer: &LayerRules| match phase {
            Phase::Prefill => layer.prefill.budget,
            Phase::Decode => layer.decode.budget,
        };
        self.layers.iter().filter_map(budget).sum()
    }
}

impl Plan {
    /// The budgets for a prompt of `prompt` tokens.
    ///
    /// # Errors
    /// If full layers do not fit under the total (both numbers are named), or a layer gets less than its policy
    /// protects.
    pub fn resolve(&self, place: &str, prompt: usize, cost: EntryCost) -> Result<Resolved> {
        let mut prefill = self.resolve_phase(place, Phase::Prefill, prompt, cost)?;
        let mut decode = self.resolve_phase(place, Phase::Decode, prompt, cost)?;
        let layers = prefill
            .drain(..)
            .zip(decode.drain(..))
            .map(|(prefill, decode)| LayerRules { prefill, decode })
            .collect();
        Ok(Resolved { layers })
    }

    fn resolve_phase(
        &self,
        place: &str,
        phase: Phase,
        prompt: usize,
        cost: EntryCost,
    ) -> Result<Vec<PhaseRule>> {
        let mut claims: Vec<Option<Claim>> = (0..self.layers).map(|_| None).collect();
        for rule in self.rules(phase) {
            let policy = policy::build(place, &rule.policy, &rule.params)?;
            for slot in &mut claims[rule.layers.first..=rule.layers.last] {
                *slot = Some(Claim {
                    policy: policy.clone(),
                    tokens: rule.tokens,
                    share: rule.share.unwrap_or(1.0),
                });
            }
        }
        // Validation has shown that each layer has exactly one rule.
        let claims: Vec<Claim> = claims.into_iter().flatten().collect();
        let budgets = self.budgets(place, phase, &claims, prompt, cost)?;
        Ok(claims
            .into_iter()
            .zip(budgets)
            .map(|(claim, budget)| PhaseRule {
                policy: claim.policy,
                budget,
            })
            .collect())
    }

    /// One budget per layer, none for layers that keep everything.
    fn budgets(
        &self,
        place: &str,
        phase: Phase,
        claims: &[Claim],
        prompt: usize,
        cost: EntryCost,
    ) -> Result<Vec<Option<usize>>> {
        let evicting: Vec<&Claim> = claims
            .iter()
            .filter(|claim| claim.policy.evicts())
            .collect();
        let full = claims.len() - evicting.len();
        if evicting.is_empty() {
            return Ok(vec![None; full]);
        }
        let total = self.budget.total(prompt, cost);
        let fixed: usize = evicting.iter().filter_map(|claim| claim.tokens).sum();
        let left = if self.allow_full_extra {
            // With full layers on top, the others still get only their own part of the total.
            let all: f64 = claims.iter().map(|claim| claim.share).sum();
            let own: f64 = evicting.iter().map(|claim| claim.share).sum();
            (total as f64 * own / all).round() as usize
        } else if full * prompt + fixed <= total {
            total - full * prompt
        } else {
            return Err(Error::invalid(
                place,
                format!("{phase}: entries of {full} full layers at {prompt} tokens and the others"),
                full * prompt + fixed,
                format!("at most the total of {total} (or allow_full_extra)"),
            ));
        };
        let stats: Vec<LayerStat> = evicting
            .iter()
            .map(|claim| LayerStat {
                share: claim.share,
                least: allocate::least_budget(&*claim.policy),
                sensitivity: 0.0,
            })
            .collect();
        let allocator = match &self.online {
            Some(name) => allocate::by_name(name)?,
            None => &Uniform,
        };
        let mut split = allocator.split(left, prompt, &stats).into_iter();
        let mut budgets = Vec::with_capacity(claims.len());
        for (layer, claim) in claims.iter().enumerate() {
            let share = match claim.policy.evicts() {
                true => split.next(),
                false => None,
            };
            let budget = share.map(|share| claim.tokens.unwrap_or(share));
            if let Some(budget) = budget {
                let least = claim.policy.protect(budget).count().max(1);
                if budget < least {
                    return Err(Error::invalid(
                        place,
                        format!("{phase} budget of layer {layer}"),
                        budget,
                        format!(
                            "at least {least}, what policy {} protects",
                            claim.policy.name()
                        ),
                    ));
                }
            }
            budgets.push(budget);
        }
        Ok(budgets)
    }
}

/// What a layer asks for in a phase.
struct Claim {
    policy: Arc<dyn Policy>,
    tokens: Option<usize>,
    share: f64,
}
