use super::Matrix;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use polykv_core::ops::{self, Weight};

/// A linear projection, `y = x Wᵀ + b`.
#[derive(Module, Debug)]
pub struct Linear {
    /// The weight `[out, in]`, in the order of checkpoints. The product reads it transposed without a copy.
    pub weight: Matrix,
    /// The bias `[out]`; absent in most projections.
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// A projection without values, to load a checkpoint into, and without bias.
    pub fn new(inputs: usize, outputs: usize, device: &Device) -> Self {
        Self {
            weight: Matrix::new(outputs, inputs, device),
            bias: None,
        }
    }

    /// A projection with a bias, without values, to load a checkpoint into.
    pub fn with_bias(inputs: usize, outputs: usize, device: &Device) -> Self {
        Self {
            bias: Some(super::parameter([outputs], device)),
            ..Self::new(inputs, outputs, device)
        }
    }

    /// Applies the projection: `[batch, tokens, in]` → `[batch, tokens, out]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [output] = forward_all(x, [self]);
        output
    }
}

/// The projections of `x [batch, tokens, in]`, by one call.
pub(super) fn forward_all<const N: usize>(x: Tensor<3>, linears: [&Linear; N]) -> [Tensor<3>; N] {
    let mut biases = linears.iter().map(|linear| linear.bias.as_ref());
    project_all(x, linears.map(|linear| linear.weight.weight())).map(|output| {
        match biases.next().flatten() {
            Some(bias) => output + bias.val().unsqueeze(),
            None => output,
        }
    })
}

/// `x [batch, tokens, in]` times the transpose of `weight [out, in]`.
pub(super) fn project(x: Tensor<3>, weight: &Weight) -> Tensor<3> {
    let [output] = project_all(x, [weight]);
    output
}

/// The products of `x [batch, tokens, in]` with several weights, by one call.
fn project_all<const N: usize>(x: Tensor<3>, weights: [&Weight; N]) -> [Tensor<3>; N] {
    let [batch, tokens, inputs] = x.dims();
    ops::linears(x.reshape([batch * tokens, inputs]), weights).map(|output| {
        let [_, outputs] = output.dims();
        output.reshape([batch, tokens, outputs])
    })
}
