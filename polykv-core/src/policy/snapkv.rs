use super::{Checked, LayerView, Needs, Params, Policy, Protect, State, params_of};
use crate::Result;
use crate::ops::Pool;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Attention of the last `window` queries summed over the window, mean over the query group, pooled over
/// neighbouring positions; the window itself always stays (SnapKV, arXiv 2404.14469).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapKv {
    pub window: usize,
    /// Width of the pooling, odd; 1 turns it off.
    pub kernel: usize,
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

impl Checked for SnapKv {
    fn check(&self) -> std::result::Result<(), String> {
        if self.window == 0 {
            return Err("window at least 1".into());
        }
        if self.kernel.is_multiple_of(2) || self.kernel > 1023 {
            return Err("kernel odd, at most 1023".into());
        }
        Ok(())
    }
}

impl Policy for SnapKv {
    fn name(&self) -> &'static str {
        "snapkv"
    }

    fn params(&self) -> Params {
        params_of(self)
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

    fn score(&self, _state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        let (sums, _) = view.window_score(self.window)?;
        let window = self.window.min(view.seen);
        Ok(view.pool_before(sums, window, self.kernel, self.pool))
    }
}
