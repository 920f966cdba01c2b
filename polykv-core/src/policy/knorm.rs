use super::{Checked, LayerView, Params, Policy, State};
use crate::Result;
use burn::tensor::Tensor;
use serde::Deserialize;

/// Keys of small norm stay: −‖k‖₂ after rotary embedding (Devoto et al., arXiv 2406.11430).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KNorm {}

impl Checked for KNorm {}

impl Policy for KNorm {
    fn name(&self) -> &'static str {
        "knorm"
    }

    fn params(&self) -> Params {
        Params::new()
    }

    fn score(&self, _state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        let keys = view.keys();
        let [batch, kv_heads, entries, _] = keys.dims();
        let squares = keys.square().sum_dim(3);
        Ok(squares.sqrt().neg().reshape([batch, kv_heads, entries]))
    }
}
