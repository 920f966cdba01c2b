use super::{LayerView, MOST, NamedPolicy, Params, Policies, Policy, Protect, State, StepScores, TokenRule, check_range};
use crate::Result;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Keeps the first `sinks` positions and the latest ones (StreamingLLM, arXiv 2309.17453). Keys keep the rotation of their
/// original positions; the paper rotates them by their place in the cache instead.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamingLlm {
    /// How many of the first positions always stay.
    pub sinks: usize,
}

impl Default for StreamingLlm {
    fn default() -> Self {
        Self { sinks: 4 }
    }
}

impl NamedPolicy for StreamingLlm {
    const NAME: &'static str = "streaming-llm";
    const SUMMARY: &'static str = "the first positions and the latest";
    const SOURCE: Option<&'static str> = Some("arXiv 2309.17453");
    const VARIANTS: &'static [&'static str] = &["{sinks: 3}"];

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        let policy: Self = params.read()?;
        check_range("sinks", policy.sinks, 0..=MOST)?;
        Ok(policy)
    }
}

impl Policy for StreamingLlm {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        Params::of(self)
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

    fn token_rule(&self) -> Option<TokenRule> {
        Some(TokenRule::Positions)
    }

    fn score(&self, _state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        Ok(StepScores::Positions.tensor(&view.positions))
    }

    fn step_scores(&self, _state: &State, _view: &LayerView<'_>) -> Result<StepScores> {
        Ok(StepScores::Positions)
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

    impl Oracle for StreamingLlm {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            head.entries()
                .iter()
                .map(|entry| entry.position as f64)
                .collect()
        }
    }
}
