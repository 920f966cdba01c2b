//! The policies' scores, from their definitions.

use super::{DIM, GROUP, HEADS, KV_HEADS, Reference};
use polykv::policy::{self, Params};
use polykv::{Phase, Policy};
use std::sync::Arc;

/// What the synthetic model tells of itself: radians per position of each pair, the factor of rotated vectors, and the
/// size of its hidden states.
pub const FREQUENCIES: [f64; DIM / 2] = [1.0, 0.5, 0.2, 0.1, 0.03, 0.01, 1e-3, 1e-9];
pub const MAGNITUDE: f64 = 1.25;
pub const HIDDEN: usize = 10;

/// The output projection of a layer, `[HIDDEN][HEADS * DIM]`.
pub fn output_weight(layer: usize) -> Vec<Vec<f64>> {
    let rows = super::tokens(HIDDEN, HEADS, 77 + layer as u64, 1.0);
    rows.into_iter().map(|row| row.concat()).collect()
}

/// ‖W v‖₁ of a value, mean over the query heads of its group.
pub(super) fn output_norm(layer: usize, head: usize, value: &[f64]) -> f64 {
    let weight = output_weight(layer);
    let of_query_head = |h: usize| {
        let rows = weight
            .iter()
            .map(|row| dot(&row[h * DIM..(h + 1) * DIM], value).abs());
        rows.sum::<f64>()
    };
    (head * GROUP..(head + 1) * GROUP)
        .map(of_query_head)
        .sum::<f64>()
        / GROUP as f64
}

impl Reference {
    /// Of all entries, in order of position; higher stays.
    pub(super) fn scores(
        &self,
        policy: &dyn Policy,
        head: usize,
        phase: Phase,
        budget: usize,
    ) -> Vec<f64> {
        let params = policy.params();
        let number = |name: &str| params[name].as_f64().unwrap();
        let seen = self.queries.len();
        let entries = &self.heads[head];
        match policy.name() {
            "streaming-llm" | "cam" => entries.iter().map(|e| e.position as f64).collect(),
            "h2o" => entries
                .iter()
                .map(|e| match params["normalize"].as_bool().unwrap() {
                    true => e.sum / (seen - e.position) as f64,
                    false => e.sum,
                })
                .collect(),
            "d2o" => entries.iter().map(|e| e.sum).collect(),
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
            "snapkv" | "pyramidkv" => {
                let window = (number("window") as usize).min(seen);
                let sums = self.group_mean(|g| {
                    let rows: Vec<_> = (seen - window..seen)
                        .map(|p| self.row(head, g, p))
                        .collect();
                    mean(&rows).iter().map(|x| x * window as f64).collect()
                });
                let max = params["pool"].as_str() == Some("max");
                pooled(sums, window, number("kernel") as usize, max)
            }
            "cake" => {
                let window = (number("window") as usize).min(seen);
                let scores = self.group_mean(|g| match phase {
                    Phase::Decode => self.row(head, g, seen - 1),
                    Phase::Prefill => {
                        let rows: Vec<_> = (seen - window..seen)
                            .map(|p| self.row(head, g, p))
                            .collect();
                        let means = mean(&rows);
                        let spread = |j: usize| {
                            let squares = rows.iter().map(|row| (row[j] - means[j]).powi(2));
                            squares.sum::<f64>() / (window.max(2) - 1) as f64
                        };
                        let each = (0..means.len()).map(|j| means[j] + number("gamma") * spread(j));
                        each.collect()
                    }
                });
                pooled(scores, window, number("kernel") as usize, false)
            }
            "scissorhands" => {
                let last = |hits: &[usize]| {
                    let from = hits.len().saturating_sub(number("history") as usize);
                    hits[from..].iter().sum::<usize>() as f64
                };
                entries
                    .iter()
                    .map(|e| last(&e.hits) / GROUP as f64)
                    .collect()
            }
            "expected-attention" => {
                let sinks = number("sinks") as usize;
                let rotation = mean_rotation(seen, number("future") as usize);
                let attention = self.group_mean(|g| {
                    let queries: Vec<Vec<f64>> = (sinks..seen)
                        .map(|p| unrotated(&self.queries[p][head * GROUP + g], p))
                        .collect();
                    let logits = entries.iter().map(|e| match e.position < sinks {
                        true => f64::NEG_INFINITY,
                        false => expected_logit(&queries, &rotation, &e.key),
                    });
                    softmax(&logits.collect::<Vec<_>>())
                });
                let each = attention.iter().zip(entries);
                each.map(|(a, e)| (a + number("epsilon")) * norm(&e.value))
                    .collect()
            }
            "lagkv" => {
                let keys: Vec<_> = entries.iter().map(|e| &*e.key).collect();
                let values: Vec<_> = entries.iter().map(|e| &*e.value).collect();
                lagkv(
                    &keys,
                    &values,
                    number("lag") as usize,
                    number("sinks") as usize,
                )
            }
            "criticalkv" => {
                let base = member(&params["base"]);
                let scores = self.scores(&*base, head, phase, budget);
                let weighted: Vec<f64> = (0..scores.len())
                    .map(|j| (scores[j] + number("epsilon")) * entries[j].output_norm)
                    .collect();
                let first = ((budget as f64 * number("first")) as usize).max(1);
                let protect = base.protect(budget);
                let safe = |p: usize| p < protect.sinks || p + protect.recent >= seen;
                staged(vec![self.top(head, &scores, &safe, &[], first)], weighted)
            }
            "blend" => {
                let list = params["policies"].as_sequence().unwrap();
                let shares: Vec<f64> = list.iter().map(|v| v["share"].as_f64().unwrap()).collect();
                let parts = polykv::allocate::largest_remainder(budget, &shares);
                let mut stages: Vec<Vec<usize>> = Vec::new();
                for (value, part) in list.iter().zip(parts) {
                    let own = member(value);
                    let scores = self.scores(&*own, head, phase, part);
                    if stages.len() + 1 == list.len() {
                        return staged(stages, scores);
                    }
                    let protect = own.protect(part);
                    let safe = |p: usize| p < protect.sinks || p + protect.recent >= seen;
                    let taken = stages.concat();
                    stages.push(self.top(head, &scores, &safe, &taken, part));
                }
                unreachable!()
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

    /// The mean over a head's query group.
    pub(super) fn group_mean(&self, of: impl Fn(usize) -> Vec<f64>) -> Vec<f64> {
        mean(&(0..GROUP).map(of).collect::<Vec<_>>())
    }
}

/// A policy as another one's parameters state it.
fn member(value: &serde_yaml_ng::Value) -> Arc<dyn Policy> {
    let mut params: Params = serde_yaml_ng::from_value(value.clone()).unwrap();
    params.remove("share");
    let name = params.remove("policy").unwrap();
    policy::build("test", name.as_str().unwrap(), &params).unwrap()
}

/// Entries of earlier stages above those of later ones, these above the rest.
fn staged(stages: Vec<Vec<usize>>, rest: Vec<f64>) -> Vec<f64> {
    let mut scores = rest;
    let count = stages.len();
    for (stage, taken) in stages.into_iter().enumerate() {
        for j in taken {
            scores[j] = 1e30 * (count - stage) as f64;
        }
    }
    scores
}

/// Pools over neighbours, the window at the end left out and left alone.
fn pooled(scores: Vec<f64>, window: usize, kernel: usize, max: bool) -> Vec<f64> {
    let old = scores.len().saturating_sub(window);
    let reach = kernel / 2;
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

/// Multiplies each pair of elements, as a complex number, by one of `turns`.
fn turned(x: &[f64], turns: &[(f64, f64)]) -> Vec<f64> {
    let (re, im) = x.split_at(DIM / 2);
    let pairs = || re.iter().zip(im).zip(turns);
    let first = pairs().map(|((a, b), (c, s))| a * c - b * s);
    let second = pairs().map(|((a, b), (c, s))| a * s + b * c);
    first.chain(second).collect()
}

/// A query before rotary embedding.
fn unrotated(q: &[f64], position: usize) -> Vec<f64> {
    let turn = |w: f64| {
        let angle = w * position as f64;
        (angle.cos() / MAGNITUDE, -angle.sin() / MAGNITUDE)
    };
    turned(q, &FREQUENCIES.map(turn))
}

/// The mean rotation over positions, one complex number per pair.
fn mean_rotation(first: usize, count: usize) -> Vec<(f64, f64)> {
    let mean = |w: f64, f: fn(f64) -> f64| {
        let turns = (first..first + count).map(|p| f(w * p as f64));
        turns.sum::<f64>() / count as f64 * MAGNITUDE
    };
    let each = FREQUENCIES.iter();
    each.map(|&w| (mean(w, f64::cos), mean(w, f64::sin)))
        .collect()
}

/// μ·k/√d + kᵀΣk/(2d) with the mean and covariance of rotated queries.
fn expected_logit(queries: &[Vec<f64>], rotation: &[(f64, f64)], key: &[f64]) -> f64 {
    if queries.is_empty() {
        return 0.0;
    }
    // Along the key, both are the mean and the variance of the products.
    let products: Vec<f64> = queries
        .iter()
        .map(|q| dot(&turned(q, rotation), key))
        .collect();
    let mean = products.iter().sum::<f64>() / products.len() as f64;
    let squares = products.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
    let variance = squares / products.len() as f64;
    mean / (DIM as f64).sqrt() + variance / (2.0 * DIM as f64)
}

/// Ranks within partitions of what differs from the next partition.
fn lagkv(keys: &[&[f64]], values: &[&[f64]], lag: usize, sinks: usize) -> Vec<f64> {
    let n = keys.len();
    let sinks = sinks.min(n);
    let partitions = (n - sinks) / lag;
    if partitions < 2 {
        return (0..n)
            .map(|j| {
                if j < sinks {
                    1.0
                } else {
                    (j - sinks) as f64 / (n - sinks) as f64
                }
            })
            .collect();
    }
    let mut scores = vec![1.0; n];
    for partition in 0..partitions - 1 {
        let own = sinks + partition * lag..sinks + (partition + 1) * lag;
        let next = own.end..own.end + lag;
        let spread = |x: &[&[f64]]| {
            let deviations = own.clone().map(|j| {
                let scaled: Vec<f64> = (0..DIM)
                    .map(|c| {
                        let channel = || next.clone().map(|i| x[i][c]);
                        let low = channel().fold(f64::INFINITY, f64::min);
                        let high = channel().fold(f64::NEG_INFINITY, f64::max);
                        (x[j][c] - low) / (high - low)
                    })
                    .collect();
                let mean = scaled.iter().sum::<f64>() / DIM as f64;
                let squares = scaled.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
                (squares / (DIM - 1) as f64).sqrt()
            });
            softmax(&deviations.collect::<Vec<_>>())
        };
        let (from_keys, from_values) = (spread(keys), spread(values));
        let total = |i: usize| from_keys[i] + from_values[i];
        for i in 0..lag {
            let below = (0..lag).filter(|&o| total(o) < total(i) || total(o) == total(i) && o < i);
            scores[own.start + i] = below.count() as f64 / lag as f64;
        }
    }
    scores
}

pub(super) fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = x.iter().map(|x| (x - max).exp()).collect();
    let total: f64 = exp.iter().sum();
    exp.iter().map(|e| e / total).collect()
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(super) fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

pub(super) fn mean(rows: &[Vec<f64>]) -> Vec<f64> {
    (0..rows[0].len())
        .map(|j| rows.iter().map(|row| row[j]).sum::<f64>() / rows.len() as f64)
        .collect()
}

/// SplitMix64 over the words, the top 24 bits.
pub(super) fn hash(seed: u64, layer: usize, head: usize, position: usize) -> f64 {
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
