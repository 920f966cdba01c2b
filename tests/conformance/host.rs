//! The operators in f64 on the host, from their definitions.

/// Vectors `[batch][heads][tokens][dim]`.
#[derive(Clone)]
pub struct Vectors {
    pub values: Vec<f32>,
    pub heads: usize,
    pub tokens: usize,
    pub dim: usize,
}

impl Vectors {
    pub fn row(&self, batch: usize, head: usize, token: usize) -> &[f32] {
        let at = ((batch * self.heads + head) * self.tokens + token) * self.dim;
        &self.values[at..at + self.dim]
    }
}

/// Seeded numbers, uniform from −`scale` to `scale`.
pub fn numbers(count: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 * 2.0 - 1.0
    };
    (0..count).map(|_| next() * scale).collect()
}

pub struct Attention {
    /// `[batch][heads][t][n]`
    rows: Vec<Vec<Vec<f64>>>,
    /// `[batch][heads][t][dim]`
    pub output: Vec<f64>,
    /// `[batch][kv_heads][n]`
    pub column_sums: Vec<f64>,
    /// `[batch][kv_heads][n]`
    pub column_max: Vec<f64>,
    /// `[batch][heads][n]`, of the last query.
    pub last_row: Vec<f64>,
    /// Sum over the queries and variance over them, means over the group: `[batch][kv_heads][n]`.
    pub window: [Vec<f64>; 2],
}

/// Query `i` of `t` sees what `visible(batch, kv_head, i, slot)` allows; logits pass a soft-cap if there is one.
pub fn attention(
    batches: usize,
    q: &Vectors,
    k: &Vectors,
    v: &Vectors,
    softcap: Option<f64>,
    visible: &dyn Fn(usize, usize, usize, usize) -> bool,
) -> Attention {
    let (group, n) = (q.heads / k.heads, k.tokens);
    let columns = batches * k.heads * n;
    let mut found = Attention {
        rows: Vec::new(),
        output: Vec::new(),
        column_sums: vec![0.0; columns],
        column_max: vec![0.0; columns],
        last_row: Vec::new(),
        window: [vec![0.0; columns], vec![0.0; columns]],
    };
    for (batch, head) in (0..batches).flat_map(|b| (0..q.heads).map(move |h| (b, h))) {
        let kv = head / group;
        let rows: Vec<Vec<f64>> = (0..q.tokens)
            .map(|i| {
                let scores = (0..n).map(|j| match visible(batch, kv, i, j) {
                    true => {
                        let product = dot(q.row(batch, head, i), k.row(batch, kv, j));
                        let logit = product / (q.dim as f64).sqrt();
                        softcap.map_or(logit, |cap| cap * (logit / cap).tanh())
                    }
                    false => f64::NEG_INFINITY,
                });
                softmax(&scores.collect::<Vec<_>>())
            })
            .collect();
        for row in &rows {
            let element = |d: usize| {
                let terms = row.iter().enumerate();
                terms
                    .map(|(j, p)| p * f64::from(v.row(batch, kv, j)[d]))
                    .sum::<f64>()
            };
            found.output.extend((0..v.dim).map(element));
        }
        found.last_row.extend(&rows[q.tokens - 1]);
        for j in 0..n {
            let at = (batch * k.heads + kv) * n + j;
            let column = rows.iter().map(|row| row[j]);
            let sum: f64 = column.clone().sum();
            let mean = sum / q.tokens as f64;
            let squares: f64 = column.clone().map(|p| (p - mean).powi(2)).sum();
            found.column_sums[at] += sum / group as f64;
            let most = column.fold(found.column_max[at], f64::max);
            found.column_max[at] = most;
            found.window[0][at] += sum / group as f64;
            found.window[1][at] += squares / (q.tokens.max(2) - 1) as f64 / group as f64;
        }
        found.rows.push(rows);
    }
    found
}

impl Attention {
    /// Of the last `count` queries, of which the last sees all keys: per key the numbers of query heads that gave it at
    /// least the average of their attention, as digits of `bits` bits, and their sum.
    pub fn hits(&self, kv_heads: usize, n: usize, count: usize, bits: usize) -> [Vec<f64>; 2] {
        let tokens = self.rows[0].len();
        let heads = self.rows.len();
        let batches = self.column_sums.len() / (kv_heads * n);
        let group = heads / (batches * kv_heads);
        let mut found = [(); 2].map(|()| vec![0.0; batches * kv_heads * n]);
        for (head, rows) in self.rows.iter().enumerate() {
            for i in 0..count {
                let query = tokens - count + i;
                let average = 1.0 / rows[query].iter().filter(|p| **p > 0.0).count() as f64;
                for j in (0..n).filter(|&j| rows[query][j] >= average) {
                    found[0][head / group * n + j] += ((bits * i) as f64).exp2();
                    found[1][head / group * n + j] += 1.0;
                }
            }
        }
        found
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let terms = a.iter().zip(b);
    terms.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if most == f64::NEG_INFINITY {
        return vec![0.0; scores.len()];
    }
    let exps: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
    let total: f64 = exps.iter().sum();
    exps.iter().map(|e| e / total).collect()
}

/// The slots of one head that stay, ascending by position.
pub fn kept(
    scores: &[f32],
    positions: &[i64],
    safe: &dyn Fn(i64) -> bool,
    budget: usize,
) -> Vec<i64> {
    let mut slots: Vec<usize> = (0..scores.len()).collect();
    slots.sort_by(|&a, &b| {
        let key = |slot: usize| (safe(positions[slot]), scores[slot], positions[slot]);
        let (a, b) = (key(a), key(b));
        b.0.cmp(&a.0).then(b.1.total_cmp(&a.1)).then(b.2.cmp(&a.2))
    });
    slots.truncate(budget);
    slots.sort_by_key(|&slot| positions[slot]);
    slots.into_iter().map(|slot| slot as i64).collect()
}

/// The slot of one head that goes.
pub fn lowest(scores: &[f32], positions: &[i64], safe: &dyn Fn(i64) -> bool) -> i64 {
    let free = (0..scores.len()).filter(|&slot| !safe(positions[slot]));
    let order = |a: &usize, b: &usize| {
        let by_score = scores[*a].total_cmp(&scores[*b]);
        by_score.then(positions[*a].cmp(&positions[*b]))
    };
    free.min_by(order).unwrap() as i64
}
