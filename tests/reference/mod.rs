//! A naive cache in f64 on the host, sorted by position, written from the policies' definitions alone: what every
//! backend's cache is compared with.

pub mod harness;
mod kept;
mod merges;
mod scores;

use polykv::{Phase, Plan, Policy};
use std::collections::BTreeMap;

/// Shape of the synthetic layers.
pub const HEADS: usize = 6;
pub const KV_HEADS: usize = 2;
pub const GROUP: usize = HEADS / KV_HEADS;
pub const DIM: usize = 16;

/// Vectors of one token: `[heads][DIM]`.
pub type Token = Vec<Vec<f64>>;

/// Seeded numbers around zero with a few large ones, so that attention is neither flat nor one-hot.
pub fn tokens(count: usize, heads: usize, seed: u64, scale: f64) -> Vec<Token> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0
    };
    let mut vector = || (0..DIM).map(|_| next() * scale).collect();
    (0..count)
        .map(|_| (0..heads).map(|_| vector()).collect())
        .collect()
}

#[derive(Clone)]
struct Entry {
    position: usize,
    key: Vec<f64>,
    value: Vec<f64>,
    /// Attention received so far, mean over the group.
    sum: f64,
    /// For each query since it arrived, how many query heads gave it an even part of their attention or more.
    hits: Vec<usize>,
    /// Norm of what its value becomes after the output projection, mean over the group, as it arrived.
    output_norm: f64,
}

/// One layer with batch 1.
pub struct Reference {
    heads: Vec<Vec<Entry>>,
    queries: Vec<Token>,
    layer: usize,
    budgets: BTreeMap<Phase, Option<usize>>,
    policies: BTreeMap<Phase, std::sync::Arc<dyn Policy>>,
    agree: bool,
    /// Of d2o, per phase that remembers it and KV head.
    thresholds: BTreeMap<(Phase, usize), f64>,
}

impl Reference {
    pub fn new(plan: &Plan, layer: usize, prompt: usize) -> Self {
        let cost = polykv_core::budget::EntryCost {
            layers: plan.layers,
            bytes: 1,
        };
        let rules = plan
            .resolve("test", prompt, cost)
            .unwrap()
            .layers
            .remove(layer);
        let phases = [
            (Phase::Prefill, rules.prefill),
            (Phase::Decode, rules.decode),
        ];
        Self {
            heads: vec![Vec::new(); KV_HEADS],
            queries: Vec::new(),
            layer,
            budgets: phases
                .iter()
                .map(|(phase, rule)| (*phase, rule.budget))
                .collect(),
            policies: phases
                .into_iter()
                .map(|(phase, rule)| (phase, rule.policy))
                .collect(),
            agree: true,
            thresholds: BTreeMap::new(),
        }
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
                sum: 0.0,
                hits: Vec::new(),
                output_norm: scores::output_norm(self.layer, head, &v[head]),
            });
            let rows: Vec<Vec<f64>> = (0..GROUP).map(|g| self.row(head, g, position)).collect();
            let entries = &mut self.heads[head];
            let even = 1.0 / entries.len() as f64;
            for (j, entry) in entries.iter_mut().enumerate() {
                entry.sum += rows.iter().map(|row| row[j]).sum::<f64>() / GROUP as f64;
                entry
                    .hits
                    .push(rows.iter().filter(|row| row[j] >= even).count());
            }
            for row in &rows {
                let mut out = vec![0.0; DIM];
                for (entry, p) in entries.iter().zip(row) {
                    for (o, v) in out.iter_mut().zip(&entry.value) {
                        *o += p * v;
                    }
                }
                output.push(out);
            }
        }
        output
    }

    /// Attention of the query at `position` over the entries that are there, `0` for later ones.
    fn row(&self, head: usize, g: usize, position: usize) -> Vec<f64> {
        let q = &self.queries[position][head * GROUP + g];
        let scores: Vec<f64> = self.heads[head]
            .iter()
            .map(|entry| {
                let dot: f64 = q.iter().zip(&entry.key).map(|(a, b)| a * b).sum();
                if entry.position > position {
                    f64::NEG_INFINITY
                } else {
                    dot / (DIM as f64).sqrt()
                }
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let exp: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let total: f64 = exp.iter().sum();
        exp.iter().map(|e| e / total).collect()
    }

    /// Evicts down to the phase's budget, if there is one and it is exceeded.
    pub fn evict(&mut self, phase: Phase) {
        let Some(budget) = self.budgets[&phase] else {
            return;
        };
        if self.heads[0].len() <= budget {
            return;
        }
        let policy = self.policies[&phase].clone();
        let protect = policy.protect(budget);
        let seen = self.queries.len();
        let scores: Vec<Vec<f64>> = (0..KV_HEADS)
            .map(|head| self.scores(&*policy, head, phase, budget))
            .collect();
        for (head, scores) in scores.into_iter().enumerate() {
            let safe = |p: usize| p < protect.sinks || p + protect.recent >= seen;
            let kept = self.top(head, &scores, &safe, &[], budget);
            self.merge(phase, head, &kept);
            let entries = std::mem::take(&mut self.heads[head]);
            let kept = entries
                .into_iter()
                .enumerate()
                .filter(|(j, _)| kept.contains(j));
            self.heads[head] = kept.map(|(_, entry)| entry).collect();
        }
        self.agree &= policy.same_for_all_heads();
    }

    /// The best `count` entries, those of safe positions first, none of `taken`; of equal scores the later.
    fn top(
        &self,
        head: usize,
        scores: &[f64],
        safe: &dyn Fn(usize) -> bool,
        taken: &[usize],
        count: usize,
    ) -> Vec<usize> {
        let entries = &self.heads[head];
        let free = (0..entries.len()).filter(|j| !taken.contains(j));
        let mut ranked: Vec<usize> = free.collect();
        let key = |j: usize| (safe(entries[j].position), scores[j], entries[j].position);
        ranked.sort_by(|&a, &b| {
            let (a, b) = (key(a), key(b));
            b.0.cmp(&a.0).then(b.1.total_cmp(&a.1)).then(b.2.cmp(&a.2))
        });
        ranked.truncate(count);
        ranked
    }

    /// Kept positions per KV head, ascending.
    pub fn positions(&self) -> Vec<Vec<usize>> {
        self.heads
            .iter()
            .map(|head| head.iter().map(|e| e.position).collect())
            .collect()
    }
}
