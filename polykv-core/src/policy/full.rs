use super::{Checked, LayerView, Params, Policy, State};
use crate::{Error, Result};
use burn::tensor::Tensor;
use serde::Deserialize;

/// Keeps everything (FullKV).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Full {}

impl Checked for Full {}

impl Policy for Full {
    fn name(&self) -> &'static str {
        "full"
    }

    fn params(&self) -> Params {
        Params::new()
    }

    fn evicts(&self) -> bool {
        false
    }

    fn same_for_all_heads(&self) -> bool {
        true
    }

    fn score(&self, _state: &State, _view: &LayerView<'_>) -> Result<Tensor<3>> {
        Err(Error::Failed(
            "policy full evicts nothing and has no scores".into(),
        ))
    }
}
