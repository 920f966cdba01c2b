//! What the definition of a policy sees of one KV head of the naive cache.

use super::Reference;
use crate::cache::Spans;
use crate::facts::RopeFacts;
use crate::phase::Phase;
use crate::policy::Protect;
use crate::testing::inputs::{DIM, GROUP, KV_HEADS, output_weight, rope};
use crate::testing::maths::{dot, mean, softmax};

/// A policy's definition in f64 for one KV head, written for clarity instead of speed. A policy returns it from
/// [`Policy::oracle`](crate::Policy::oracle).
pub trait Oracle {
    /// The scores of all entries, in order of position. Entries with higher scores stay.
    fn scores(&self, head: &Head<'_>) -> Vec<f64>;

    /// All entries after the evicted ones have been merged into those that stay; the default merges nothing. `kept` are the
    /// indices of the entries that stay, ascending. `memory` keeps numbers between the calls for one head and policy; it is
    /// empty at first.
    fn merge(&self, head: &Head<'_>, kept: &[usize], memory: &mut Vec<f64>) -> Vec<Entry> {
        let _ = (kept, memory);
        head.entries().to_vec()
    }
}

/// An entry of the naive cache.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// The position of its token in the sequence, from 0.
    pub position: usize,
    /// Its key, `[DIM]`, with what was merged into it.
    pub key: Vec<f64>,
    /// Its value, `[DIM]`, with what was merged into it.
    pub value: Vec<f64>,
    /// Its value as it was appended, `[DIM]`.
    pub arrived: Vec<f64>,
    /// The attention from all queries so far, mean over the query group.
    pub sum: f64,
    /// The most attention from all queries of the prompts' repetitions, of any head of the query group.
    pub repeated: f64,
    /// For each query since it was appended, the number of query heads of the group that paid it at least the average of their
    /// attention.
    pub hits: Vec<usize>,
}

/// One KV head at the moment of an eviction.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    pub(super) reference: &'a Reference,
    pub(super) head: usize,
    pub(super) phase: Phase,
    pub(super) budget: usize,
}

impl<'a> Head<'a> {
    /// The entries, in order of position.
    pub fn entries(&self) -> &'a [Entry] {
        &self.reference.heads[self.head]
    }

    /// The index of the layer.
    pub fn layer(&self) -> usize {
        self.reference.layer
    }

    /// The index of the KV head.
    pub fn head(&self) -> usize {
        self.head
    }

    /// The phase whose rule evicts.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How many entries will stay.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// The same head under another budget, for a policy that is a part of another.
    #[must_use]
    pub fn with_budget(self, budget: usize) -> Self {
        Self { budget, ..self }
    }

    /// How many tokens the layer has been given.
    pub fn seen(&self) -> usize {
        self.reference.queries.len()
    }

    /// The positions that the caller protects.
    pub fn spans(&self) -> &'a Spans {
        &self.reference.spans
    }

    /// Whether all KV heads hold the same positions, because every policy so far scored them alike.
    pub fn heads_agree(&self) -> bool {
        self.reference.agree
    }

    /// All KV heads of the layer.
    pub fn all(self) -> impl Iterator<Item = Self> {
        (0..KV_HEADS).map(move |head| Self { head, ..self })
    }

    /// The rotary embedding of the synthetic model.
    pub fn rope(&self) -> RopeFacts {
        rope()
    }

    /// The columns of the output projection's weight for query head `member` of the group, `[HIDDEN][DIM]`.
    pub fn output_weight(&self, member: usize) -> Vec<Vec<f64>> {
        let first = (self.head * GROUP + member) * DIM;
        let rows = output_weight(self.layer()).into_iter();
        rows.map(|row| row[first..first + DIM].to_vec()).collect()
    }

    /// The query of head `member` of the group at a position, `[DIM]`, after rotary embedding.
    pub fn query(&self, member: usize, position: usize) -> &'a [f64] {
        &self.reference.queries[position][self.head * GROUP + member]
    }

    /// Whether the next token sees an entry.
    pub fn sees(&self, entry: &Entry) -> bool {
        self.reference.sees(self.seen(), entry.position)
    }

    /// The attention of this query over the entries, in order of position; 0 for entries at later positions and for those that
    /// have left its window.
    pub fn attention(&self, member: usize, position: usize) -> Vec<f64> {
        let query = self.query(member, position);
        let logit = |entry: &Entry| match self.reference.sees(position, entry.position) {
            false => f64::NEG_INFINITY,
            true => {
                let logit = dot(query, &entry.key) / (DIM as f64).sqrt();
                let cap = |cap: f64| cap * (logit / cap).tanh();
                self.reference.windows.softcap.map_or(logit, cap)
            }
        };
        let logits: Vec<f64> = self.entries().iter().map(logit).collect();
        match logits.iter().all(|&logit| logit == f64::NEG_INFINITY) {
            true => vec![0.0; logits.len()],
            false => softmax(&logits),
        }
    }

    /// The attention of the last `window` queries of head `member` of the group, or of all if there are fewer: a row each.
    pub fn window(&self, member: usize, window: usize) -> Vec<Vec<f64>> {
        let seen = self.seen();
        (seen.saturating_sub(window)..seen)
            .map(|position| self.attention(member, position))
            .collect()
    }

    /// The mean of `of(member)` over the query heads of the group, element by element.
    pub fn group_mean(&self, of: impl Fn(usize) -> Vec<f64>) -> Vec<f64> {
        mean(&(0..GROUP).map(of).collect::<Vec<_>>())
    }

    /// The indices of the `count` best entries, leaving out those of `taken`: first the protected ones, then those with the
    /// highest scores; of equal scores the later position comes first. Entries that the next token does not see come last.
    pub fn best(
        &self,
        scores: &[f64],
        protect: Protect,
        spans: &Spans,
        taken: &[usize],
        count: usize,
    ) -> Vec<usize> {
        let (entries, seen) = (self.entries(), self.seen());
        let sees = |p: usize| self.reference.sees(seen, p);
        let safe = |p: usize| {
            p < protect.sinks || p.saturating_add(protect.recent) >= seen || spans.contains(p)
        };
        let free = (0..entries.len()).filter(|j| !taken.contains(j));
        let mut ranked: Vec<usize> = free.collect();
        let key = |j: usize| {
            let position = entries[j].position;
            ((sees(position), safe(position)), scores[j], position)
        };
        ranked.sort_by(|&a, &b| {
            let (a, b) = (key(a), key(b));
            match sees(a.2) || sees(b.2) {
                true => b.0.cmp(&a.0).then(b.1.total_cmp(&a.1)).then(b.2.cmp(&a.2)),
                false => b.2.cmp(&a.2),
            }
        });
        ranked.truncate(count);
        ranked
    }
}
