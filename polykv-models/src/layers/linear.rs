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

    /// As [`Linear::forward`] for several of one input, which is cheaper than one after the other.
    pub fn forward_all<const N: usize>(linears: [&Self; N], x: Tensor<3>) -> [Tensor<3>; N] {
        project_all(x, linears.map(|linear| linear.weight.val()))
    }
}

/// `x [batch, tokens, in]` times the transpose of `weight [out, in]`.
pub(super) fn project(x: Tensor<3>, weight: Tensor<2>) -> Tensor<3> {
    let [output] = project_all(x, [weight]);
    output
}

/// As [`project`] for several weights of one input.
fn project_all<const N: usize>(x: Tensor<3>, weights: [Tensor<2>; N]) -> [Tensor<3>; N] {
    let [batch, tokens, inputs] = x.dims();
    ops::linears(x.reshape([batch * tokens, inputs]), weights).map(|output| {
        let [_, outputs] = output.dims();
        output.reshape([batch, tokens, outputs])
    })
}
