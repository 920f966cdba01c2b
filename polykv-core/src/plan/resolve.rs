//! From a plan to the budgets of one prompt.

use super::Plan;
use crate::allocate::largest_remainder;
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
        struct Claim {
            policy: Arc<dyn Policy>,
            tokens: Option<usize>,
            share: f64,
        }
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
        let full = claims.iter().filter(|claim| !claim.policy.evicts()).count();
        let budgets = if full == claims.len() {
            vec![None; full]
        } else {
            let total = self.budget.total(prompt, cost);
            let charged = if self.allow_full_extra {
                0
            } else {
                full * prompt
            };
            let fixed: usize = claims.iter().filter_map(|claim| claim.tokens).sum();
            if charged + fixed > total {
                return Err(Error::invalid(
                    place,
                    format!(
                        "{phase}: entries of {full} full layers at {prompt} tokens and the others"
                    ),
                    charged + fixed,
                    format!("at most the total of {total} (or allow_full_extra)"),
                ));
            }
            // With full layers on top, the others still get only their own part of the total.
            let weights: Vec<f64> = claims
                .iter()
                .map(
                    |claim| match claim.policy.evicts() || self.allow_full_extra {
                        true => claim.share,
                        false => 0.0,
                    },
                )
                .collect();
            let shares = largest_remainder(total - charged, &weights);
            claims
                .iter()
                .zip(shares)
                .map(|(claim, share)| claim.policy.evicts().then(|| claim.tokens.unwrap_or(share)))
                .collect()
        };
        for (layer, (claim, budget)) in claims.iter().zip(&budgets).enumerate() {
            let Some(budget) = *budget else { continue };
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
        Ok(claims
            .into_iter()
            .zip(budgets)
            .map(|(claim, budget)| PhaseRule {
                policy: claim.policy,
                budget,
            })
            .collect())
    }
}
