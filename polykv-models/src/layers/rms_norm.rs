use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use polykv_core::ops;

/// Root-mean-square normalisation over the last axis (Zhang and Sennrich 2019, arXiv 1910.07467): `x / sqrt(mean(x²) +
/// eps) · weight`.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// The gain, `[size]`.
    pub weight: Param<Tensor<1>>,
    pub(super) eps: f64,
}

impl RmsNorm {
    /// A norm without values, to load a checkpoint into. `eps` is added to the mean square.
    pub fn new(size: usize, eps: f64, device: &Device) -> Self {
        Self {
            weight: super::parameter([size], device),
            eps,
        }
    }

    /// Normalises the last axis: `[.., size]` → `[.., size]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::rms_norm(x, self.weight.val(), self.eps)
    }
}
