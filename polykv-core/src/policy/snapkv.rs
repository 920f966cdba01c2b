use super::{LayerView, MOST, NamedPolicy, Needs, Params, Policies, Policy, Protect, State, TokenRule, check_odd, check_range};
use crate::Result;
use crate::ops::Pool;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Keeps the entries that the last `window` queries attend to most (SnapKV, arXiv 2404.14469). The score of an entry is the
/// sum of its attention over these queries, mean over the query group, then pooled over `kernel` neighbouring positions.
/// The latest `window` entries always stay.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapKv {
    /// How many of the latest queries are looked at, and how many of the latest entries always stay.
    pub window: usize,
    /// How many neighbouring positions are pooled, odd; 1 turns pooling off.
    pub kernel: usize,
    /// How neighbours are pooled.
    pub pool: Pool,
}

impl Default for SnapKv {
    fn default() -> Self {
        Self {
            window: 32,
            kernel: 7,
            pool: Pool::Max,
        }
    }
}

impl NamedPolicy for SnapKv {
    const NAME: &'static str = "snapkv";
    const SUMMARY: &'static str = "what the last queries attend to, pooled over neighbours";
    const SOURCE: Option<&'static str> = Some("arXiv 2404.14469");
    const VARIANTS: &'static [&'static str] = &[
        "{window: 4, kernel: 3}",
        "{window: 5, kernel: 5, pool: avg}",
        "{window: 3, kernel: 1}",
    ];

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        let policy: Self = params.read()?;
        check_range("window", policy.window, 1..=MOST)?;
        check_odd("kernel", policy.kernel)?;
        Ok(policy)
    }
}

impl Policy for SnapKv {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        Params::of(self)
    }

    fn needs(&self) -> Needs {
        Needs {
            queries: self.window,
            position_order: true,
            ..Needs::default()
        }
    }

    fn protect(&self, _budget: usize) -> Protect {
        Protect {
            sinks: 0,
            recent: self.window,
        }
    }

    fn token_rule(&self) -> Option<TokenRule> {
        Some(TokenRule::Forgets)
    }

    fn score(&self, _state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        let (sums, _) = view.window_score(self.window)?;
        let window = self.window.min(view.seen);
        Ok(view.pool_before(sums, window, self.kernel, self.pool))
    }

    #[cfg(feature = "testing")]
    fn oracle(&self) -> Option<&dyn crate::testing::Oracle> {
        Some(self)
    }
}

#[cfg(feature = "testing")]
mod oracle {
    use super::*;
    use crate::testing::{Head, Oracle, mean, pooled};

    impl Oracle for SnapKv {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            let window = self.window.min(head.seen());
            let sums = head.group_mean(|member| {
                let mean = mean(&head.window(member, window)).into_iter();
                mean.map(|x| x * window as f64).collect()
            });
            pooled(&sums, window, self.kernel, self.pool)
        }
    }
}
