use super::{Linear, LoadedWeights, linear};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use polykv_core::ops::{self, Weight};

/// The SwiGLU feed-forward network (Shazeer 2020, arXiv 2002.05202): `down(silu(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// The gate projection, `[intermediate, hidden]`.
    pub gate_proj: Linear,
    /// The up projection, `[intermediate, hidden]`.
    pub up_proj: Linear,
    /// The down projection, `[hidden, intermediate]`.
    pub down_proj: Linear,
}

impl Mlp {
    /// A network without values, to load a checkpoint into.
    pub fn new(hidden: usize, intermediate: usize, device: &Device) -> Self {
        Self {
            gate_proj: Linear::new(hidden, intermediate, device),
            up_proj: Linear::new(hidden, intermediate, device),
            down_proj: Linear::new(intermediate, hidden, device),
        }
    }

    /// Runs the network: `[batch, tokens, hidden]` → `[batch, tokens, hidden]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [gate, up, _] = self.weights();
        let [gate, up] = linear::project_all(x, [gate, up]);
        self.down_proj.forward(ops::swiglu(gate, up))
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
