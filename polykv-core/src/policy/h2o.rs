use super::{Appended, LayerView, NamedPolicy, Needs, Params, Policies, Policy, Protect, State, StepScores, TokenRule, check_range};
use crate::Result;
use crate::ops::{self, AttentionBlock};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Keeps the entries that received the most attention from all queries so far, mean over the query group, and the latest
/// ones (H2O, arXiv 2306.14048).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct H2o {
    /// The fraction of the budget that the latest entries get whatever their score, 0 to 1.
    pub recent_fraction: f64,
    /// Whether the sum is divided by the number of queries that could see the entry.
    pub normalize: bool,
}

impl Default for H2o {
    fn default() -> Self {
        Self {
            recent_fraction: 0.5,
            normalize: false,
        }
    }
}

impl NamedPolicy for H2o {
    const NAME: &'static str = "h2o";
    const SUMMARY: &'static str = "what all queries so far attended to";
    const SOURCE: Option<&'static str> = Some("arXiv 2306.14048");
    const VARIANTS: &'static [&'static str] = &["{}", "{normalize: true, recent_fraction: 0.0}"];

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        let policy: Self = params.read()?;
        check_range("recent_fraction", policy.recent_fraction, 0.0..=1.0)?;
        Ok(policy)
    }
}

impl Policy for H2o {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        Params::of(self)
    }

    fn needs(&self) -> Needs {
        Needs {
            attention: true,
            column_sums: true,
            ..Needs::default()
        }
    }

    fn protect(&self, budget: usize) -> Protect {
        Protect {
            sinks: 0,
            recent: (budget as f64 * self.recent_fraction).floor() as usize,
        }
    }

    fn append(&self, state: &mut State, appended: &Appended) -> Result<()> {
        state.append_lazily(appended);
        Ok(())
    }

    fn observe(&self, state: &mut State, block: &AttentionBlock) -> Result<()> {
        state.observe_sums(block);
        Ok(())
    }

    fn token_rule(&self) -> Option<TokenRule> {
        Some(TokenRule::Sums {
            by_visible: self.normalize,
        })
    }

    fn score(&self, state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        let sums = state.sums();
        match self.normalize {
            true => Ok(ops::by_visible(sums, &view.positions, view.seen)),
            false => Ok(sums),
        }
    }

    fn step_scores(&self, state: &State, view: &LayerView<'_>) -> Result<StepScores> {
        match state.step_sums(self.normalize.then_some(view.seen)) {
            Some(sums) => Ok(StepScores::Sums(sums)),
            None => self.score(state, view).map(StepScores::Given),
        }
    }

    #[cfg(feature = "testing")]
    fn oracle(&self) -> Option<&dyn crate::testing::Oracle> {
        Some(self)
    }
}

#[cfg(feature = "testing")]
mod oracle {
    use super::*;
    use crate::testing::{Entry, Head, Oracle};

    impl Oracle for H2o {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            let entries = head.entries().iter();
            let score = |entry: &Entry| match self.normalize {
                true => entry.sum / (head.seen() - entry.position) as f64,
                false => entry.sum,
            };
            entries.map(score).collect()
        }
    }
}
