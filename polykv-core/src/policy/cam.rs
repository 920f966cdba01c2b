use super::{
    Appended, LayerView, MOST, Merge, NamedPolicy, Needs, Params, Phase, Policies, Policy, Protect,
    Random, Split, State, check_range,
};
use crate::Result;
use crate::ops;
use burn::tensor::{Int, IntDType, Tensor};
use serde::{Deserialize, Serialize};

/// Keeps the first `sinks` positions and the latest ones, and merges the values of evicted entries into entries that stay
/// (CaM, ICML 2024). Let a be the attention that an entry gets, mean over the query group, and ā the mean of a over the
/// kept entries that are no sinks. With probability min(a / ā, 1) the value of an evicted entry, divided by `window`, is
/// added to each of the next `window` kept positions; otherwise it is dropped. Its key is always dropped. After the prompt
/// a is the mean over the last `window` queries, during decode it is the attention of the current query. The random
/// numbers are a hash of (seed, layer, head, position).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cam {
    /// How many of the latest queries are looked at after the prompt, and how many kept entries receive a merged value.
    pub window: usize,
    /// How many of the first positions always stay.
    pub sinks: usize,
    /// The seed of the random numbers.
    pub seed: u64,
}

impl Default for Cam {
    fn default() -> Self {
        Self {
            window: 32,
            sinks: 4,
            seed: 0,
        }
    }
}

impl NamedPolicy for Cam {
    const NAME: &'static str = "cam";
    const SUMMARY: &'static str =
        "as streaming-llm; evicted values are merged, by chance, into those that follow";
    const SOURCE: Option<&'static str> = Some("CaM, ICML 2024");
    const VARIANTS: &'static [&'static str] = &["{window: 3, sinks: 2, seed: 5}", "{sinks: 0}"];

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        let policy: Self = params.read()?;
        check_range("window", policy.window, 1..=MOST)?;
        check_range("sinks", policy.sinks, 0..=MOST)?;
        Ok(policy)
    }
}

impl Policy for Cam {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        Params::of(self)
    }

    fn needs(&self) -> Needs {
        Needs {
            queries: self.window,
            position_order: true,
            ..Needs::default()
        }
    }

    fn protect(&self, _budget: usize) -> Protect {
        Protect {
            sinks: self.sinks,
            recent: 1,
        }
    }

    fn same_for_all_heads(&self) -> bool {
        true
    }

    fn append(&self, state: &mut State, appended: &Appended) -> Result<()> {
        state.extend_with(Random { seed: self.seed }.hashes(appended));
        Ok(())
    }

    fn score(&self, _state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        Ok(view.positions.clone().float())
    }

    fn merges(&self, _phase: Phase) -> bool {
        true
    }

    fn merge(
        &self,
        state: &mut State,
        view: &LayerView<'_>,
        split: &Split,
    ) -> Result<Option<Merge>> {
        let [batch, kv_heads, entries] = view.positions.dims();
        let d = view.shape.head_dim;
        let [_, _, evicted] = split.evicted.dims();
        let attention = match view.phase {
            Phase::Prefill => {
                let window = self.window.min(view.seen);
                view.window_score(window)?.0.div_scalar(window as f32)
            }
            Phase::Decode => {
                let mean = view.attention_row()?.mean_dim(2);
                mean.reshape([batch, kv_heads, entries])
            }
        };
        let chance = self.chance(&attention, view, split);
        let hashes = state.entries[0].clone().gather(2, split.evicted.clone());
        let mut chosen = hashes.lower(chance);
        if let Some(left) = &split.left {
            chosen = chosen.bool_and(left.clone().bool_not());
        }
        let parts = chosen.float().div_scalar(self.window as f32);
        if evicted > 1 {
            let (values, positions) = (view.stored_values.tensor(), view.positions.clone());
            let (evicted, kept) = (split.evicted.clone(), split.kept.clone());
            return Ok(Some(Merge {
                slots: None,
                keys: None,
                values: ops::spread_into(values, positions, evicted, kept, parts, self.window),
            }));
        }

        // Of one entry only what changes is touched.
        let values = ops::take(view.values(), split.evicted.clone());
        let values = values * parts.unsqueeze_dim::<4>(3);
        let kept = split.kept.dims()[2];
        // burn 0.22.1 reads wrong numbers on wgpu where it fuses two gathers of one tensor into a comparison: the other
        // is of a copy.
        let kept_at = view.positions.clone().gather(2, split.kept.clone()).float();
        let positions = view.positions.clone().float();
        let evicted_at = positions.gather(2, split.evicted.clone());
        let count = self.window.min(kept);
        let dims = [batch, kv_heads, count];
        // The first kept position behind the evicted one; the newest stays, so there is one.
        let before = kept_at
            .clone()
            .lower(evicted_at.expand([batch, kv_heads, kept]));
        let first = kept_at.mask_fill(before, f32::MAX).argmin(2);
        let first = first.cast(IntDType::from(split.kept.dtype())).expand(dims);
        // Near the end there are fewer: the slots must still be different ones.
        let index = Tensor::<1, Int>::arange(0..count as i64, &view.positions.device());
        let index = index.reshape([1, 1, count]).expand(dims);
        let ranks = index + first.clone().clamp_max((kept - count) as i64);
        let earlier = ranks.clone().lower(first).unsqueeze_dim::<4>(3);
        let spread = [batch, kv_heads, count, d];
        Ok(Some(Merge {
            slots: Some(split.kept.clone().gather(2, ranks)),
            keys: None,
            values: values.expand(spread).mask_fill(earlier.expand(spread), 0.0),
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
    use crate::testing::{Entry, Head, Oracle, mean};

    impl Oracle for Cam {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            head.entries()
                .iter()
                .map(|entry| entry.position as f64)
                .collect()
        }

        fn merge(&self, head: &Head<'_>, kept: &[usize], _memory: &mut Vec<f64>) -> Vec<Entry> {
            let window = match head.phase() {
                Phase::Prefill => self.window,
                Phase::Decode => 1,
            };
            let attention = head.group_mean(|member| mean(&head.window(member, window)));
            let old = head.entries();
            let recent = kept.iter().filter(|&&k| old[k].position >= self.sinks);
            let recent: Vec<f64> = recent.map(|&k| attention[k]).collect();
            let mean = recent.iter().sum::<f64>() / recent.len() as f64;
            let chance = Random { seed: self.seed };
            let mut new = old.to_vec();
            for e in (0..old.len()).filter(|j| !kept.contains(j) && head.sees(&old[*j])) {
                let hash = chance.hash(head.layer(), head.head(), old[e].position);
                if f64::from(hash) >= (attention[e] / mean).clamp(0.0, 1.0) {
                    continue;
                }
                for &k in kept.iter().filter(|&&k| k > e).take(self.window) {
                    let value = new[k].value.iter_mut().zip(&old[e].value);
                    value.for_each(|(sum, more)| *sum += more / self.window as f64);
                }
            }
            new
        }
    }
}

impl Cam {
    /// a / ā of the evicted entries, `[batch, kv_heads, evicted]`.
    fn chance(&self, attention: &Tensor<3>, view: &LayerView<'_>, split: &Split) -> Tensor<3> {
        let of = |slots: &Tensor<3, Int>| attention.clone().gather(2, slots.clone());
        let recent = view.positions.clone().gather(2, split.kept.clone());
        let recent = recent.greater_equal_elem(self.sinks as i64).float();
        let count = recent.clone().sum_dim(2).clamp_min(1.0);
        let mean = (of(&split.kept) * recent).sum_dim(2) / count;
        of(&split.evicted) / mean.clamp_min(f32::MIN_POSITIVE)
    }
}
