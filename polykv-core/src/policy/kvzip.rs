use super::{Appended, LayerView, MOST, NamedPolicy, Needs, Params, Policies, Policy, Protect, SnapKv, State, TokenRule, check_odd, check_range};
use crate::Result;
use crate::ops::{AttentionBlock, Pool};
use crate::shape::LayerShape;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Keeps what is needed to say the prompt again (KVzip, arXiv 2505.23416): after the prompt its tokens run a second time with
/// all entries in sight, and an entry counts by the most attention that any of these queries and any head of the query group
/// pays it. That does not depend on a question at the prompt's end, and suits prompts that are compressed once and asked about
/// later. Beyond the paper the score adds what [`SnapKv`] sees, the sum of the attention of the last `window`
/// queries, mean over the query group, pooled by the maximum of `kernel` neighbours; a window of 0 adds nothing. The first
/// `sinks` and the latest `recent` entries always stay.
///
/// The repetition takes as long as two to three more runs of the prompt. In the decode phase the prompt's entries keep what
/// the repetition gave them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KvZip {
    /// How many of the first entries always stay.
    pub sinks: usize,
    /// How many of the latest entries always stay.
    pub recent: usize,
    /// How many of the latest queries are looked at beside the repetition.
    pub window: usize,
    /// How many neighbouring positions are pooled in what these queries see, odd; 1 turns pooling off.
    pub kernel: usize,
}

impl Default for KvZip {
    fn default() -> Self {
        Self {
            sinks: 4,
            recent: 16,
            window: 16,
            kernel: 7,
        }
    }
}

impl NamedPolicy for KvZip {
    const NAME: &'static str = "kvzip";
    const SUMMARY: &'static str = "what repeating the prompt attends to";
    const SOURCE: Option<&'static str> = Some("arXiv 2505.23416");
    const VARIANTS: &'static [&'static str] =
        &["{sinks: 1, recent: 3, window: 4, kernel: 3}", "{sinks: 0, recent: 0, window: 0}"];

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        let policy: Self = params.read()?;
        check_range("sinks", policy.sinks, 0..=MOST)?;
        check_range("recent", policy.recent, 0..=MOST)?;
        check_range("window", policy.window, 0..=MOST)?;
        check_odd("kernel", policy.kernel)?;
        Ok(policy)
    }
}

impl KvZip {
    /// What looks at the last queries.
    fn window(&self) -> SnapKv {
        SnapKv {
            window: self.window,
            kernel: self.kernel,
            pool: Pool::Max,
        }
    }
}

impl Policy for KvZip {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        Params::of(self)
    }

    fn needs(&self) -> Needs {
        Needs {
            repetition: true,
            queries: self.window,
            position_order: self.window > 0,
            ..Needs::default()
        }
    }

    fn bytes_per_entry(&self, _shape: LayerShape) -> usize {
        size_of::<f32>()
    }

    fn protect(&self, _budget: usize) -> Protect {
        Protect {
            sinks: self.sinks,
            recent: self.recent,
        }
    }

    fn append(&self, state: &mut State, appended: &Appended) -> Result<()> {
        state.append_zeros(appended);
        Ok(())
    }

    fn observe_repetition(&self, state: &mut State, block: &AttentionBlock) -> Result<()> {
        let most = block.column_max();
        let known = &mut state.entries[0];
        let [batch, kv_heads, entries] = known.dims();
        let missing = entries.saturating_sub(most.dims()[2]);
        let most = match missing {
            0 => most.narrow(2, 0, entries),
            _ => {
                let none = Tensor::zeros([batch, kv_heads, missing], &most.device());
                Tensor::cat(vec![most, none], 2)
            }
        };
        known.inplace(|known| known.max_pair(most));
        Ok(())
    }

    fn token_rule(&self) -> Option<TokenRule> {
        Some(TokenRule::Forgets)
    }

    fn score(&self, state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        let repeated = state.entries[0].clone();
        if self.window == 0 {
            return Ok(repeated);
        }
        Ok(repeated + self.window().score(state, view)?)
    }

    #[cfg(feature = "testing")]
    fn oracle(&self) -> Option<&dyn crate::testing::Oracle> {
        Some(self)
    }
}

#[cfg(feature = "testing")]
mod oracle {
    use super::*;
    use crate::testing::{Head, Oracle};

    impl Oracle for KvZip {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            let repeated = head.entries().iter().map(|entry| entry.repeated);
            if self.window == 0 {
                return repeated.collect();
            }
            let seen = self.window().scores(head);
            repeated.zip(seen).map(|(a, b)| a + b).collect()
        }
    }
}
