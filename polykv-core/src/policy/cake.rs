use super::{LayerView, MOST, NamedPolicy, Needs, Params, Phase, Policies, Policy, Protect, State, TokenRule, check_odd, check_range};
use crate::Result;
use crate::ops::Pool;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Keeps the entries that the last `window` queries attend to most or most unevenly (CAKE, arXiv 2503.12491). The score of
/// an entry is the mean of its attention over these queries plus `gamma` times the variance, mean over the query group,
/// then averaged over `kernel` neighbouring positions. During decode it is the attention of the current query alone. The
/// latest `window` entries always stay.
///
/// The paper also gives each layer a budget by its attention; that is
/// [`CakeAllocator`](crate::allocate::CakeAllocator).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cake {
    /// How many of the latest queries are looked at, and how many of the latest entries always stay.
    pub window: usize,
    /// How many neighbouring positions are pooled, odd; 1 turns pooling off.
    pub kernel: usize,
    /// The factor of the variance.
    pub gamma: f64,
}

impl Default for Cake {
    fn default() -> Self {
        Self {
            window: 32,
            kernel: 5,
            gamma: 200.0,
        }
    }
}

impl NamedPolicy for Cake {
    const NAME: &'static str = "cake";
    const SUMMARY: &'static str =
        "mean and variance of the last queries' attention; in decode the current query's";
    const SOURCE: Option<&'static str> = Some("arXiv 2503.12491");
    const VARIANTS: &'static [&'static str] = &[
        "{window: 4, kernel: 3}",
        "{window: 3, kernel: 1, gamma: 5.0}",
    ];

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        let policy: Self = params.read()?;
        check_range("window", policy.window, 1..=MOST)?;
        check_odd("kernel", policy.kernel)?;
        check_range("gamma", policy.gamma, 0.0..=1e6)?;
        Ok(policy)
    }
}

impl Policy for Cake {
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
        let window = self.window.min(view.seen);
        let scores = match view.phase {
            Phase::Prefill => {
                let (sums, variances) = view.window_score(window)?;
                sums.div_scalar(window as f32) + variances.mul_scalar(self.gamma as f32)
            }
            Phase::Decode => {
                let row = view.attention_row()?;
                let [batch, kv_heads, _, entries] = row.dims();
                row.mean_dim(2).reshape([batch, kv_heads, entries])
            }
        };
        Ok(view.pool_before(scores, window, self.kernel, Pool::Avg))
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

    impl Oracle for Cake {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            let window = self.window.min(head.seen());
            let scores = head.group_mean(|member| match head.phase() {
                Phase::Decode => head.attention(member, head.seen() - 1),
                Phase::Prefill => {
                    let rows = head.window(member, window);
                    let means = mean(&rows);
                    let variance = |j: usize| {
                        let squares = rows.iter().map(|row| (row[j] - means[j]).powi(2));
                        squares.sum::<f64>() / (window.max(2) - 1) as f64
                    };
                    let each = means.iter().enumerate();
                    each.map(|(j, mean)| mean + self.gamma * variance(j))
                        .collect()
                }
            });
            pooled(&scores, window, self.kernel, Pool::Avg)
        }
    }
}
