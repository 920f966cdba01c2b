//! Layers whose KV heads have budgets of their own: each head of each sequence then is a layer of one head, with as many slots
//! as it needs.

use super::LayerCache;
use crate::facts::LayerFacts;
use crate::ops::{self, HeadScores, choose_of_heads, read_error};
use crate::phase::Phase;
use crate::plan::{Eviction, LayerEvictions};
use crate::policy::Policy;
use crate::shape::LayerShape;
use crate::{Error, Result};
use burn::tensor::{Int, Tensor, TensorData, s};
use rayon::prelude::*;

/// The budget of a head before its layer's is divided: nothing is evicted.
const UNDIVIDED: usize = usize::MAX;

impl LayerCache {
    /// Whether the KV heads have budgets of their own.
    pub(in crate::cache) fn is_divided(&self) -> bool {
        !self.heads.is_empty()
    }

    /// Whether this layer divides its budget under an eviction; a head of a layer does not.
    pub(super) fn divides(&self, eviction: &Eviction) -> bool {
        self.part.is_none() && eviction.divides()
    }

    /// How many entries each KV head holds; the heads of one sequence follow those of the one before it.
    pub fn head_entries(&self) -> Vec<usize> {
        match self.is_divided() {
            true => self.heads.iter().map(LayerCache::len).collect(),
            false => {
                let heads = self.shape.batch.saturating_mul(self.shape.kv_heads);
                vec![self.len(); heads]
            }
        }
    }

    /// The least and the most of [`LayerCache::head_entries`].
    pub(in crate::cache) fn head_range(&self) -> [usize; 2] {
        let parts = self.heads.iter().map(Self::len);
        match parts.clone().min().zip(parts.max()) {
            Some((least, most)) => [least, most],
            None => [self.len(); 2],
        }
    }

    /// The mean of [`LayerCache::head_entries`].
    pub fn entries_mean(&self) -> f64 {
        let held = self.head_entries();
        held.iter().sum::<usize>() as f64 / held.len().max(1) as f64
    }

    /// The same evictions for a head, which the decode phase leaves alone until its budget is divided.
    pub(super) fn head_rules(&self) -> Option<LayerEvictions> {
        let mut rules = self.rules.clone()?;
        if let Some(decode) = rules.decode.as_mut().filter(|decode| decode.divides()) {
            decode.budget = UNDIVIDED;
        }
        Some(rules)
    }

    /// What the model stated, for one KV head.
    pub(super) fn head_facts(&self, head: usize) -> LayerFacts {
        let mut facts = self.facts.clone();
        // Cut out for the policies that read it only: it is a copy.
        facts.output = facts.output.filter(|_| self.needs.output).map(|output| {
            let width = self.shape.group().saturating_mul(self.shape.head_dim);
            let first = head.saturating_mul(width);
            let columns = first..first.saturating_add(width);
            output.to_f32().slice(s![.., columns]).into()
        });
        facts
    }

    /// Announces a prompt to the heads.
    pub(super) fn begin_heads(&mut self, tokens: usize) {
        let Some(rules) = self.head_rules().filter(|_| self.is_divided()) else {
            return;
        };
        let facts: Vec<LayerFacts> = (0..self.shape.kv_heads)
            .map(|head| self.head_facts(head))
            .collect();
        let (softcap, spans) = (self.softcap, self.spans.clone());
        for (part, facts) in self.heads.iter_mut().zip(facts.into_iter().cycle()) {
            part.begin(rules.clone(), facts, softcap, spans.clone(), tokens);
        }
    }

    /// Runs a step in every head with its part of queries, keys and values, and puts the outputs together.
    pub(super) fn in_heads(
        &mut self,
        [q, k, v]: [Tensor<4>; 3],
        step: impl Fn(&mut Self, [Tensor<4>; 3]) -> Result<Tensor<4>> + Sync,
    ) -> Result<Tensor<4>> {
        let (kv_heads, group) = (self.shape.kv_heads, self.shape.group());
        let run = |(index, part): (usize, &mut Self)| {
            let (row, head) = place(index, kv_heads);
            let of = |all: &Tensor<4>, count: usize| {
                let row = all.clone().narrow(0, row, 1);
                row.narrow(1, head.saturating_mul(count), count)
            };
            step(part, [of(&q, group), of(&k, 1), of(&v, 1)])
        };
        // A decoded token's heads are done before another thread has woken.
        let at_once = ops::is_cpu(&self.device) && q.dims()[2] > 1;
        let outputs: Result<Vec<Tensor<4>>> = match at_once {
            true => self.heads.par_iter_mut().enumerate().map(run).collect(),
            false => self.heads.iter_mut().enumerate().map(run).collect(),
        };
        Ok(side_by_side(outputs?, kv_heads))
    }

    pub(super) fn prefill_heads(&mut self, parts: [Tensor<4>; 3]) -> Result<Tensor<4>> {
        let tokens = parts[0].dims()[2];
        let output = self.in_heads(parts, |part, [q, k, v]| part.prefill(q, k, v))?;
        self.seen = self.seen.saturating_add(tokens);
        self.expected = self.expected.saturating_sub(tokens);
        Ok(output)
    }

    pub(super) fn decode_heads(&mut self, parts: [Tensor<4>; 3]) -> Result<Tensor<4>> {
        let output = self.in_heads(parts, |part, [q, k, v]| part.decode(q, k, v))?;
        self.seen = self.seen.saturating_add(1);
        let decode = self.rules()?.decode;
        if let Some(eviction) = decode.filter(Eviction::divides)
            && self.heads.iter().any(LayerCache::is_undivided)
        {
            self.divide(Phase::Decode, &eviction, None)?;
        }
        Ok(output)
    }

    /// Whether this head waits for its part of the decode budget.
    pub(super) fn is_undivided(&self) -> bool {
        let budget = self
            .rules
            .as_ref()
            .and_then(|rules| rules.budget(Phase::Decode));
        budget == Some(UNDIVIDED)
    }

    /// Evicts down to the prefill budget, by heads or in each head alike.
    pub(super) fn end_prompt_of_heads(&mut self) -> Result<()> {
        match self.rules()?.prefill {
            Some(eviction) if eviction.divides() => self.divide(Phase::Prefill, &eviction, None),
            Some(_) => self.heads.iter_mut().try_for_each(LayerCache::end_prompt),
            None => Ok(()),
        }
    }

    /// Divides the budget over the heads if they hold more than it together, and cuts them to it.
    pub(super) fn divide(
        &mut self,
        phase: Phase,
        eviction: &Eviction,
        row: Option<Tensor<4>>,
    ) -> Result<()> {
        let Eviction { policy, budget } = eviction;
        let kv_heads = self.shape.kv_heads;
        let total = budget.saturating_mul(kv_heads);
        let held = self.head_entries();
        let mut sums = held
            .chunks(kv_heads.max(1))
            .map(|row| row.iter().sum::<usize>());
        if !sums.any(|sum| sum > total) {
            return Ok(());
        }
        let scored = match self.is_divided() {
            false => self.head_scores(phase, &**policy, *budget, row)?,
            true => {
                let parts = self.heads.iter();
                let scored = parts.map(|part| part.head_scores(phase, &**policy, *budget, None));
                scored.collect::<Result<Vec<_>>>()?.concat()
            }
        };
        if scored
            .iter()
            .flat_map(|head| &head.scores)
            .any(|score| score.is_nan())
        {
            return Err(Error::NotFinite(self.nan_reason()));
        }
        let protected = self.protected(&**policy, *budget);
        let floor = self.rules()?.protected(eviction, &self.spans, self.seen);
        let slots: Vec<Vec<usize>> = scored
            .chunks(kv_heads.max(1))
            .flat_map(|heads| choose_of_heads(heads, protected, floor, *budget, &policy.heads()))
            .collect();
        let before = self.kv_bytes();
        if !self.is_divided() {
            self.take_apart();
        }
        for (part, slots) in self.heads.iter_mut().zip(&slots) {
            let count = slots.len();
            let slots: Vec<i64> = slots.iter().map(|&slot| slot as i64).collect();
            let slots = TensorData::new(slots, [1, 1, count]);
            let slots = Tensor::<3, Int>::from_data(slots, &self.device);
            part.keep_slots(slots, count.saturating_add(1));
            part.moving = 0;
        }
        self.moving = self.moving.max(before.saturating_add(self.kv_bytes()));
        self.fix_budgets(phase, &slots, floor);
        Ok(())
    }

    /// The scores of the entries of every head, read from the device.
    fn head_scores(
        &self,
        phase: Phase,
        policy: &dyn Policy,
        budget: usize,
        row: Option<Tensor<4>>,
    ) -> Result<Vec<HeadScores>> {
        let view = self.view(phase, policy, budget, row)?;
        let scores = policy.score(self.states.of(phase), &view)?;
        let scores: Vec<f32> = scores.try_into_vec_as().map_err(read_error)?;
        let positions: Vec<i64> = view.positions.try_into_vec_as().map_err(read_error)?;
        let entries = self.len().max(1);
        let heads = scores.chunks(entries).zip(positions.chunks(entries));
        let head = |(scores, positions): (&[f32], &[i64])| HeadScores {
            scores: scores.to_vec(),
            positions: positions.to_vec(),
        };
        Ok(heads.map(head).collect())
    }

    /// Makes every head of every sequence a layer of its own.
    fn take_apart(&mut self) {
        let Some(store) = self.store.take() else {
            return;
        };
        let Some(rules) = self.head_rules() else {
            return;
        };
        self.states.settle();
        let LayerShape {
            batch, kv_heads, ..
        } = self.shape;
        let shape = self.shape.of_head();
        for row in 0..batch {
            for head in 0..kv_heads {
                self.heads.push(Self {
                    part: Some(head),
                    shape,
                    rules: Some(rules.clone()),
                    facts: self.head_facts(head),
                    spans: self.spans.clone(),
                    store: Some(store.of_head(row, head)),
                    queries: self.queries.of_head(row, head, kv_heads),
                    states: self.states.of_head(row, head, kv_heads),
                    needs: self.needs,
                    expected: self.expected,
                    softcap: self.softcap,
                    seen: self.seen,
                    shift: self.shift,
                    ..Self::new(self.layer, shape, &self.device)
                });
            }
        }
        self.heads_agree = false;
        self.queries = Default::default();
        self.states = Default::default();
        self.order.reset();
    }

    /// What the heads keep from now on while decoding: what they keep after this division and at least `floor` entries, if it
    /// was made under the decode budget.
    fn fix_budgets(&mut self, phase: Phase, slots: &[Vec<usize>], floor: usize) {
        let rules = self.rules.as_ref();
        let divides = rules
            .and_then(|rules| rules.decode.as_ref())
            .is_some_and(Eviction::divides);
        let holds =
            divides && (phase == Phase::Decode || rules.is_some_and(LayerEvictions::same_division));
        if !holds {
            return;
        }
        for (part, slots) in self.heads.iter_mut().zip(slots) {
            if let Some(decode) = part.rules.as_mut().and_then(|rules| rules.decode.as_mut()) {
                decode.budget = slots.len().max(floor);
            }
        }
    }

    /// See [`LayerCache::positions`].
    pub(super) fn positions_of_heads(&self) -> Option<Tensor<3, Int>> {
        let most = self.len();
        let parts = self.heads.iter().map(|part| {
            let missing = [1, 1, most.saturating_sub(part.len())];
            let free = Tensor::<3, Int>::full(missing, -1, &self.device);
            Some(match missing[2] {
                0 => part.positions()?,
                _ => Tensor::cat(vec![part.positions()?, free], 2),
            })
        });
        let parts: Option<Vec<Tensor<3, Int>>> = parts.collect();
        let rows = parts?;
        let rows = rows.chunks(self.shape.kv_heads.max(1));
        Some(Tensor::cat(
            rows.map(|heads| Tensor::cat(heads.to_vec(), 1)).collect(),
            0,
        ))
    }

    /// See [`LayerCache::keys`].
    pub(super) fn keys_of_heads(&self) -> Option<Tensor<4>> {
        let most = self.len();
        let parts = self.heads.iter().map(|part| {
            let keys = part.keys()?;
            let missing = most.saturating_sub(part.len());
            let free = [1, 1, missing, self.shape.head_dim];
            Some(match missing {
                0 => keys,
                _ => {
                    let free = Tensor::zeros(free, (&self.device, keys.dtype()));
                    Tensor::cat(vec![keys, free], 2)
                }
            })
        });
        let parts: Option<Vec<Tensor<4>>> = parts.collect();
        Some(side_by_side(parts?, self.shape.kv_heads))
    }

    /// See [`LayerCache::attention`].
    pub(super) fn attention_of_heads(&self, q: &Tensor<4>) -> Option<Tensor<5>> {
        let (most, group) = (self.len(), self.shape.group());
        let parts = self.heads.iter().enumerate().map(|(index, part)| {
            let (row, head) = place(index, self.shape.kv_heads);
            let q = q.clone().narrow(0, row, 1);
            let attention = part.attention(q.narrow(1, head.saturating_mul(group), group))?;
            let mut missing = attention.dims();
            missing[4] = most.saturating_sub(missing[4]);
            Some(match missing[4] {
                0 => attention,
                _ => Tensor::cat(vec![attention, Tensor::zeros(missing, &self.device)], 4),
            })
        });
        let parts: Option<Vec<Tensor<5>>> = parts.collect();
        Some(side_by_side(parts?, self.shape.kv_heads))
    }
}

/// The row and the KV head of a part.
fn place(index: usize, kv_heads: usize) -> (usize, usize) {
    let row = index.checked_div(kv_heads).unwrap_or(0);
    (row, index.checked_rem(kv_heads).unwrap_or(0))
}

/// Tensors of single heads `[1, heads, ..]` as one of all sequences, `[batch, all heads, ..]`.
fn side_by_side<const D: usize>(parts: Vec<Tensor<D>>, kv_heads: usize) -> Tensor<D> {
    let rows = parts.chunks(kv_heads.max(1));
    let rows: Vec<Tensor<D>> = rows.map(|heads| Tensor::cat(heads.to_vec(), 1)).collect();
    Tensor::cat(rows, 0)
}
