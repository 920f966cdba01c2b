//! The budgets of a plan for one prompt.

use super::{LayerPlan, Plan, Rule, Share};
use crate::allocate::{self, Allocator, LayerStat, UniformAllocator};
use crate::apportion::capped;
use crate::budget::EntryCost;
use crate::cache::Spans;
use crate::codes::Codes;
use crate::facts::{first_seen, most_entries};
use crate::phase::Phase;
use crate::policy::{HeadBudgets, PerHead, Policy};
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

impl Eviction {
    /// Whether the KV heads get budgets of their own.
    pub(crate) fn divides(&self) -> bool {
        self.policy.heads() != HeadBudgets::Even
    }
}

/// The evictions of one layer for one prompt. In a phase without one the layer keeps everything.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LayerEvictions {
    /// The eviction that happens once, after the prompt.
    pub prefill: Option<Eviction>,
    /// The eviction that happens after every generated token.
    pub decode: Option<Eviction>,
    /// The layer's window, see [`LayerFacts::window`](crate::LayerFacts::window). What has left it goes before any policy is
    /// asked, also in a phase without an eviction.
    pub window: Option<usize>,
    /// The codes in which the layer keeps its entries between prompts; `None` keeps them in the type of the cache.
    pub kv: Option<Codes>,
    /// Tokens between two evictions while decoding, see [`Plan::every`]; 0 is 1.
    pub every: usize,
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

    /// Whether copies of the layer, after a prompt, share what it holds: it only adds entries while it decodes, as floats.
    pub(crate) fn shares(&self) -> bool {
        self.decode.is_none() && self.window.is_none() && self.kv.is_none()
    }

    /// The most entries per KV head that the layer holds after a phase: its budget, and what its window holds beside the next
    /// token; `usize::MAX` if there is neither.
    pub fn most(&self, phase: Phase) -> usize {
        let budget = self.budget(phase).unwrap_or(usize::MAX);
        budget.min(most_entries(self.window))
    }

    /// How many entries are protected at most once `tokens` tokens have been seen, by a policy under a budget and by `spans`:
    /// what has left the window is not.
    pub(crate) fn protected(&self, eviction: &Eviction, spans: &Spans, tokens: usize) -> usize {
        let protect = eviction.policy.protect(eviction.budget);
        let count = spans.count_from(first_seen(self.window, tokens), protect);
        count.min(most_entries(self.window)).max(1)
    }

    /// How many entries per KV head an eviction of the decode phase leaves, once `tokens` tokens have been seen.
    pub(crate) fn stay(&self, eviction: &Eviction, spans: &Spans, tokens: usize) -> usize {
        let fewer = self.every.saturating_sub(1);
        let least = self.protected(eviction, spans, tokens);
        let budget = eviction.budget;
        budget.saturating_sub(fewer).max(least).min(budget)
    }

    /// Whether the decode phase keeps the division over heads that the prefill has made.
    pub(crate) fn same_division(&self) -> bool {
        let budgets = self.budget(Phase::Prefill) == self.budget(Phase::Decode);
        let divides = self.prefill.as_ref().is_some_and(Eviction::divides);
        divides && budgets && self.same_policy()
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
    /// The tokens up to the end of the prompt.
    pub tokens: usize,
}

impl Resolved {
    /// The sum of the budgets of a phase over the layers that evict, in entries per KV head.
    pub fn total(&self, phase: Phase) -> usize {
        let budgets = self.layers.iter().filter_map(|layer| layer.budget(phase));
        budgets.fold(0, usize::saturating_add)
    }
}

impl LayerPlan {
    /// The policy that evicts in a phase, around which the layer's parts for the KV heads stand if it has any.
    pub(crate) fn policy(&self, phase: Phase) -> Option<Arc<dyn Policy>> {
        let policy = self.rule(phase).policy()?.clone();
        Some(match &self.heads {
            Some(parts) => PerHead::over(policy.for_parts(parts).unwrap_or(policy), parts),
            None => policy,
        })
    }
}

impl Plan {
    /// The evictions of all layers for a prompt of `prompt` tokens, where an entry costs `cost`. A plan that passes
    /// [`Plan::check`] is assumed.
    ///
    /// # Errors
    /// Layers that keep everything and do not fit in the budget, and a layer whose budget is less than what its policy
    /// protects; both of kind [`ErrorKind::Budget`](crate::ErrorKind::Budget).
    pub fn resolve(&self, prompt: usize, cost: &EntryCost) -> Result<Resolved> {
        let prefill = self.resolve_phase(Phase::Prefill, prompt, cost)?;
        let decode = self.resolve_phase(Phase::Decode, prompt, cost)?;
        let both = prefill.into_iter().zip(decode).enumerate();
        let resolved = Resolved {
            layers: both
                .map(|(layer, (prefill, decode))| LayerEvictions {
                    prefill,
                    decode,
                    window: cost.windows.get(layer).copied().flatten(),
                    kv: self.layers.get(layer).and_then(|layer| layer.kv),
                    every: self.every,
                })
                .collect(),
            tokens: prompt,
        };
        resolved.check_spans(&Spans::default())?;
        Ok(resolved)
    }

    fn resolve_phase(
        &self,
        phase: Phase,
        prompt: usize,
        cost: &EntryCost,
    ) -> Result<Vec<Option<Eviction>>> {
        let mut evicting: Vec<(&Arc<dyn Policy>, Share)> = Vec::new();
        let mut most = Vec::new();
        for (layer, rule) in self.rules(phase).enumerate() {
            if let Rule::Evict { policy, share } = rule {
                evicting.push((policy, *share));
                most.push(cost.most(layer));
            }
        }
        if evicting.is_empty() {
            return Ok(vec![None; self.layers.len()]);
        }
        let stats = evicting
            .iter()
            .zip(&most)
            .map(|((policy, share), &most)| {
                Ok(LayerStat {
                    share: match *share {
                        Share::Part(part) => part,
                        Share::Entries(_) => 1.0,
                    },
                    least: allocate::least_budget(&***policy)?.min(most),
                    sensitivity: 0.0,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let allocator: &dyn Allocator = match &self.online {
            Some(allocator) => &**allocator,
            None => &UniformAllocator,
        };
        let split = |total: usize| {
            let split = allocator.split(total, prompt, &stats);
            let budgets: Vec<usize> = evicting
                .iter()
                .zip(split)
                .map(|((_, share), split)| match *share {
                    Share::Part(_) => split,
                    Share::Entries(entries) => entries,
                })
                .collect();
            capped(&budgets, &most, prompt)
        };
        let budgets = match self.bytes_of_evicting(phase, prompt, cost)? {
            None => split(self.total_of_evicting(phase, &evicting, &stats, prompt, cost)?),
            Some((bytes, sizes)) => {
                let fits = |total: usize| {
                    let sizes = split(total).into_iter().zip(&sizes);
                    let sizes = sizes.map(|(budget, size)| budget.saturating_mul(*size));
                    sizes.fold(0, usize::saturating_add) <= bytes
                };
                split(most_that_fits(self.most_entries(prompt, cost), fits))
            }
        };
        let mut budgets = budgets.into_iter();
        let evictions = self.layers.iter().map(|layer| {
            let policy = layer.policy(phase)?;
            let budget = budgets.next()?;
            Some(Eviction { policy, budget })
        });
        Ok(evictions.collect())
    }

    /// The entries that the evicting layers of a phase have together.
    fn total_of_evicting(
        &self,
        phase: Phase,
        evicting: &[(&Arc<dyn Policy>, Share)],
        stats: &[LayerStat],
        prompt: usize,
        cost: &EntryCost,
    ) -> Result<usize> {
        let total = self.most_entries(prompt, cost);
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
        let kept = self
            .rules(phase)
            .enumerate()
            .map(|(layer, rule)| match rule {
                Rule::Keep => cost.most(layer).min(prompt),
                Rule::Evict { .. } => 0,
            });
        let kept = kept.fold(0, usize::saturating_add);
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

    /// Under a budget in bytes over layers whose entries differ in size: the bytes for the layers that evict, and the size of
    /// an entry in each of them. `None` under any other budget.
    fn bytes_of_evicting(
        &self,
        phase: Phase,
        prompt: usize,
        cost: &EntryCost,
    ) -> Result<Option<(usize, Vec<usize>)>> {
        let bytes = self.bytes(prompt, cost);
        let Some(bytes) = bytes.filter(|_| self.mixes_codes()) else {
            return Ok(None);
        };
        let bytes = bytes.saturating_sub(self.bytes_beside(cost));
        let (mut kept, mut sizes) = (0usize, Vec::new());
        for (layer, rule) in self.rules(phase).enumerate() {
            let size = self.entry_bytes(layer, cost);
            match rule {
                Rule::Keep => {
                    let entries = cost.most(layer).min(prompt);
                    kept = kept.saturating_add(entries.saturating_mul(size));
                }
                Rule::Evict { .. } => sizes.push(size),
            }
        }
        let full = self.layers.len().saturating_sub(sizes.len());
        let left = match self.allow_full_extra {
            true => bytes
                .saturating_mul(sizes.len())
                .checked_div(self.layers.len())
                .unwrap_or(0),
            false => bytes.checked_sub(kept).ok_or_else(|| {
                Error::budget(
                    format!("{phase}: bytes of {full} full layers at {prompt} tokens"),
                    kept,
                    format!("at most the total of {bytes} (or allow_full_extra)"),
                )
            })?,
        };
        Ok(Some((left, sizes)))
    }
}

/// The largest number up to `most` that fits, where all below one that fits do; 0 if none does.
fn most_that_fits(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = high.saturating_sub(high.saturating_sub(low) / 2);
        match fits(middle) {
            true => low = middle,
            false => high = middle.saturating_sub(1),
        }
    }
    low
}
