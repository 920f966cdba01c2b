use super::{Checked, LayerView, Params, Policy, State};
use crate::{Result, ops};
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
        Ok(ops::key_norms(view.stored_keys.clone()).neg())
    }
}
