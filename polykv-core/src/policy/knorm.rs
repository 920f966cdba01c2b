use super::{LayerView, NamedPolicy, Params, Policies, Policy, State, TokenRule};
use crate::{Result, ops};
use burn::tensor::Tensor;
use serde::Deserialize;

/// Keeps the keys of the smallest norm (Devoto et al., arXiv 2406.11430). The score of an entry is −‖k‖₂ of its key after
/// rotary embedding.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KNorm {}

impl NamedPolicy for KNorm {
    const NAME: &'static str = "knorm";
    const SUMMARY: &'static str = "keys of small norm";
    const SOURCE: Option<&'static str> = Some("arXiv 2406.11430");

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        params.read()
    }
}

impl Policy for KNorm {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        Params::new()
    }

    fn token_rule(&self) -> Option<TokenRule> {
        Some(TokenRule::Forgets)
    }

    fn score(&self, _state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        Ok(ops::key_norms(view.stored_keys.tensor()).neg())
    }

    #[cfg(feature = "testing")]
    fn oracle(&self) -> Option<&dyn crate::testing::Oracle> {
        Some(self)
    }
}

#[cfg(feature = "testing")]
mod oracle {
    use super::*;
    use crate::testing::{Head, Oracle, norm};

    impl Oracle for KNorm {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            head.entries().iter().map(|entry| -norm(&entry.key)).collect()
        }
    }
}
