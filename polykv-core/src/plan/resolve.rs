//! The budgets of a plan for one prompt.

use super::{Plan, Rule, Share};
use crate::allocate::{self, Allocator, LayerStat, UniformAllocator};
use crate::budget::EntryCost;
use crate::phase::Phase;
use crate::policy::Policy;
use crate::{Error, Result};
use std::sync::Arc;

/// A policy with its budget for one prompt.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Eviction {
    /// Decides which entries stay.
    pub policy: Arc<dyn Policy>,
    /// How many entries per KV head stay, at least 1.
    pub budget: usize,
}

/// The evictions of one layer for one prompt. In a phase without one the layer keeps everything.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LayerEvictions {
    /// The eviction that happens once, after the prompt.
    pub prefill: Option<Eviction>,
    /// The eviction that happens after every generated token.
    pub decode: Option<Eviction>,
}

impl LayerEvictions {
    /// The eviction of one phase; `None` if the layer keeps everything.
    pub fn of(&self, phase: Phase) -> Option<&Eviction> {
        match phase {
            Phase::Prefill => self.prefill.as_ref(),
            Phase::Decode => self.decode.as_ref(),
        }
    }

    /// The budget of one phase in entries per KV head; `None` if the layer keeps everything.
    pub fn budget(&self, phase: Phase) -> Option<usize> {
        self.of(phase).map(|eviction| eviction.budget)
    }

    /// Whether both phases evict, by the same policy with the same parameters.
    pub fn same_policy(&self) -> bool {
        match (&self.prefill, &self.decode) {
            (Some(prefill), Some(decode)) => prefill.policy.key() == decode.policy.key(),
            _ => false,
        }
    }
}

/// The evictions of all layers for one prompt.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Resolved {
    /// The evictions of each layer, from the first to the last.
    pub layers: Vec<LayerEvictions>,
}

impl Resolved {
    /// The sum of the budgets of a phase over the layers that evict, in entries per KV head.
    pub fn total(&self, phase: Phase) -> usize {
        let budgets = self.layers.iter().filter_map(|layer| layer.budget(phase));
        budgets.fold(0, usize::saturating_add)
    }
}

impl Plan {
    /// The evictions of all layers for a prompt of `prompt` tokens, where an entry costs `cost`. A plan that passes
    /// [`Plan::check`] is assumed.
    ///
    /// # Errors
    /// Layers that keep everything and do not fit in the budget, and a layer whose budget is less than what its policy
    /// protects; both of kind [`ErrorKind::Budget`](crate::ErrorKind::Budget).
    pub fn resolve(&self, prompt: usize, cost: EntryCost) -> Result<Resolved> {
        let prefill = self.resolve_phase(Phase::Prefill, prompt, cost)?;
        let decode = self.resolve_phase(Phase::Decode, prompt, cost)?;
        let both = prefill.into_iter().zip(decode);
        Ok(Resolved {
            layers: both
                .map(|(prefill, decode)| LayerEvictions { prefill, decode })
                .collect(),
        })
    }

    fn resolve_phase(
        &self,
        phase: Phase,
        prompt: usize,
        cost: EntryCost,
    ) -> Result<Vec<Option<Eviction>>> {
        let evicting: Vec<(&Arc<dyn Policy>, Share)> = self
            .rules(phase)
            .filter_map(|rule| match rule {
                Rule::Keep => None,
                Rule::Evict { policy, share } => Some((policy, *share)),
            })
            .collect();
        if evicting.is_empty() {
            return Ok(vec![None; self.layers.len()]);
        }
        let stats = evicting
            .iter()
            .map(|(policy, share)| {
                Ok(LayerStat {
                    share: match *share {
                        Share::Part(part) => part,
                        Share::Entries(_) => 1.0,
                    },
                    least: allocate::least_budget(&***policy)?,
                    sensitivity: 0.0,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let total = self.total_of_evicting(phase, &evicting, &stats, prompt, cost)?;
        let allocator: &dyn Allocator = match &self.online {
            Some(allocator) => &**allocator,
            None => &UniformAllocator,
        };
        let split = allocator.split(total, prompt, &stats);
        let mut budgets = evicting
            .iter()
            .zip(split)
            .map(|((_, share), split)| match *share {
                Share::Part(_) => split,
                Share::Entries(entries) => entries,
            });
        let mut resolved = Vec::with_capacity(self.layers.len());
        for (layer, rule) in self.rules(phase).enumerate() {
            let Rule::Evict { policy, .. } = rule else {
                resolved.push(None);
                continue;
            };
            let budget = budgets.next().unwrap_or(0);
            let least = policy.protect(budget).count().max(1);
            if budget < least {
                return Err(Error::budget(
                    format!("{phase} budget of layer {layer}"),
                    budget,
                    format!("at least {least}, what policy {} protects", policy.name()),
                ));
            }
            resolved.push(Some(Eviction {
                policy: policy.clone(),
                budget,
            }));
        }
        Ok(resolved)
    }

    /// The entries that the evicting layers of a phase have together.
    fn total_of_evicting(
        &self,
        phase: Phase,
        evicting: &[(&Arc<dyn Policy>, Share)],
        stats: &[LayerStat],
        prompt: usize,
        cost: EntryCost,
    ) -> Result<usize> {
        let total = self.budget.total(prompt, cost);
        let full = self.layers.len().saturating_sub(evicting.len());
        if self.allow_full_extra {
            // With full layers on top, the others still get only their own part of the total.
            let parts: f64 = stats.iter().map(|stat| stat.share).sum();
            return Ok((total as f64 * parts / (parts + full as f64)).round() as usize);
        }
        let fixed = evicting.iter().map(|(_, share)| match *share {
            Share::Part(_) => 0,
            Share::Entries(entries) => entries,
        });
        let fixed = fixed.fold(0, usize::saturating_add);
        let kept = full.saturating_mul(prompt);
        let claimed = kept.saturating_add(fixed);
        match claimed <= total {
            true => Ok(total.saturating_sub(kept)),
            false => Err(Error::budget(
                format!("{phase}: entries of {full} full layers at {prompt} tokens and the others"),
                claimed,
                format!("at most the total of {total} (or allow_full_extra)"),
            )),
        }
    }
}
