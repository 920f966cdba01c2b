use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use polykv_core::ops;

/// `y = x Wᵀ`, without bias.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`, the checkpoints' order: the product takes a transposed view, never a copy.
    pub weight: Param<Tensor<2>>,
}

impl Linear {
    pub fn new(inputs: usize, outputs: usize, device: &Device) -> Self {
        Self {
            weight: super::weight([outputs, inputs], device),
        }
    }

    /// `[batch, tokens, in]` → `[batch, tokens, out]`
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        project(x, self.weight.val())
    }
}

/// `x [batch, tokens, in]` times the transpose of `weight [out, in]`.
pub(super) fn project(x: Tensor<3>, weight: Tensor<2>) -> Tensor<3> {
    let [batch, tokens, inputs] = x.dims();
    let [outputs, _] = weight.dims();
    ops::linear(x.reshape([batch * tokens, inputs]), weight).reshape([batch, tokens, outputs])
}
