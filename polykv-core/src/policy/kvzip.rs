use super::h2o::append_sums;
use super::{
    Appended, LayerView, MOST, NamedPolicy, Needs, Params, Policies, Policy, Protect, State,
    check_range,
};
use crate::Result;
use crate::ops::AttentionBlock;
use crate::shape::LayerShape;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Keeps what is needed to say the prompt again (KVzip, arXiv 2505.23416): after the prompt its tokens run a second time with
/// all entries in sight, and the score of an entry is the most attention that any of these queries and any head of the query
/// group pays it. So the choice does not depend on a question at the prompt's end, and suits prompts that are compressed once
/// and asked about later. The first `sinks` and the latest `recent` entries always stay.
///
/// The repetition costs about two more runs of the prompt. In the decode phase the prompt's entries keep their scores and
/// those of generated tokens have none, so that beside the prompt's the latest stay.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KvZip {
    /// How many of the first entries always stay.
    pub sinks: usize,
    /// How many of the latest entries always stay.
    pub recent: usize,
}

impl Default for KvZip {
    fn default() -> Self {
        Self {
            sinks: 4,
            recent: 16,
        }
    }
}

impl NamedPolicy for KvZip {
    const NAME: &'static str = "kvzip";
    const SUMMARY: &'static str = "what repeating the prompt attends to";
    const SOURCE: Option<&'static str> = Some("arXiv 2505.23416");
    const VARIANTS: &'static [&'static str] =
        &["{sinks: 1, recent: 3}", "{sinks: 0, recent: 0}"];

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        let policy: Self = params.read()?;
        check_range("sinks", policy.sinks, 0..=MOST)?;
        check_range("recent", policy.recent, 0..=MOST)?;
        Ok(policy)
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
        append_sums(state, appended);
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

    fn score(&self, state: &State, _view: &LayerView<'_>) -> Result<Tensor<3>> {
        Ok(state.entries[0].clone())
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
            let entries = head.entries().iter();
            entries.map(|entry| entry.repeated).collect()
        }
    }
}
