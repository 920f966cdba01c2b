use super::{Checked, LayerView, Params, Policy, Protect, State, params_of};
use crate::Result;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// The first `sinks` positions and the latest ones (StreamingLLM, arXiv 2309.17453). Entries keep their original
/// positions; the original method re-numbers them inside the cache.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamingLlm {
    pub sinks: usize,
}

impl Default for StreamingLlm {
    fn default() -> Self {
        Self { sinks: 4 }
    }
}

impl Checked for StreamingLlm {}

impl Policy for StreamingLlm {
    fn name(&self) -> &'static str {
        "streaming-llm"
    }

    fn params(&self) -> Params {
        params_of(self)
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

    fn score(&self, _state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        Ok(view.positions.clone().float())
    }
}
