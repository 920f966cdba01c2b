use super::member::Member;
use super::{
    Appended, LayerView, MOST, Merge, NamedPolicy, Needs, Params, Phase, Policies, Policy, Protect,
    Split, State, check_range,
};
use crate::Result;
use crate::ops::{AttentionBlock, read_error};
use crate::shape::LayerShape;
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use serde::Deserialize;
use serde_yaml_ng::Value;

/// Keeps what a `base` policy keeps, and after the prompt changes the values of what stays so that the last `queries` queries
/// get the attention outputs that they had from all entries (ridge regression over the values, as Attention Matching, arXiv
/// 2602.16284, does it with keys and biases, too). For a KV head let A be the attention of these queries of its query group
/// over all entries that the next token sees, X its columns of the kept entries, both with rows that sum to one, V all values
/// and V_S the kept ones. Then V_S + (XᵀX + λI)⁻¹ Xᵀ(AV − X V_S) is stored, with λ = `ridge` · ‖X‖² / entries kept.
///
/// It suits base policies that follow the same queries, such as tova, snapkv and blends of them; with many queries it makes more
/// of what most of them read and loses what a single question needs. In the decode phase it is the base policy. In a plan file `base` is a policy's name, or a map of `policy` and its
/// parameters. The system is solved on the host in f64: one round trip per layer and prompt.
#[derive(Clone, Debug)]
pub struct Refit {
    base: Member,
    queries: usize,
    ridge: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Text {
    base: Value,
    queries: usize,
    ridge: f64,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            base: "snapkv".into(),
            queries: 16,
            ridge: 0.3,
        }
    }
}

impl NamedPolicy for Refit {
    const NAME: &'static str = "refit";
    const SUMMARY: &'static str =
        "a base policy's choice, with values that make up for what is gone: base=snapkv";
    const SOURCE: Option<&'static str> = Some("after arXiv 2602.16284");
    const VARIANTS: &'static [&'static str] = &[
        "{base: {policy: snapkv, window: 4, kernel: 3}, queries: 2}",
        "{base: h2o, queries: 9, ridge: 0.5}",
        "{base: keydiff, queries: 40}",
    ];

    fn from_params(params: &Params, policies: &Policies) -> std::result::Result<Self, String> {
        let text: Text = params.read()?;
        check_range("queries", text.queries, 1..=MOST)?;
        check_range("ridge", text.ridge, 1e-6..=1e6)?;
        let base = Member::parse(&text.base, policies);
        Ok(Self {
            base: base.map_err(|reason| format!("base: {reason}"))?,
            queries: text.queries,
            ridge: text.ridge,
        })
    }
}

impl Policy for Refit {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        Params::new()
            .with("base", self.base.to_value(false))
            .with("queries", self.queries)
            .with("ridge", self.ridge)
    }

    fn needs(&self) -> Needs {
        let own = Needs {
            queries: self.queries,
            ..Needs::default()
        };
        self.base.policy.needs().union(own)
    }

    fn bytes_per_entry(&self, shape: LayerShape) -> usize {
        self.base.policy.bytes_per_entry(shape)
    }

    fn protect(&self, budget: usize) -> Protect {
        self.base.policy.protect(budget)
    }

    fn same_for_all_heads(&self) -> bool {
        self.base.policy.same_for_all_heads()
    }

    fn append(&self, state: &mut State, appended: &Appended) -> Result<()> {
        self.base.policy.append(state, appended)
    }

    fn observe(&self, state: &mut State, block: &AttentionBlock) -> Result<()> {
        match self.base.policy.needs().attention {
            true => self.base.policy.observe(state, block),
            false => Ok(()),
        }
    }

    fn observe_repetition(&self, state: &mut State, block: &AttentionBlock) -> Result<()> {
        match self.base.policy.needs().repetition {
            true => self.base.policy.observe_repetition(state, block),
            false => Ok(()),
        }
    }

    fn score(&self, state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        self.base.policy.score(state, view)
    }

    fn accepts(
        &self,
        state: &State,
        like: &State,
        seen: usize,
    ) -> std::result::Result<(), String> {
        self.base.policy.accepts(state, like, seen)
    }

    fn merges(&self, phase: Phase) -> bool {
        phase == Phase::Prefill
    }

    fn merge(
        &self,
        _state: &mut State,
        view: &LayerView<'_>,
        split: &Split,
    ) -> Result<Option<Merge>> {
        let attention = view.window_attention(self.queries)?;
        let [batch, kv_heads, group, queries, entries] = attention.dims();
        let [_, _, kept] = split.kept.dims();
        let (rows, dim) = (group * queries, view.shape.head_dim);
        let mut attention = attention.reshape([batch, kv_heads, rows, entries]);
        if let Some(left) = view.left() {
            let left = left.unsqueeze_dim::<4>(2);
            attention = attention.mask_fill(left.expand([batch, kv_heads, rows, entries]), 0.0);
        }
        let slots = split.kept.clone();
        let columns = slots.clone().unsqueeze_dim::<4>(2);
        let x = attention
            .clone()
            .gather(3, columns.expand([batch, kv_heads, rows, kept]));
        let (x, attention) = (sum_to_one(x), sum_to_one(attention));
        let values = view.values();
        let wanted = attention.matmul(values.clone());
        let of_slots = slots.unsqueeze_dim::<4>(3);
        let own = values.gather(2, of_slots.expand([batch, kv_heads, kept, dim]));
        let missing = wanted - x.clone().matmul(own);
        let turned = x.clone().swap_dims(2, 3);
        // (XᵀX + λI)⁻¹Xᵀ is Xᵀ(XXᵀ + λI)⁻¹: the smaller system is solved.
        let few_rows = rows <= kept;
        let (gram, right) = match few_rows {
            true => (x.matmul(turned.clone()), missing),
            false => (turned.clone().matmul(x), turned.clone().matmul(missing)),
        };
        let solved = self.solve(gram, right, kept)?;
        Ok(Some(Merge {
            slots: None,
            keys: None,
            values: match few_rows {
                true => turned.matmul(solved),
                false => solved,
            },
        }))
    }

    #[cfg(feature = "testing")]
    fn oracle(&self) -> Option<&dyn crate::testing::Oracle> {
        let base = self.base.policy.oracle();
        base.map(|_| self as &dyn crate::testing::Oracle)
    }
}

/// Rows that sum to one, or are 0 where they were.
fn sum_to_one(rows: Tensor<4>) -> Tensor<4> {
    let sums = rows.clone().sum_dim(3).clamp_min(f32::MIN_POSITIVE);
    rows / sums
}

impl Refit {
    /// Solves (`gram` + λI) z = `right` for every head, where λ is `ridge` times the trace of `gram` by the entries kept:
    /// `[batch, kv_heads, n, n]` and `[batch, kv_heads, n, d]` → `[batch, kv_heads, n, d]`.
    fn solve(&self, gram: Tensor<4>, right: Tensor<4>, kept: usize) -> Result<Tensor<4>> {
        let (dims, device) = (right.dims(), right.device());
        let [_, _, n, d] = dims;
        let gram: Vec<f32> = gram.try_into_vec_as().map_err(read_error)?;
        let mut right: Vec<f32> = right.try_into_vec_as().map_err(read_error)?;
        let heads = gram.par_chunks_exact(n * n);
        heads
            .zip(right.par_chunks_exact_mut(n * d))
            .for_each(|(gram, right)| {
                let mut gram: Vec<f64> = gram.iter().map(|&x| f64::from(x)).collect();
                let trace: f64 = gram.iter().step_by(n + 1).sum();
                let ridge = self.ridge * trace / kept as f64;
                gram.iter_mut().step_by(n + 1).for_each(|x| *x += ridge);
                match factorise(&mut gram, n) {
                    true => substitute(&gram, right, n, d),
                    // Without attention on what stays there is nothing to fit.
                    false => right.fill(0.0),
                }
            });
        Ok(Tensor::from_data(TensorData::new(right, dims), &device))
    }
}

/// Cholesky's factor of a symmetric matrix `[n, n]`, in its lower triangle; false if the matrix is not positive definite.
fn factorise(matrix: &mut [f64], n: usize) -> bool {
    for row in 0..n {
        let (above, own) = matrix.split_at_mut(row * n);
        for column in 0..row {
            let other = &above[column * n..][..=column];
            let sum: f64 = dot(&own[..column], &other[..column]);
            own[column] = (own[column] - sum) / other[column];
        }
        let rest = own[row] - dot(&own[..row], &own[..row]);
        if !(rest > 0.0 && rest.is_finite()) {
            return false;
        }
        own[row] = rest.sqrt();
    }
    true
}

/// Solves L Lᵀ z = `right` in place, with L the lower triangle of `factor [n, n]` and `right [n, d]`.
fn substitute(factor: &[f64], right: &mut [f32], n: usize, d: usize) {
    let mut z: Vec<f64> = right.iter().map(|&x| f64::from(x)).collect();
    for row in 0..n {
        let (above, own) = z.split_at_mut(row * d);
        let (own, factors) = (&mut own[..d], &factor[row * n..][..=row]);
        for (other, &factor) in above.chunks_exact(d).zip(factors) {
            subtract(own, other, factor);
        }
        own.iter_mut().for_each(|x| *x /= factors[row]);
    }
    for row in (0..n).rev() {
        let (upper, below) = z.split_at_mut((row + 1) * d);
        let own = &mut upper[row * d..];
        for (other, at) in below.chunks_exact(d).zip(row + 1..) {
            subtract(own, other, factor[at * n + row]);
        }
        own.iter_mut().for_each(|x| *x /= factor[row * n + row]);
    }
    for (out, z) in right.iter_mut().zip(z) {
        *out = z as f32;
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn subtract(from: &mut [f64], what: &[f64], factor: f64) {
    for (from, what) in from.iter_mut().zip(what) {
        *from -= factor * what;
    }
}

#[cfg(feature = "testing")]
mod oracle {
    use super::*;
    use crate::testing::{Entry, Head, Oracle};

    /// Solves a system of equations by elimination with pivots.
    fn eliminate(mut matrix: Vec<Vec<f64>>, mut right: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
        let n = matrix.len();
        for column in 0..n {
            let size = |&row: &usize| matrix[row][column].abs();
            let pivot = (column..n).max_by(|a, b| size(a).total_cmp(&size(b)));
            let pivot = pivot.unwrap_or(column);
            matrix.swap(column, pivot);
            right.swap(column, pivot);
            let (own, own_right) = (matrix[column].clone(), right[column].clone());
            for row in (0..n).filter(|&row| row != column) {
                let factor = matrix[row][column] / own[column];
                subtract(&mut matrix[row], &own, factor);
                subtract(&mut right[row], &own_right, factor);
            }
        }
        for (row, values) in right.iter_mut().enumerate() {
            values.iter_mut().for_each(|x| *x /= matrix[row][row]);
        }
        right
    }

    fn scaled(row: Vec<f64>) -> Vec<f64> {
        let sum: f64 = row.iter().sum();
        let scale = if sum > 0.0 { sum } else { 1.0 };
        row.iter().map(|x| x / scale).collect()
    }

    impl Oracle for Refit {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            let base = self.base.policy.oracle();
            base.map_or_else(Vec::new, |base| base.scores(head))
        }

        fn merge(&self, head: &Head<'_>, kept: &[usize], _memory: &mut Vec<f64>) -> Vec<Entry> {
            let mut entries = head.entries().to_vec();
            if head.phase() == Phase::Decode {
                return entries;
            }
            let dim = entries[0].value.len();
            let group = crate::testing::GROUP;
            let mut gram = vec![vec![0.0; kept.len()]; kept.len()];
            let mut right = vec![vec![0.0; dim]; kept.len()];
            for row in (0..group).flat_map(|member| head.window(member, self.queries)) {
                let seen = row.iter().zip(&entries);
                let seen = seen.map(|(&a, entry)| if head.sees(entry) { a } else { 0.0 });
                let all = scaled(seen.collect());
                let own = scaled(kept.iter().map(|&index| all[index]).collect());
                let mut missing = vec![0.0; dim];
                for (entry, &a) in entries.iter().zip(&all) {
                    subtract(&mut missing, &entry.value, -a);
                }
                for (&index, &x) in kept.iter().zip(&own) {
                    subtract(&mut missing, &entries[index].value, x);
                }
                for (i, &x) in own.iter().enumerate() {
                    subtract(&mut gram[i], &own, -x);
                    subtract(&mut right[i], &missing, -x);
                }
            }
            let trace: f64 = (0..kept.len()).map(|i| gram[i][i]).sum();
            for (i, row) in gram.iter_mut().enumerate() {
                row[i] += self.ridge * trace / kept.len() as f64;
            }
            if trace > 0.0 {
                for (&index, more) in kept.iter().zip(eliminate(gram, right)) {
                    subtract(&mut entries[index].value, &more, -1.0);
                }
            }
            entries
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_is_solved_or_refused() {
        let mut matrix = vec![4.0, 2.0, 2.0, 2.0, 5.0, 3.0, 2.0, 3.0, 6.0];
        let known = [1.0, -2.0, 0.5, 3.0, 0.25, 1.0f64];
        let mut right: Vec<f32> = (0..6)
            .map(|at| {
                let (row, column) = (at / 2, at % 2);
                let terms = (0..3).map(|other| matrix[row * 3 + other] * known[other * 2 + column]);
                terms.sum::<f64>() as f32
            })
            .collect();
        assert!(factorise(&mut matrix, 3));
        substitute(&matrix, &mut right, 3, 2);
        for (found, wanted) in right.iter().zip(known) {
            assert!((f64::from(*found) - wanted).abs() < 1e-5, "{right:?}");
        }
        assert!(!factorise(&mut [1.0, 2.0, 2.0, 1.0], 2));
        assert!(!factorise(&mut [0.0; 4], 2));
        assert!(!factorise(&mut [f64::NAN], 1));
    }

    #[test]
    fn wrong_parameters_are_refused_by_name() {
        for (params, reason) in [
            ("{base: d2o}", "found d2o"),
            ("{queries: 0}", "queries from 1"),
            ("{ridge: 0}", "ridge from"),
            ("{ridg: 0.5}", "ridg"),
        ] {
            let params = Params::from_yaml(params).unwrap();
            let error = Policies::default().build("refit", &params);
            let error = error.unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
