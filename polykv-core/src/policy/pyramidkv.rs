use super::{Checked, LayerView, Needs, Params, Policy, Protect, SnapKv, State, params_of};
use crate::Result;
use crate::ops::Pool;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// The score of [`SnapKv`] with a smaller window (PyramidKV, arXiv 2406.02069). What the method adds, more entries for
/// lower layers, is an allocator's part.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PyramidKv {
    pub window: usize,
    /// Width of the pooling, odd; 1 turns it off.
    pub kernel: usize,
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

impl Checked for PyramidKv {
    fn check(&self) -> std::result::Result<(), String> {
        self.scorer().check()
    }
}

impl Policy for PyramidKv {
    fn name(&self) -> &'static str {
        "pyramidkv"
    }

    fn params(&self) -> Params {
        params_of(self)
    }

    fn needs(&self) -> Needs {
        self.scorer().needs()
    }

    fn protect(&self, budget: usize) -> Protect {
        self.scorer().protect(budget)
    }

    fn score(&self, state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        self.scorer().score(state, view)
    }
}
