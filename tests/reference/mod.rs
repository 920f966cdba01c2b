//! A naive cache in f64 on the host, sorted by position, written from the policies' definitions alone: what every
//! backend's cache is compared with.

pub mod harness;

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
}

/// One layer with batch 1.
pub struct Reference {
    heads: Vec<Vec<Entry>>,
    queries: Vec<Token>,
    layer: usize,
    budgets: BTreeMap<Phase, Option<usize>>,
    policies: BTreeMap<Phase, std::sync::Arc<dyn Policy>>,
    agree: bool,
}

impl Reference {
    pub fn new(plan: &Plan, layer: usize, prompt: usize) -> Self {
        let cost = polykv::budget::EntryCost {
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
            });
            for g in 0..GROUP {
                let row = self.row(head, g, position);
                let entries = &mut self.heads[head];
                let mut out = vec![0.0; DIM];
                for (entry, p) in entries.iter_mut().zip(&row) {
                    entry.sum += p / GROUP as f64;
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
            .map(|head| self.scores(&*policy, head))
            .collect();
        for (head, scores) in scores.into_iter().enumerate() {
            let mut ranked: Vec<(bool, f64, Entry)> = self.heads[head]
                .drain(..)
                .zip(scores)
                .map(|(e, s)| {
                    (
                        e.position < protect.sinks || e.position + protect.recent >= seen,
                        s,
                        e,
                    )
                })
                .collect();
            ranked.sort_by(|a, b| {
                b.0.cmp(&a.0)
                    .then(b.1.total_cmp(&a.1))
                    .then(b.2.position.cmp(&a.2.position))
            });
            ranked.truncate(budget);
            ranked.sort_by_key(|(_, _, entry)| entry.position);
            self.heads[head] = ranked.into_iter().map(|(_, _, entry)| entry).collect();
        }
        self.agree &= matches!(policy.name(), "tova" | "streaming-llm");
    }

    fn scores(&self, policy: &dyn Policy, head: usize) -> Vec<f64> {
        let params = policy.params();
        let number = |name: &str| params[name].as_f64().unwrap();
        let seen = self.queries.len();
        let entries = &self.heads[head];
        match policy.name() {
            "streaming-llm" => entries.iter().map(|e| e.position as f64).collect(),
            "h2o" => entries
                .iter()
                .map(|e| match params["normalize"].as_bool().unwrap() {
                    true => e.sum / (seen - e.position) as f64,
                    false => e.sum,
                })
                .collect(),
            "tova" => {
                let over = if self.agree {
                    0..KV_HEADS
                } else {
                    head..head + 1
                };
                let rows: Vec<Vec<f64>> = over
                    .flat_map(|h| (0..GROUP).map(move |g| (h, g)))
                    .map(|(h, g)| self.row(h, g, seen - 1))
                    .collect();
                mean(&rows)
            }
            "snapkv" => {
                let window = (number("window") as usize).min(seen);
                let sums: Vec<Vec<f64>> = (0..GROUP)
                    .map(|g| {
                        let rows: Vec<Vec<f64>> = (seen - window..seen)
                            .map(|p| self.row(head, g, p))
                            .collect();
                        mean(&rows).iter().map(|x| x * window as f64).collect()
                    })
                    .collect();
                let scores = mean(&sums);
                let old = scores.len().saturating_sub(window);
                let reach = number("kernel") as usize / 2;
                let max = params["pool"].as_str() == Some("max");
                (0..scores.len())
                    .map(|j| {
                        if j >= old {
                            return scores[j];
                        }
                        let near = &scores[j.saturating_sub(reach)..(j + reach + 1).min(old)];
                        match max {
                            true => near.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                            false => near.iter().sum::<f64>() / (2 * reach + 1) as f64,
                        }
                    })
                    .collect()
            }
            "knorm" => entries.iter().map(|e| -norm(&e.key)).collect(),
            "keydiff" => {
                let units: Vec<Vec<f64>> = entries
                    .iter()
                    .map(|e| e.key.iter().map(|x| x / norm(&e.key)).collect())
                    .collect();
                let anchor = mean(&units);
                let length = norm(&anchor);
                units
                    .iter()
                    .map(|unit| -unit.iter().zip(&anchor).map(|(a, b)| a * b).sum::<f64>() / length)
                    .collect()
            }
            "random" => entries
                .iter()
                .map(|e| hash(number("seed") as u64, self.layer, head, e.position))
                .collect(),
            other => panic!("no reference for policy {other}: write one"),
        }
    }

    /// Kept positions per KV head, ascending.
    pub fn positions(&self) -> Vec<Vec<usize>> {
        self.heads
            .iter()
            .map(|head| head.iter().map(|e| e.position).collect())
            .collect()
    }
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn mean(rows: &[Vec<f64>]) -> Vec<f64> {
    (0..rows[0].len())
        .map(|j| rows.iter().map(|row| row[j]).sum::<f64>() / rows.len() as f64)
        .collect()
}

/// SplitMix64 over the words, the top 24 bits.
fn hash(seed: u64, layer: usize, head: usize, position: usize) -> f64 {
    fn mix(x: u64) -> u64 {
        let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }
    let x = [layer, head, position]
        .iter()
        .fold(seed, |x, &w| mix(x ^ mix(w as u64)));
    (x >> 40) as f64 / (1u64 << 24) as f64
}
