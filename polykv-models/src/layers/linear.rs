use super::Matrix;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use polykv_core::ops::{self, Weight};

/// `y = x Wᵀ`, without bias.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`, the checkpoints' order: the product takes a transposed view, never a copy.
    pub weight: Matrix,
}

impl Linear {
    /// Without values: load into it before use.
    pub fn new(inputs: usize, outputs: usize, device: &Device) -> Self {
        Self {
            weight: Matrix::new(outputs, inputs, device),
        }
    }

    /// `[batch, tokens, in]` → `[batch, tokens, out]`
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        project(x, self.weight.weight())
    }
}

/// `x [batch, tokens, in]` times the transpose of `weight [out, in]`.
pub(super) fn project(x: Tensor<3>, weight: &Weight) -> Tensor<3> {
    let [output] = project_all(x, [weight]);
    output
}

/// The products of `x [batch, tokens, in]` with several weights, by one call.
pub(super) fn project_all<const N: usize>(x: Tensor<3>, weights: [&Weight; N]) -> [Tensor<3>; N] {
    let [batch, tokens, inputs] = x.dims();
    ops::linears(x.reshape([batch * tokens, inputs]), weights).map(|output| {
        let [_, outputs] = output.dims();
        output.reshape([batch, tokens, outputs])
    })
}
