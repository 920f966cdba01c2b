//! A naive cache in f64 on the host, with entries in order of position, written from the definitions alone.

mod division;
mod head;
mod repetition;

pub use head::{Entry, Head, Oracle};

use super::inputs::{DIM, GROUP, KV_HEADS, Token, Windows, shape};
use crate::allocate::Basis;
use crate::cache::Spans;
use crate::phase::Phase;
use crate::plan::{Eviction, LayerEvictions, Plan};
use crate::policy::HeadBudgets;
use crate::{Error, Result};
use std::collections::BTreeMap;

/// The naive cache of one layer, for one sequence.
#[derive(Clone, Debug)]
pub struct Reference {
    plan: Plan,
    layer: usize,
    windows: Windows,
    spans: Spans,
    rules: LayerEvictions,
    heads: Vec<Vec<Entry>>,
    queries: Vec<Token>,
    agree: bool,
    /// The decode budgets of the heads, once they differ.
    divided: Option<Vec<usize>>,
    /// The numbers that policies which merge keep, per phase and KV head.
    memory: BTreeMap<(Phase, usize), Vec<f64>>,
}

impl Reference {
    /// An empty cache for one layer of a plan.
    ///
    /// # Errors
    /// A plan with an allocator that splits by what the layers do.
    pub fn new(plan: &Plan, layer: usize) -> Result<Self> {
        if let Some(online) = &plan.online
            && online.basis() == Basis::Layers
        {
            let what = format!("allocator {} in the reference", online.name());
            return Err(Error::unsupported(what, "it sees the layers first"));
        }
        Ok(Self {
            plan: plan.clone(),
            layer,
            windows: Windows::default(),
            spans: Spans::default(),
            rules: LayerEvictions::default(),
            heads: vec![Vec::new(); KV_HEADS],
            queries: Vec::new(),
            agree: true,
            divided: None,
            memory: BTreeMap::new(),
        })
    }

    /// States the layers' windows and the soft-cap, before the first token.
    #[must_use]
    pub fn with_windows(self, windows: &Windows) -> Self {
        Self {
            windows: windows.clone(),
            ..self
        }
    }

    /// Protects positions from eviction; see [`KvCache::protect`](crate::KvCache::protect).
    pub fn protect(&mut self, spans: Spans) {
        self.spans = spans;
    }

    /// Announces a prompt of `tokens` tokens, which fixes the budgets.
    ///
    /// # Errors
    /// What [`Plan::resolve`] refuses.
    pub fn begin(&mut self, tokens: usize) -> Result<()> {
        let layers = 0..self.plan.layers.len();
        let windows: Vec<_> = layers.map(|layer| self.windows.of(layer)).collect();
        let cost = shape().cost(&windows);
        let resolved = self.plan.resolve(self.queries.len() + tokens, &cost)?;
        self.rules = resolved.layers[self.layer].clone();
        self.divided = None;
        Ok(())
    }

    /// Appends one token and returns its attention output, `[HEADS][DIM]`.
    pub fn step(&mut self, q: &Token, k: &Token, v: &Token) -> Token {
        let position = self.queries.len();
        self.queries.push(q.clone());
        let mut output = Vec::new();
        for head in 0..KV_HEADS {
            self.heads[head].push(Entry {
                position,
                key: k[head].clone(),
                value: v[head].clone(),
                arrived: v[head].clone(),
                sum: 0.0,
                repeated: 0.0,
                hits: Vec::new(),
            });
            let view = self.head(head, Phase::Decode, 0);
            let rows: Vec<Vec<f64>> = (0..GROUP).map(|g| view.attention(g, position)).collect();
            let seen = |entry: &&Entry| self.sees(position, entry.position);
            let average = 1.0 / self.heads[head].iter().filter(seen).count() as f64;
            let entries = &mut self.heads[head];
            for (j, entry) in entries.iter_mut().enumerate() {
                entry.sum += rows.iter().map(|row| row[j]).sum::<f64>() / GROUP as f64;
                let hits = rows.iter().filter(|row| row[j] >= average).count();
                entry.hits.push(hits);
            }
            for row in &rows {
                let mut out = vec![0.0; DIM];
                for (entry, p) in entries.iter().zip(row) {
                    out.iter_mut()
                        .zip(&entry.value)
                        .for_each(|(o, v)| *o += p * v);
                }
                output.push(out);
            }
        }
        output
    }

    /// The scores of all entries for each KV head, if an eviction is due in this phase; otherwise `None`.
    ///
    /// # Errors
    /// A policy without an [`Oracle`], or with one that gives another number of scores than entries.
    pub fn scores(&self, phase: Phase) -> Result<Option<Vec<Vec<f64>>>> {
        let Some(Eviction { policy, budget }) = self.rules.of(phase) else {
            return Ok(None);
        };
        let due = match (policy.heads(), &self.divided) {
            // Together, until each head has its own.
            (HeadBudgets::Even, _) => self.heads.iter().any(|head| head.len() > *budget),
            (_, Some(own)) if phase == Phase::Decode => {
                let mut heads = self.heads.iter().zip(own);
                heads.any(|(head, own)| head.len() > *own)
            }
            _ => self.heads.iter().map(Vec::len).sum::<usize>() > budget * KV_HEADS,
        };
        if !due {
            return Ok(None);
        }
        let oracle = policy.oracle().ok_or_else(|| {
            let what = format!("policy {} in the reference", policy.name());
            Error::unsupported(what, "it has no oracle")
        })?;
        let scores = (0..KV_HEADS).map(|head| {
            let view = self.head(head, phase, self.stay(head, phase, *budget));
            let scores = oracle.scores(&view);
            match scores.len() == view.entries().len() {
                true => Ok(scores),
                false => Err(Error::Failed(format!(
                    "the oracle of policy {} gives {} scores for {} entries",
                    policy.name(),
                    scores.len(),
                    view.entries().len()
                ))),
            }
        });
        scores.collect::<Result<_>>().map(Some)
    }

    /// Whether the query at a position sees an entry at another one.
    fn sees(&self, query: usize, position: usize) -> bool {
        let window = self.windows.of(self.layer);
        position <= query && window.is_none_or(|window| position + window > query)
    }

    /// Drops what the next token does not see, as long as all heads hold equally many: each keeps as many of its latest entries
    /// as there can be in the window beside the next token, at least one.
    fn leave_window(&mut self) {
        if let Some(window) = self.windows.of(self.layer) {
            for head in &mut self.heads {
                let most = window.saturating_sub(1).max(1);
                head.drain(..head.len().saturating_sub(most));
            }
        }
    }

    /// Drops what has left the layer's window, and evicts down to the budget of the phase, if it has one that is exceeded.
    ///
    /// # Errors
    /// Those of [`Reference::scores`].
    pub fn evict(&mut self, phase: Phase) -> Result<()> {
        self.leave_window();
        let (Some(scores), Some(eviction)) = (self.scores(phase)?, self.rules.of(phase).cloned())
        else {
            return Ok(());
        };
        let Eviction { policy, budget } = eviction.clone();
        let remembers = match self.rules.same_policy() {
            true => Phase::Prefill,
            false => phase,
        };
        let own = self.divided.is_some() && phase == Phase::Decode;
        let counts = match policy.heads() {
            HeadBudgets::Even => vec![self.stay(0, phase, budget); KV_HEADS],
            _ if own => (0..KV_HEADS)
                .map(|head| self.stay(head, phase, budget))
                .collect(),
            heads => self.divide(phase, &eviction, &heads, &scores),
        };
        let mut heads = Vec::new();
        for (head, scores) in scores.into_iter().enumerate() {
            let entries = self.heads[head].clone();
            let most = match policy.heads() != HeadBudgets::Even && !own {
                true => counts[head],
                false => self.budget_of(head, phase, budget),
            };
            if entries.len() <= most {
                heads.push(entries);
                continue;
            }
            let mut memory = self.memory.remove(&(remembers, head)).unwrap_or_default();
            let view = self.head(head, phase, self.stay(head, phase, budget));
            let protect = policy.protect(view.budget);
            let mut kept = view.best(&scores, protect, &self.spans, &[], counts[head]);
            kept.sort_unstable();
            let entries = match policy.oracle() {
                Some(oracle) => oracle.merge(&view, &kept, &mut memory),
                None => view.entries().to_vec(),
            };
            let entries = entries.into_iter().enumerate();
            let entries = entries.filter(|(j, _)| kept.binary_search(j).is_ok());
            heads.push(entries.map(|(_, entry)| entry).collect());
            self.memory.insert((remembers, head), memory);
        }
        self.heads = heads;
        self.agree &= policy.same_for_all_heads();
        // What the prefill has divided stays if the decode phase would divide it alike.
        let same = |decode: &Eviction| {
            decode.policy.key() == policy.key() && decode.budget == eviction.budget
        };
        let stays = phase == Phase::Decode || self.rules.decode.as_ref().is_some_and(same);
        if policy.heads() != HeadBudgets::Even && stays && !own {
            self.divided = Some(counts);
        }
        Ok(())
    }

    /// How many entries an eviction leaves in a head: fewer than its budget where evictions are some tokens apart.
    fn stay(&self, head: usize, phase: Phase, budget: usize) -> usize {
        let budget = self.budget_of(head, phase, budget);
        let decode = self.rules.decode.as_ref();
        let divided = self.divided.is_some();
        let together = |decode: &&Eviction| divided || decode.policy.heads() == HeadBudgets::Even;
        match decode.filter(together).filter(|_| phase == Phase::Decode) {
            Some(decode) => {
                let policy = decode.policy.clone();
                let eviction = Eviction { policy, budget };
                self.rules.stay(&eviction, &self.spans, self.queries.len())
            }
            None => budget,
        }
    }

    /// What a head keeps in a phase: its own budget while decoding, if the heads have some.
    fn budget_of(&self, head: usize, phase: Phase, budget: usize) -> usize {
        let decode = self
            .rules
            .decode
            .as_ref()
            .filter(|_| phase == Phase::Decode);
        let divides = decode.is_some_and(|decode| decode.policy.heads() != HeadBudgets::Even);
        let own = self.divided.as_ref().filter(|_| divides);
        own.map_or(budget, |own| own[head])
    }

    /// The positions that are kept for each KV head, ascending.
    pub fn positions(&self) -> Vec<Vec<usize>> {
        let heads = self.heads.iter();
        heads
            .map(|head| head.iter().map(|entry| entry.position).collect())
            .collect()
    }

    fn head(&self, head: usize, phase: Phase, budget: usize) -> Head<'_> {
        Head {
            reference: self,
            head,
            phase,
            budget,
        }
    }
}
