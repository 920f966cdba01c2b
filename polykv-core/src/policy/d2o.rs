use super::{
    Appended, LayerView, MOST, Merge, NamedPolicy, Needs, Params, Phase, Policies, Policy, Protect, Split,
    State, check_range,
};
use crate::Result;
use crate::ops::{self, AttentionBlock};
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor};
use serde::{Deserialize, Serialize};
use std::f32::consts::E;

/// Keeps the entries that received the most attention, and merges evicted entries into similar ones (D2O, arXiv
/// 2406.13035). The score of an entry is its attention summed over all queries, mean over the query group. Each evicted
/// entry is compared with the kept entry whose key has the largest cosine u with its own. If u reaches a threshold, its key
/// and value are averaged into those of the kept entry, with the weight eᵘ against e for the kept entry; otherwise they are
/// dropped. There is one threshold per sequence and KV head. It begins as the mean of u in the first eviction and then
/// follows the mean of u in each eviction as an exponential moving average. The score of the kept entry does not change.
///
/// Merging costs one more pass over the keys per decode step. The layer-wise budgets of the paper are not part of this
/// policy.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct D2o {
    /// How many of the first positions always stay.
    pub sinks: usize,
    /// The fraction of the budget that the latest entries get whatever their score, 0 to 1.
    pub recent_fraction: f64,
    /// The weight of the latest eviction in the moving average of the threshold, 0 to 1.
    pub ema: f64,
}

impl Default for D2o {
    fn default() -> Self {
        Self {
            sinks: 4,
            recent_fraction: 0.5,
            ema: 0.5,
        }
    }
}

impl NamedPolicy for D2o {
    const NAME: &'static str = "d2o";
    const SUMMARY: &'static str = "as h2o with sinks; evicted entries are merged into similar ones";
    const SOURCE: Option<&'static str> = Some("arXiv 2406.13035");
    const VARIANTS: &'static [&'static str] = &["{sinks: 2}", "{recent_fraction: 0.25, ema: 0.8}"];

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        let policy: Self = params.read()?;
        check_range("sinks", policy.sinks, 0..=MOST)?;
        check_range("recent_fraction", policy.recent_fraction, 0.0..=1.0)?;
        check_range("ema", policy.ema, 0.0..=1.0)?;
        Ok(policy)
    }
}

impl Policy for D2o {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        Params::of(self)
    }

    fn needs(&self) -> Needs {
        Needs {
            attention: true,
            column_sums: true,
            ..Needs::default()
        }
    }

    fn protect(&self, budget: usize) -> Protect {
        Protect {
            sinks: self.sinks,
            recent: (budget as f64 * self.recent_fraction).floor() as usize,
        }
    }

    fn append(&self, state: &mut State, appended: &Appended) -> Result<()> {
        state.append_lazily(appended);
        Ok(())
    }

    fn observe(&self, state: &mut State, block: &AttentionBlock) -> Result<()> {
        state.observe_sums(block);
        Ok(())
    }

    fn score(&self, state: &State, _view: &LayerView<'_>) -> Result<Tensor<3>> {
        Ok(state.sums())
    }

    fn merges(&self, _phase: Phase) -> bool {
        true
    }

    fn accepts(&self, state: &State, like: &State, seen: usize) -> std::result::Result<(), String> {
        // What a sequence has depends on what was merged so far.
        let wanted = like.entries.first().map(|sums| {
            let [batch, kv_heads, _] = sums.dims();
            [batch, kv_heads, 1, 1]
        });
        let other = |tensor: &Tensor<4>| Some(tensor.dims()) != wanted;
        if state.sequence.len() > 2 || state.sequence.iter().any(other) {
            let found: Vec<_> = state.sequence.iter().map(Tensor::dims).collect();
            return Err(format!(
                "thresholds {found:?} instead of at most two of {wanted:?}"
            ));
        }
        let rest = State {
            sequence: Vec::new(),
            ..state.clone()
        };
        rest.check_like(like, seen)
    }

    fn merge(
        &self,
        state: &mut State,
        view: &LayerView<'_>,
        split: &Split,
    ) -> Result<Option<Merge>> {
        let [batch, kv_heads, evicted] = split.evicted.dims();
        let kept = split.kept.dims()[2];
        let (keys, values) = (&view.stored_keys.tensor(), &view.stored_values.tensor());
        let dims = [batch, kv_heads, evicted];
        let (best, target) = ops::closest(keys.clone(), split.evicted.clone(), split.kept.clone());

        let threshold = self.threshold(state, &best, split);
        let threshold = threshold.reshape([batch, kv_heads, 1]).expand(dims);
        let too_far = best.clone().lower(threshold);
        let mut weight = best.exp().mask_fill(too_far, 0.0);
        if let Some(left) = &split.left {
            weight = weight.mask_fill(left.clone(), 0.0);
        }

        // All that goes into one entry is averaged at once: the order of the evicted does not matter.
        let totals = Tensor::<3>::full([batch, kv_heads, kept], E, &weight.device());
        let totals = totals.scatter(2, target.clone(), weight.clone(), IndexingUpdateOp::Add);
        let part = weight / totals.gather(2, target.clone());
        if evicted == 1 {
            let slots = split.kept.clone().gather(2, target);
            let part = part.unsqueeze_dim::<4>(3);
            let moved = |all: &Tensor<4>| {
                let of =
                    |slots: &Tensor<3, Int>| ops::take(all.clone(), slots.clone()).cast(DType::F32);
                (of(&split.evicted) - of(&slots)) * part.clone()
            };
            return Ok(Some(Merge {
                keys: Some(moved(keys)),
                values: moved(values),
                slots: Some(slots),
            }));
        }
        let moved = |all: &Tensor<4>| {
            let (evicted, kept) = (split.evicted.clone(), split.kept.clone());
            ops::merge_into(all.clone(), evicted, kept, target.clone(), part.clone())
        };
        Ok(Some(Merge {
            slots: None,
            keys: Some(moved(keys)),
            values: moved(values),
        }))
    }

    #[cfg(feature = "testing")]
    fn oracle(&self) -> Option<&dyn crate::testing::Oracle> {
        Some(self)
    }
}

#[cfg(feature = "testing")]
mod oracle {
    use super::*;
    use crate::testing::{Entry, Head, Oracle, dot, norm};

    impl Oracle for D2o {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            head.entries().iter().map(|entry| entry.sum).collect()
        }

        fn merge(&self, head: &Head<'_>, kept: &[usize], memory: &mut Vec<f64>) -> Vec<Entry> {
            let old = head.entries();
            let cosine = |a: usize, b: usize| {
                let (a, b) = (&old[a].key, &old[b].key);
                dot(a, b) / norm(a) / norm(b)
            };
            let gone = (0..old.len()).filter(|j| !kept.contains(j) && head.sees(&old[*j]));
            let best = |e: usize| {
                let all = kept.iter().map(|&k| (cosine(e, k), k));
                let (u, target) =
                    all.fold((f64::NEG_INFINITY, 0), |best, next| match next.0 >= best.0 {
                        true => next,
                        false => best,
                    });
                (e, u, target)
            };
            let best: Vec<(usize, f64, usize)> = gone.map(best).collect();
            if best.is_empty() {
                return old.to_vec();
            }
            let mean = best.iter().map(|(_, u, _)| u).sum::<f64>() / best.len() as f64;
            let threshold = match memory.first() {
                Some(old) => self.ema * mean + (1.0 - self.ema) * old,
                None => mean,
            };
            *memory = vec![threshold];
            let mut new = old.to_vec();
            for &k in kept {
                let near = best.iter().filter(|gone| gone.2 == k && gone.1 >= threshold);
                let near: Vec<(usize, f64)> = near.map(|gone| (gone.0, gone.1.exp())).collect();
                let e = std::f64::consts::E;
                let total = e + near.iter().map(|(_, w)| w).sum::<f64>();
                let averaged = |of: fn(&Entry) -> &Vec<f64>, c: usize| {
                    let more = near.iter().map(|(i, w)| w * of(&old[*i])[c]).sum::<f64>();
                    (e * of(&old[k])[c] + more) / total
                };
                let channels = 0..old[k].key.len();
                new[k].key = channels
                    .clone()
                    .map(|c| averaged(|entry| &entry.key, c))
                    .collect();
                new[k].value = channels.map(|c| averaged(|entry| &entry.value, c)).collect();
            }
            new
        }
    }
}

impl D2o {
    /// The threshold of each head after the mean over the cosines `best` of what is merged, `[batch, kv_heads, 1, 1]`.
    /// `state.sequence` holds it, and where entries leave a window also whether a head has one yet, 1 or 0: what has left is
    /// no part of the mean, and a head that merges nothing keeps what it has.
    fn threshold(&self, state: &mut State, best: &Tensor<3>, split: &Split) -> Tensor<4> {
        let [batch, kv_heads, _] = best.dims();
        let flat = [batch, kv_heads, 1, 1];
        let Some(left) = &split.left else {
            let mean = best.clone().mean_dim(2).reshape(flat);
            let threshold = match state.sequence.first() {
                Some(old) => {
                    let old = old.clone().mul_scalar((1.0 - self.ema) as f32);
                    mean.mul_scalar(self.ema as f32) + old
                }
                None => mean,
            };
            state.sequence = vec![threshold.clone()];
            return threshold;
        };
        let merged = left.clone().bool_not().float();
        let count = merged.clone().sum_dim(2).reshape(flat);
        let mean = (best.clone() * merged).sum_dim(2).reshape(flat) / count.clone().clamp_min(1.0);
        let nothing = || count.zeros_like();
        let (old, has_old) = match state.sequence.as_slice() {
            [old, has_old] => (old.clone(), has_old.clone()),
            [old] => (old.clone(), count.ones_like()),
            _ => (nothing(), nothing()),
        };
        let part = has_old.clone().mul_scalar((1.0 - self.ema) as f32);
        let new = old.clone() * part.clone() + mean * part.neg().add_scalar(1.0);
        let none = count.equal_elem(0.0);
        let threshold = new.mask_where(none.clone(), old);
        let has_one = has_old.ones_like().mask_where(none, has_old);
        state.sequence = vec![threshold.clone(), has_one];
        threshold
    }
}
