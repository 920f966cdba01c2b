//! Inputs of the self-test and the expected results, in plain f64 loops.

use super::on;
use burn::tensor::{Device, Int, Tensor, TensorData};

/// Seeded numbers: queries of 4 heads over 2 KV heads of 32, and a weight.
#[derive(Clone)]
pub struct Inputs {
    q: Vec<f32>,
    pub(super) k: Vec<f32>,
    v: Vec<f32>,
    x: Vec<f32>,
    weight: Vec<f32>,
    scores: Vec<f32>,
}

/// Attention in f64.
pub struct Attended {
    /// `[heads][tokens][dim]`
    pub output: Vec<f64>,
    /// `[kv_heads][tokens]`
    pub column_sums: Vec<f64>,
    /// `[heads][dim]` of the last query
    pub last_output: Vec<f64>,
    /// `[heads][tokens]` of the last query
    pub last_row: Vec<f64>,
    /// `[kv_heads][tokens]`: sums and variances over the last queries, means over the group
    pub window: [Vec<f64>; 2],
}

impl Inputs {
    const HEADS: usize = 4;
    pub const KV_HEADS: usize = 2;
    pub const GROUP: usize = Self::HEADS / Self::KV_HEADS;
    pub const DIM: usize = 32;
    /// The number of tokens: odd, and more than a tile of the kernels.
    pub const TOKENS: usize = 71;
    pub const WIDTH: usize = 96;
    const OUTPUTS: usize = 33;
    pub const BUDGET: usize = 20;
    pub const WINDOW: usize = 5;
    /// How many kept entries an evicted one is spread over.
    pub const RECEIVERS: usize = 3;

    pub fn new() -> Self {
        let mut state = 1u64;
        // Uniform from -1 to 1, with two decimals: every storage format holds them well.
        let mut numbers = |count: usize| {
            let mut next = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                ((state >> 33) % 201) as f32 / 100.0 - 1.0
            };
            (0..count).map(|_| next()).collect::<Vec<f32>>()
        };
        let keys = Self::KV_HEADS * Self::TOKENS * Self::DIM;
        Self {
            q: numbers(Self::HEADS * Self::TOKENS * Self::DIM),
            k: numbers(keys),
            v: numbers(keys),
            x: numbers(Self::WIDTH),
            weight: numbers(Self::OUTPUTS * Self::WIDTH),
            scores: numbers(Self::KV_HEADS * Self::TOKENS),
        }
    }

    pub fn attention(&self, device: &Device) -> [Tensor<4>; 3] {
        let heads = |values: &[f32], heads| {
            on(values.to_vec(), [1, heads, Self::TOKENS, Self::DIM], device)
        };
        [
            heads(&self.q, Self::HEADS),
            heads(&self.k, Self::KV_HEADS),
            heads(&self.v, Self::KV_HEADS),
        ]
    }

    pub fn linear(&self, device: &Device) -> (Tensor<2>, Tensor<2>) {
        let weight = on(self.weight.clone(), [Self::OUTPUTS, Self::WIDTH], device);
        (on(self.x.clone(), [1, Self::WIDTH], device), weight)
    }

    /// `[1, kv_heads, tokens]`
    pub fn scores(&self, device: &Device) -> Tensor<3> {
        on(
            self.scores.clone(),
            [1, Self::KV_HEADS, Self::TOKENS],
            device,
        )
    }

    /// Ascending positions for every KV head.
    pub fn positions(&self, device: &Device) -> Tensor<3, Int> {
        let tokens = 0..Self::TOKENS as i64;
        let all: Vec<i64> = (0..Self::KV_HEADS).flat_map(|_| tokens.clone()).collect();
        let data = TensorData::new(all, [1, Self::KV_HEADS, Self::TOKENS]);
        Tensor::from_data(data, device)
    }

    /// Cosines and sines, `[1, 1, tokens, dim / 2]`.
    pub fn rotations(&self, device: &Device) -> [Tensor<4>; 2] {
        let dims = [1, 1, Self::TOKENS, Self::DIM / 2];
        let angles =
            || (0..Self::TOKENS).flat_map(|t| (0..Self::DIM / 2).map(move |i| angle(t, i)));
        [
            on(angles().map(|a| a.cos() as f32).collect(), dims, device),
            on(angles().map(|a| a.sin() as f32).collect(), dims, device),
        ]
    }

    /// The same with other keys and values, `[kv_heads][tokens][dim]` each.
    pub fn with_entries(&self, k: Vec<f32>, v: Vec<f32>) -> Self {
        Self {
            k,
            v,
            ..self.clone()
        }
    }

    /// The largest difference of a key or value from those of other inputs.
    pub fn farthest(&self, other: &Self) -> f64 {
        let pairs = self.k.iter().zip(&other.k);
        let pairs = pairs.chain(self.v.iter().zip(&other.v));
        pairs.fold(0.0, |most, (a, b)| {
            let apart = f64::from((a - b).abs());
            if apart > most || apart.is_nan() {
                apart
            } else {
                most
            }
        })
    }

    pub fn attended(&self) -> Attended {
        let group = Self::GROUP;
        let mut found = Attended {
            output: Vec::new(),
            column_sums: vec![0.0; Self::KV_HEADS * Self::TOKENS],
            last_output: Vec::new(),
            last_row: Vec::new(),
            window: [(); 2].map(|()| vec![0.0; Self::KV_HEADS * Self::TOKENS]),
        };
        for head in 0..Self::HEADS {
            let kv = head / group;
            let late = Self::TOKENS - Self::WINDOW..Self::TOKENS;
            let rows: Vec<Vec<f64>> = late.map(|t| self.row(head, kv, t)).collect();
            for j in 0..Self::TOKENS {
                let column = || rows.iter().map(|row| row.get(j).copied().unwrap_or(0.0));
                let sum: f64 = column().sum();
                let mean = sum / Self::WINDOW as f64;
                let squares: f64 = column().map(|p| (p - mean).powi(2)).sum();
                let at = kv * Self::TOKENS + j;
                found.window[0][at] += sum / group as f64;
                found.window[1][at] += squares / ((Self::WINDOW - 1) * group) as f64;
            }
            for t in 0..Self::TOKENS {
                let row = self.row(head, kv, t);
                for (j, p) in row.iter().enumerate() {
                    found.column_sums[kv * Self::TOKENS + j] += p / group as f64;
                }
                let output = (0..Self::DIM).map(|d| {
                    let values = row.iter().enumerate();
                    let value = |j: usize| f64::from(self.v[vector(kv, j) + d]);
                    values.map(|(j, p)| p * value(j)).sum::<f64>()
                });
                found.output.extend(output);
                if t + 1 == Self::TOKENS {
                    let start = found.output.len() - Self::DIM;
                    found.last_output.extend_from_slice(&found.output[start..]);
                    found.last_row.extend(row);
                }
            }
        }
        found
    }

    /// A length for each KV head, and the attention output `[heads][dim]` of the queries that see that many entries.
    pub fn lengths(&self, attended: &Attended) -> ([usize; Self::KV_HEADS], Vec<f64>) {
        let lengths = [Self::BUDGET, Self::TOKENS];
        let of = |head: usize| {
            let token = lengths[head / Self::GROUP] - 1;
            let at = (head * Self::TOKENS + token) * Self::DIM;
            attended.output[at..at + Self::DIM].iter().copied()
        };
        (lengths, (0..Self::HEADS).flat_map(of).collect())
    }

    /// The attention of one query.
    fn row(&self, head: usize, kv: usize, token: usize) -> Vec<f64> {
        let product = |j: usize| {
            let terms = (0..Self::DIM).map(|d| {
                f64::from(self.q[vector(head, token) + d]) * f64::from(self.k[vector(kv, j) + d])
            });
            (terms.sum::<f64>() / (Self::DIM as f64).sqrt()).exp()
        };
        let row: Vec<f64> = (0..=token).map(product).collect();
        let total: f64 = row.iter().sum();
        row.into_iter().map(|x| x / total).collect()
    }

    pub fn product(&self) -> Vec<f64> {
        let rows = self.weight.chunks_exact(Self::WIDTH);
        let dot = |row: &[f32]| {
            let terms = row.iter().zip(&self.x);
            terms.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        rows.map(dot).collect()
    }

    pub fn normed(&self) -> Vec<f64> {
        let squares: f64 = self.x.iter().map(|x| f64::from(*x).powi(2)).sum();
        let scale = 1.0 / (squares / Self::WIDTH as f64 + 1e-5).sqrt();
        self.x.iter().map(|x| f64::from(*x) * scale).collect()
    }

    /// `silu(x) · x`
    pub fn swiglu(&self) -> Vec<f64> {
        let silu_mul = |x: &f32| {
            let x = f64::from(*x);
            x / (1.0 + (-x).exp()) * x
        };
        self.x.iter().map(silu_mul).collect()
    }

    /// `gelu(x) · x`, GELU in its tanh form
    pub fn geglu(&self) -> Vec<f64> {
        let gelu_mul = |x: &f32| {
            let x = f64::from(*x);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh()) * x
        };
        self.x.iter().map(gelu_mul).collect()
    }

    /// The queries, rotated.
    pub fn rotated(&self) -> Vec<f64> {
        let half = Self::DIM / 2;
        let vectors = self.q.chunks_exact(Self::DIM).enumerate();
        vectors
            .flat_map(|(at, x)| {
                let token = at % Self::TOKENS;
                (0..Self::DIM).map(move |d| {
                    let a = angle(token, d % half);
                    let (x, pair) = (f64::from(x[d]), f64::from(x[(d + half) % Self::DIM]));
                    let sign = if d < half { -1.0 } else { 1.0 };
                    x * a.cos() + sign * pair * a.sin()
                })
            })
            .collect()
    }

    /// The slots that stay, in order, with the first two and the last three protected.
    pub fn kept(&self) -> Vec<i64> {
        let free = Self::BUDGET - 5;
        let mut kept = Vec::new();
        for scores in self.scores.chunks_exact(Self::TOKENS) {
            let mut order: Vec<usize> = (2..Self::TOKENS - 3).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(b.cmp(&a)));
            let mut stay = [&order[..free], &[0, 1]].concat();
            stay.extend(Self::TOKENS - 3..Self::TOKENS);
            stay.sort_unstable();
            kept.extend(stay.into_iter().map(|slot| slot as i64));
        }
        kept
    }

    /// The keys at slots of both heads, one after the other.
    pub fn moved(&self, slots: &[i64]) -> Vec<f64> {
        let heads = slots.chunks_exact(slots.len() / Self::KV_HEADS).enumerate();
        let keys = heads.flat_map(|(kv, slots)| {
            slots.iter().flat_map(move |&slot| {
                let start = vector(kv, slot as usize);
                &self.k[start..start + Self::DIM]
            })
        });
        keys.map(|&x| f64::from(x)).collect()
    }

    /// The slot of the lowest unprotected score of each head.
    pub fn victims(&self) -> Vec<i64> {
        let rows = self.scores.chunks_exact(Self::TOKENS);
        let lowest = |scores: &[f32]| {
            let free = 2..Self::TOKENS - 3;
            let slot = free.min_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
            slot.unwrap_or(0) as i64
        };
        rows.map(lowest).collect()
    }

    /// Scores averaged over `width` neighbours, the last few left out.
    pub fn pooled(&self, width: usize) -> Vec<f64> {
        let old = Self::TOKENS - Self::WINDOW;
        let rows = self.scores.chunks_exact(Self::TOKENS);
        let pooled = rows.flat_map(|scores| {
            (0..Self::TOKENS).map(move |at| {
                let near = at.saturating_sub(width / 2)..(at + width / 2 + 1).min(old);
                match at < old {
                    true => near.map(|i| f64::from(scores[i])).sum::<f64>() / width as f64,
                    false => f64::from(scores[at]),
                }
            })
        });
        pooled.collect()
    }

    /// The slots without the victims.
    pub fn left(&self) -> Vec<i64> {
        let of_head = |victim: i64| (0..Self::TOKENS as i64).filter(move |&slot| slot != victim);
        self.victims().into_iter().flat_map(of_head).collect()
    }

    /// The scores when the last has taken the victim's place.
    pub fn moved_scores(&self) -> Vec<f64> {
        let rows = self.scores.chunks_exact(Self::TOKENS).zip(self.victims());
        let moved = rows.flat_map(|(scores, victim)| {
            (0..Self::TOKENS - 1).map(move |slot| match slot as i64 == victim {
                true => f64::from(scores[Self::TOKENS - 1]),
                false => f64::from(scores[slot]),
            })
        });
        moved.collect()
    }
}

/// The index of the first element of a token's vector.
pub(super) fn vector(head: usize, token: usize) -> usize {
    (head * Inputs::TOKENS + token) * Inputs::DIM
}

fn angle(token: usize, pair: usize) -> f64 {
    token as f64 * 0.5f64.powi(pair as i32)
}
