use super::Matrix;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use polykv_core::ops::{self, Weight};

/// A linear projection without bias, `y = x Wᵀ`.
#[derive(Module, Debug)]
pub struct Linear {
    /// The weight `[out, in]`, in the order of checkpoints. The product reads it transposed without a copy.
    pub weight: Matrix,
}

impl Linear {
    /// A projection without values, to load a checkpoint into.
    pub fn new(inputs: usize, outputs: usize, device: &Device) -> Self {
        Self {
            weight: Matrix::new(outputs, inputs, device),
        }
    }

    /// Applies the projection: `[batch, tokens, in]` → `[batch, tokens, out]`.
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
