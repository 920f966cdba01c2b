use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use polykv_core::ops;

/// Root-mean-square normalisation over the last axis.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[size]`
    pub weight: Param<Tensor<1>>,
    pub(super) eps: f64,
}

impl RmsNorm {
    /// Without values: load into it before use. `eps` is added to the mean square.
    pub fn new(size: usize, eps: f64, device: &Device) -> Self {
        Self {
            weight: super::parameter([size], device),
            eps,
        }
    }

    /// `[.., size]` → `[.., size]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::rms_norm(x, self.weight.val(), self.eps)
    }
}
