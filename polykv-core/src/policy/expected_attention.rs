use super::{
    Appended, LayerView, MOST, NamedPolicy, Needs, Params, Policies, Policy, Protect, State,
    check_range,
};
use crate::facts::{LayerFacts, RopeFacts};
use crate::{Error, Result, ops};
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use serde::{Deserialize, Serialize};

/// Keeps the entries that future queries can be expected to attend to (Expected Attention, arXiv 2510.00636). Queries before
/// rotary embedding are modelled as normally distributed with the mean μ and covariance Σ of the queries so far, rotated by
/// the mean rotation of the next `future` positions. The score of an entry with key k and value v is (a + `epsilon`) ·
/// ‖v‖₂, where a is the softmax over the entries of μ·k/√d + kᵀΣk/(2d), mean over the query group. The queries at the first
/// `sinks` positions are left out, and the entries there always stay.
///
/// The model must state its rotary frequencies, see [`ModelFacts`](crate::ModelFacts). The policy stores head_dim ×
/// (head_dim + 1) numbers per query head, and multiplies each key by Σ of each query head at every eviction.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExpectedAttention {
    /// How many future positions the rotation is averaged over.
    pub future: usize,
    /// How many of the first positions always stay.
    pub sinks: usize,
    /// Added to the expected attention before it is multiplied by the norm of the value.
    pub epsilon: f64,
}

impl Default for ExpectedAttention {
    fn default() -> Self {
        Self {
            future: 512,
            sinks: 4,
            epsilon: 0.01,
        }
    }
}

impl NamedPolicy for ExpectedAttention {
    const NAME: &'static str = "expected-attention";
    const SUMMARY: &'static str = "what queries to come can be expected to attend to";
    const SOURCE: Option<&'static str> = Some("arXiv 2510.00636");
    const VARIANTS: &'static [&'static str] = &["{}", "{future: 7, sinks: 2, epsilon: 0.0}"];

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        let policy: Self = params.read()?;
        check_range("future", policy.future, 1..=MOST)?;
        check_range("sinks", policy.sinks, 0..=MOST)?;
        check_range("epsilon", policy.epsilon, 0.0..=1e6)?;
        Ok(policy)
    }
}

/// Finite, since WGSL has no infinity literal.
const MASKED: f32 = -1e30;

fn rope(facts: &LayerFacts) -> Result<&RopeFacts> {
    facts.rope.as_ref().ok_or_else(|| {
        Error::Failed("policy expected-attention runs without rotary frequencies".into())
    })
}

impl Policy for ExpectedAttention {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        Params::of(self)
    }

    fn needs(&self) -> Needs {
        Needs {
            rope: true,
            ..Needs::default()
        }
    }

    fn protect(&self, _budget: usize) -> Protect {
        Protect {
            sinks: self.sinks,
            recent: 0,
        }
    }

    /// Keeps `state.sequence` = the mean `[batch, heads, 1, head_dim]` and the sum of squared deviations `[batch,
    /// heads, head_dim, head_dim]` of `state.counts[0]` queries.
    fn append(&self, state: &mut State, appended: &Appended) -> Result<()> {
        let first = appended.positions.start.max(self.sinks);
        let new = appended.positions.end.saturating_sub(first);
        if new == 0 {
            return Ok(());
        }
        let tokens = appended.positions.len();
        let queries = appended.queries.clone().narrow(2, tokens - new, new);
        let queries = rope(&appended.facts)?.unrotate(queries, first);
        let mean = queries.clone().mean_dim(2);
        let squares = |x: Tensor<4>| ops::matmul(x.clone().swap_dims(2, 3), x);
        let Some(old_mean) = state.sequence.first().cloned() else {
            state.sequence = vec![mean.clone(), squares(queries - mean)];
            state.counts = vec![new];
            return Ok(());
        };
        // Merged by the means' distance (Chan, Golub, LeVeque): plain sums of squares would cancel.
        let (old, all) = (state.counts[0] as f64, (state.counts[0] + new) as f64);
        let step = mean.clone() - old_mean;
        let mut more = squares(step.clone()).mul_scalar((old * new as f64 / all) as f32);
        if new > 1 {
            more = more + squares(queries - mean);
        }
        state.sequence[0].inplace(|t| t + step.mul_scalar((new as f64 / all) as f32));
        state.sequence[1].inplace(|t| t + more);
        state.counts[0] += new;
        Ok(())
    }

    fn score(&self, state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        let [batch, kv_heads, entries] = view.positions.dims();
        let d = view.shape.head_dim;
        let group = view.shape.group();
        let flat = [batch, kv_heads, 1, entries];
        let expected = match state.sequence.as_slice() {
            [mean, squares] => {
                // Turning the keys back is the same as turning mean and covariance forth, and cheaper.
                let keys = rope(view.facts)?.unrotate_mean(view.keys(), view.seen, self.future);
                let mean = mean.clone().reshape([batch, kv_heads, group, d]);
                let linear = ops::matmul(mean, keys.clone().swap_dims(2, 3));
                let linear = linear.mul_scalar(1.0 / (d as f32).sqrt());
                let squares = squares.clone().reshape([batch, kv_heads, group, d * d]);
                let spread = (0..group)
                    .map(|g| {
                        let covariance = squares
                            .clone()
                            .narrow(2, g, 1)
                            .reshape([batch, kv_heads, d, d]);
                        let product = ops::matmul(keys.clone(), covariance) * keys.clone();
                        product.sum_dim(3).reshape(flat)
                    })
                    .collect();
                let scale = 1.0 / (2.0 * d as f64 * state.counts[0] as f64);
                linear + Tensor::cat(spread, 2).mul_scalar(scale as f32)
            }
            // No query but those of the sinks: nothing speaks for one entry.
            _ => Tensor::zeros(
                [batch, kv_heads, group, entries],
                &view.positions.device(),
            ),
        };
        let sinks = view.positions.clone().lower_elem(self.sinks as i64);
        let sinks = sinks
            .reshape(flat)
            .expand([batch, kv_heads, group, entries]);
        let attention = softmax(expected.mask_fill(sinks, MASKED), 3).mean_dim(2);
        let norms = view.values().square().sum_dim(3).sqrt();
        let dims = [batch, kv_heads, entries];
        Ok(attention.reshape(dims).add_scalar(self.epsilon as f32) * norms.reshape(dims))
    }

    #[cfg(feature = "testing")]
    fn oracle(&self) -> Option<&dyn crate::testing::Oracle> {
        Some(self)
    }
}

#[cfg(feature = "testing")]
mod oracle {
    use super::*;
    use crate::testing::{Head, Oracle, dot, norm, softmax};

    impl Oracle for ExpectedAttention {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            let (seen, rope, entries) = (head.seen(), head.rope(), head.entries());
            let forth = mean_rotation(&rope, seen, self.future);
            let attention = head.group_mean(|member| {
                let queries: Vec<Vec<f64>> = (self.sinks..seen)
                    .map(|p| turned(&back(&rope, head.query(member, p), p), &forth))
                    .collect();
                let logits = entries.iter().map(|entry| match entry.position < self.sinks {
                    true => f64::NEG_INFINITY,
                    false => expected_logit(&queries, &entry.key),
                });
                softmax(&logits.collect::<Vec<_>>())
            });
            let each = attention.iter().zip(entries);
            each.map(|(a, entry)| (a + self.epsilon) * norm(&entry.value))
                .collect()
        }
    }

    /// Multiplies each pair of elements, as a complex number, by one of `turns`.
    fn turned(x: &[f64], turns: &[(f64, f64)]) -> Vec<f64> {
        let (re, im) = x.split_at(x.len() / 2);
        let pairs = || re.iter().zip(im).zip(turns);
        let first = pairs().map(|((a, b), (c, s))| a * c - b * s);
        let second = pairs().map(|((a, b), (c, s))| a * s + b * c);
        first.chain(second).collect()
    }

    /// A query before rotary embedding.
    fn back(rope: &RopeFacts, query: &[f64], position: usize) -> Vec<f64> {
        let turn = |w: &f64| {
            let angle = w * position as f64;
            (angle.cos() / rope.magnitude, -angle.sin() / rope.magnitude)
        };
        turned(
            query,
            &rope.frequencies.iter().map(turn).collect::<Vec<_>>(),
        )
    }

    /// The mean rotation over positions, one complex number per pair.
    fn mean_rotation(rope: &RopeFacts, first: usize, count: usize) -> Vec<(f64, f64)> {
        let mean = |w: f64, f: fn(f64) -> f64| {
            let turns = (first..first + count).map(|p| f(w * p as f64));
            turns.sum::<f64>() / count as f64 * rope.magnitude
        };
        let each = rope.frequencies.iter();
        each.map(|&w| (mean(w, f64::cos), mean(w, f64::sin)))
            .collect()
    }

    /// μ·k/√d + kᵀΣk/(2d): along the key, these are the mean and the variance of the products.
    fn expected_logit(queries: &[Vec<f64>], key: &[f64]) -> f64 {
        if queries.is_empty() {
            return 0.0;
        }
        let products: Vec<f64> = queries.iter().map(|query| dot(query, key)).collect();
        let mean = products.iter().sum::<f64>() / products.len() as f64;
        let squares = products.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        let variance = squares / products.len() as f64;
        mean / (key.len() as f64).sqrt() + variance / (2.0 * key.len() as f64)
    }
}
