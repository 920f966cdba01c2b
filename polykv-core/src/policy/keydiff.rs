use super::{LayerView, NamedPolicy, Params, Policies, Policy, State, TokenRule};
use crate::{Result, ops};
use burn::tensor::Tensor;
use serde::Deserialize;

/// Keeps the keys that differ most from the others (KeyDiff, arXiv 2504.15364). The score of an entry is the negative cosine
/// between its key and the mean of the KV head's keys, each scaled to unit norm.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyDiff {}

impl NamedPolicy for KeyDiff {
    const NAME: &'static str = "keydiff";
    const SUMMARY: &'static str = "keys that differ from the others";
    const SOURCE: Option<&'static str> = Some("arXiv 2504.15364");

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        params.read()
    }
}

impl Policy for KeyDiff {
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
        let keys = view.stored_keys.tensor();
        let norms = ops::key_norms(keys.clone());
        // The mean of the unit keys up to a factor, which cosines do not see.
        let weights = norms.clone().clamp_min(1e-12).recip().unsqueeze_dim::<4>(2);
        let anchor = ops::matmul(weights, view.keys());
        Ok(ops::key_cosines(keys, norms, anchor).neg())
    }

    #[cfg(feature = "testing")]
    fn oracle(&self) -> Option<&dyn crate::testing::Oracle> {
        Some(self)
    }
}

#[cfg(feature = "testing")]
mod oracle {
    use super::*;
    use crate::testing::{Head, Oracle, dot, mean, norm};

    impl Oracle for KeyDiff {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            let units: Vec<Vec<f64>> = head
                .entries()
                .iter()
                .map(|entry| entry.key.iter().map(|x| x / norm(&entry.key)).collect())
                .collect();
            let anchor = mean(&units);
            let length = norm(&anchor);
            units
                .iter()
                .map(|unit| -dot(unit, &anchor) / length)
                .collect()
        }
    }
}
