use super::{
    LayerView, MOST, NamedPolicy, Needs, Params, Policies, Policy, Protect, State, check_range,
};
use crate::Result;
use crate::ops;
use burn::tensor::activation::softmax;
use burn::tensor::{Int, Tensor, s};
use serde::{Deserialize, Serialize};

/// Keeps the entries whose keys and values differ most from those that follow (LagKV, arXiv 2504.04704). The entries behind
/// the first `sinks`, in order of position, are divided into partitions of `lag` entries. The keys and the values of a
/// partition are scaled per channel by the minimum and maximum of the next partition. The standard deviation of an entry
/// over its channels, after a softmax over the partition, is added up for key and value; the score of the entry is its rank
/// within its partition by that sum. Entries with equal ranks are kept in the order of their positions, the latest first.
///
/// The sinks, the last full partition and everything behind it always score highest. With fewer than two partitions, the
/// sinks and the latest entries stay.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LagKv {
    /// Entries per partition.
    pub lag: usize,
    /// How many of the first positions always stay.
    pub sinks: usize,
}

impl Default for LagKv {
    fn default() -> Self {
        Self { lag: 128, sinks: 4 }
    }
}

impl NamedPolicy for LagKv {
    const NAME: &'static str = "lagkv";
    const SUMMARY: &'static str = "keys and values that stand out from those that follow";
    const SOURCE: Option<&'static str> = Some("arXiv 2504.04704");
    const VARIANTS: &'static [&'static str] = &["{lag: 3, sinks: 2}", "{}"];

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        let policy: Self = params.read()?;
        check_range("lag", policy.lag, 2..=4096)?;
        check_range("sinks", policy.sinks, 0..=MOST)?;
        Ok(policy)
    }
}

impl Policy for LagKv {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        Params::of(self)
    }

    fn needs(&self) -> Needs {
        Needs {
            position_order: true,
            ..Needs::default()
        }
    }

    fn protect(&self, _budget: usize) -> Protect {
        Protect {
            sinks: self.sinks,
            recent: 0,
        }
    }

    fn score(&self, _state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        let [batch, kv_heads, entries] = view.positions.dims();
        let device = view.positions.device();
        let sinks = self.sinks.min(entries);
        let partitions = (entries - sinks) / self.lag;
        let ones = |count| Tensor::<3>::ones([batch, kv_heads, count], &device);
        let mut parts = vec![ones(sinks)];
        if entries == sinks {
            // Nothing to rank: tensors of no elements cannot be reshaped.
        } else if partitions < 2 {
            let body = entries - sinks;
            let recency = Tensor::<1, Int>::arange(0..body as i64, &device).float();
            let recency = recency.div_scalar(body as f32);
            parts.push(
                recency
                    .reshape([1, 1, body])
                    .expand([batch, kv_heads, body]),
            );
        } else {
            let ordered = |entries: &Tensor<4>| match view.order {
                Some(order) => ops::take(entries.clone(), order.clone()),
                None => entries.clone(),
            };
            let keys = self.deviations(ordered(&view.keys()), sinks, partitions);
            let values = self.deviations(ordered(&view.values()), sinks, partitions);
            let scored = (partitions - 1) * self.lag;
            let ranks = ranks(keys + values).div_scalar(self.lag as f32);
            parts.push(ranks.reshape([batch, kv_heads, scored]));
            parts.push(ones(entries - sinks - scored));
        }
        parts.retain(|part| part.dims()[2] > 0);
        Ok(view.to_slot_order(Tensor::cat(parts, 2)))
    }

    #[cfg(feature = "testing")]
    fn oracle(&self) -> Option<&dyn crate::testing::Oracle> {
        Some(self)
    }
}

#[cfg(feature = "testing")]
mod oracle {
    use super::*;
    use crate::testing::{Entry, Head, Oracle, softmax};

    impl Oracle for LagKv {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            let n = head.entries().len();
            let sinks = self.sinks.min(n);
            let partitions = (n - sinks) / self.lag;
            if partitions < 2 {
                let recency = |j: usize| match j < sinks {
                    true => 1.0,
                    false => (j - sinks) as f64 / (n - sinks) as f64,
                };
                return (0..n).map(recency).collect();
            }
            let mut scores = vec![1.0; n];
            for partition in 0..partitions - 1 {
                let first = sinks + partition * self.lag;
                let of = |x: fn(&Entry) -> &Vec<f64>| {
                    let rows = |from: usize| head.entries()[from..from + self.lag].iter().map(x);
                    let (partition, next) = (rows(first), rows(first + self.lag));
                    spreads(&partition.collect::<Vec<_>>(), &next.collect::<Vec<_>>())
                };
                let (keys, values) = (of(|entry| &entry.key), of(|entry| &entry.value));
                let total = |i: usize| keys[i] + values[i];
                for i in 0..self.lag {
                    let below = |&o: &usize| total(o) < total(i) || total(o) == total(i) && o < i;
                    let rank = (0..self.lag).filter(below).count();
                    scores[first + i] = rank as f64 / self.lag as f64;
                }
            }
            scores
        }
    }

    /// Deviations over the channels, scaled by the range of the next partition; softmax over the partition.
    fn spreads(partition: &[&Vec<f64>], next: &[&Vec<f64>]) -> Vec<f64> {
        let deviation = |x: &&Vec<f64>| {
            let scale = |(c, x): (usize, &f64)| {
                let channel = || next.iter().map(|row| row[c]);
                let low = channel().fold(f64::INFINITY, f64::min);
                let high = channel().fold(f64::NEG_INFINITY, f64::max);
                (x - low) / (high - low).max(1e-12)
            };
            let scaled: Vec<f64> = x.iter().enumerate().map(scale).collect();
            let mean = scaled.iter().sum::<f64>() / scaled.len() as f64;
            let squares = scaled.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
            (squares / (scaled.len() - 1) as f64).sqrt()
        };
        softmax(&partition.iter().map(deviation).collect::<Vec<_>>())
    }
}

impl LagKv {
    /// The softmax over each partition of its entries' deviations: `x [batch, kv_heads, entries, head_dim]` in order of
    /// position → `[batch, kv_heads, partitions − 1, lag]`.
    fn deviations(&self, x: Tensor<4>, sinks: usize, partitions: usize) -> Tensor<4> {
        let [batch, kv_heads, _, d] = x.dims();
        let x = x
            .slice(s![.., .., sinks..sinks + partitions * self.lag, ..])
            .reshape([batch, kv_heads, partitions, self.lag, d]);
        let next = x.clone().narrow(2, 1, partitions - 1);
        let scored = x.narrow(2, 0, partitions - 1);
        let low = next.clone().min_dim(3);
        // A channel that is constant says nothing; it must not divide by zero.
        let range = (next.max_dim(3) - low.clone()).clamp_min(1e-12);
        let spread = ((scored - low) / range).var(4).sqrt();
        softmax(spread, 3).reshape([batch, kv_heads, partitions - 1, self.lag])
    }
}

/// Ranks along the last axis, 0 for the lowest score; of two equal scores the later one has the higher rank.
fn ranks(scores: Tensor<4>) -> Tensor<4> {
    let [batch, kv_heads, partitions, lag] = scores.dims();
    let dims = [batch, kv_heads, partitions, lag, lag];
    let this = scores.clone().unsqueeze_dim::<5>(4).expand(dims);
    let other = scores.unsqueeze_dim::<5>(3).expand(dims);
    let index = Tensor::<1, Int>::arange(0..lag as i64, &this.device());
    let earlier = index.clone().reshape([1, 1, 1, 1, lag]).expand(dims);
    let earlier = earlier.lower(index.reshape([1, 1, 1, lag, 1]).expand(dims));
    let below = other.clone().lower(this.clone());
    let below = below.bool_or(other.equal(this).bool_and(earlier));
    below
        .float()
        .sum_dim(4)
        .reshape([batch, kv_heads, partitions, lag])
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn of_equal_scores_the_later_ranks_higher() {
        let scores = [[[[3.0, 1.0, 3.0, 0.5], [2.0, 2.0, 2.0, 2.0]]]];
        let found = ranks(Tensor::from_data(scores, &Device::flex()));
        let found: Vec<f32> = found.try_into_vec_as().unwrap();
        assert_eq!(found, [2.0, 1.0, 3.0, 0.0, 0.0, 1.0, 2.0, 3.0]);
    }
}
