use super::{Linear, LoadedWeights, linear};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use polykv_core::ops::{self, Weight};

/// The gated feed-forward network (Shazeer 2020, arXiv 2002.05202): `down(activation(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// The gate projection, `[intermediate, hidden]`.
    pub gate_proj: Linear,
    /// The up projection, `[intermediate, hidden]`.
    pub up_proj: Linear,
    /// The down projection, `[hidden, intermediate]`.
    pub down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

/// What the gate of a feed-forward network goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`; the network is SwiGLU then.
    Silu,
    /// GELU with tanh in place of the error function (Hendrycks and Gimpel 2016, arXiv 1606.08415); GeGLU then.
    GeluTanh,
}

impl Mlp {
    /// A network without values, to load a checkpoint into.
    pub fn new(
        hidden: usize,
        intermediate: usize,
        activation: Activation,
        device: &Device,
    ) -> Self {
        Self {
            gate_proj: Linear::new(hidden, intermediate, device),
            up_proj: Linear::new(hidden, intermediate, device),
            down_proj: Linear::new(intermediate, hidden, device),
            activation,
        }
    }

    /// Runs the network: `[batch, tokens, hidden]` → `[batch, tokens, hidden]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [gate, up] = linear::forward_all(x, [&self.gate_proj, &self.up_proj]);
        self.down_proj.forward(match self.activation {
            Activation::Silu => ops::swiglu(gate, up),
            Activation::GeluTanh => ops::geglu(gate, up),
        })
    }

    pub(super) fn activation(&self) -> Activation {
        self.activation
    }

    /// The weights of gate, up and down.
    pub(super) fn weights(&self) -> [&Weight; 3] {
        [&self.gate_proj, &self.up_proj, &self.down_proj].map(|linear| linear.weight.weight())
    }

    /// Ends the loading of all projections; see [`Matrix::finish_loading`](super::Matrix::finish_loading).
    pub fn finish_loading(&mut self, loaded: &mut LoadedWeights) {
        for linear in [&mut self.gate_proj, &mut self.up_proj, &mut self.down_proj] {
            linear.weight.finish_loading(loaded);
        }
    }
}
