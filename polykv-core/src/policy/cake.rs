use super::{Checked, LayerView, Needs, Params, Phase, Policy, Protect, State, params_of};
use crate::Result;
use crate::ops::Pool;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Attention of the last `window` queries, its mean and `gamma` times its variance over them, mean over the query
/// group, averaged over neighbouring positions; the window itself always stays. During decode the attention of the
/// current query alone (CAKE, arXiv 2503.12491). What the method adds, budgets by each layer's attention, is an
/// allocator's part.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cake {
    pub window: usize,
    /// Width of the pooling, odd; 1 turns it off.
    pub kernel: usize,
    /// Weight of the variance.
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

impl Checked for Cake {
    fn check(&self) -> std::result::Result<(), String> {
        if self.window == 0 {
            return Err("window at least 1".into());
        }
        if self.kernel.is_multiple_of(2) || self.kernel > 1023 {
            return Err("kernel odd, at most 1023".into());
        }
        if !(0.0..=1e6).contains(&self.gamma) {
            return Err("gamma from 0 to 1e6".into());
        }
        Ok(())
    }
}

impl Policy for Cake {
    fn name(&self) -> &'static str {
        "cake"
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
}
