use super::{LayerView, MOST, NamedPolicy, Needs, Params, Policies, Policy, Protect, SnapKv, State, TokenRule, check_odd, check_range};
use crate::Result;
use crate::ops::Pool;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Keeps the entries that the last `window` queries attend to most, pooled over `kernel` neighbouring positions (PyramidKV,
/// arXiv 2406.02069). The score is that of SnapKV (see [`SnapKv`]); the default window is smaller.
///
/// The paper also gives lower layers larger budgets; that is [`PyramidAllocator`](crate::allocate::PyramidAllocator).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PyramidKv {
    /// How many of the latest queries are looked at, and how many of the latest entries always stay.
    pub window: usize,
    /// How many neighbouring positions are pooled, odd; 1 turns pooling off.
    pub kernel: usize,
    /// How neighbours are pooled.
    pub pool: Pool,
}

impl Default for PyramidKv {
    fn default() -> Self {
        Self {
            window: 8,
            kernel: 7,
            pool: Pool::Max,
        }
    }
}

impl PyramidKv {
    fn scorer(&self) -> SnapKv {
        SnapKv {
            window: self.window,
            kernel: self.kernel,
            pool: self.pool,
        }
    }
}

impl NamedPolicy for PyramidKv {
    const NAME: &'static str = "pyramidkv";
    const SUMMARY: &'static str = "as snapkv, with a smaller window";
    const SOURCE: Option<&'static str> = Some("arXiv 2406.02069");
    const VARIANTS: &'static [&'static str] = &["{window: 4, kernel: 3}"];

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        let policy: Self = params.read()?;
        check_range("window", policy.window, 1..=MOST)?;
        check_odd("kernel", policy.kernel)?;
        Ok(policy)
    }
}

impl Policy for PyramidKv {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        Params::of(self)
    }

    fn needs(&self) -> Needs {
        self.scorer().needs()
    }

    fn protect(&self, budget: usize) -> Protect {
        self.scorer().protect(budget)
    }

    fn token_rule(&self) -> Option<TokenRule> {
        Some(TokenRule::Forgets)
    }

    fn score(&self, state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        self.scorer().score(state, view)
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

    impl Oracle for PyramidKv {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            self.scorer().scores(head)
        }
    }
}
