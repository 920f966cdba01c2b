use super::{LayerView, MOST, NamedPolicy, Needs, Params, Policies, Policy, Protect, State, StepScores, TokenRule, check_range};
use crate::Result;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Keeps the entries that the last query attends to most (TOVA, arXiv 2401.06104). The score of an entry is the mean of its
/// attention over all query heads, so that all KV heads of a layer keep the same positions. If the KV heads already hold
/// different positions, because another policy evicted in the prefill, the mean is over the query group of each KV head.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tova {
    /// How many of the latest entries always stay.
    pub protect_last: usize,
}

impl NamedPolicy for Tova {
    const NAME: &'static str = "tova";
    const SUMMARY: &'static str = "what the last query attends to, one set for all heads";
    const SOURCE: Option<&'static str> = Some("arXiv 2401.06104");
    const VARIANTS: &'static [&'static str] = &["{}", "{protect_last: 2}"];

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        let policy: Self = params.read()?;
        check_range("protect_last", policy.protect_last, 0..=MOST)?;
        Ok(policy)
    }
}

impl Policy for Tova {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        Params::of(self)
    }

    fn needs(&self) -> Needs {
        Needs {
            queries: 1,
            ..Needs::default()
        }
    }

    fn protect(&self, _budget: usize) -> Protect {
        Protect {
            sinks: 0,
            recent: self.protect_last,
        }
    }

    fn same_for_all_heads(&self) -> bool {
        true
    }

    fn token_rule(&self) -> Option<TokenRule> {
        Some(TokenRule::MeanOfHeads)
    }

    fn score(&self, state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        Ok(self.step_scores(state, view)?.tensor(&view.positions))
    }

    fn step_scores(&self, _state: &State, view: &LayerView<'_>) -> Result<StepScores> {
        let row = view.attention_row()?;
        // After an eviction per head, one slot holds another position in each head: no mean over them makes sense.
        Ok(match view.heads_agree {
            true => StepScores::MeanOfHeads(row),
            false => StepScores::MeanOfGroup(row),
        })
    }

    #[cfg(feature = "testing")]
    fn oracle(&self) -> Option<&dyn crate::testing::Oracle> {
        Some(self)
    }
}

#[cfg(feature = "testing")]
mod oracle {
    use super::*;
    use crate::testing::{GROUP, Head, Oracle, mean};

    impl Oracle for Tova {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            let last = head.seen() - 1;
            let rows: Vec<Vec<f64>> = match head.heads_agree() {
                true => head.all().flat_map(|head| rows(head, last)).collect(),
                false => rows(*head, last).collect(),
            };
            mean(&rows)
        }
    }

    fn rows(head: Head<'_>, position: usize) -> impl Iterator<Item = Vec<f64>> {
        (0..GROUP).map(move |member| head.attention(member, position))
    }
}
