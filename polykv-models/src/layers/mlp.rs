use super::{Linear, linear};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use polykv_core::ops::{self, Weight};

/// The SwiGLU feed-forward network: down(silu(gate(x)) · up(x)).
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[intermediate, hidden]`
    pub gate_proj: Linear,
    /// `[intermediate, hidden]`
    pub up_proj: Linear,
    /// `[hidden, intermediate]`
    pub down_proj: Linear,
}

impl Mlp {
    /// Without values: load into it before use.
    pub fn new(hidden: usize, intermediate: usize, device: &Device) -> Self {
        Self {
            gate_proj: Linear::new(hidden, intermediate, device),
            up_proj: Linear::new(hidden, intermediate, device),
            down_proj: Linear::new(intermediate, hidden, device),
        }
    }

    /// `[batch, tokens, hidden]` → `[batch, tokens, hidden]`
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [gate, up, _] = self.weights();
        let [gate, up] = linear::project_all(x, [gate, up]);
        self.down_proj.forward(ops::swiglu(gate, up))
    }

    /// Of gate, up and down.
    pub(super) fn weights(&self) -> [&Weight; 3] {
        [&self.gate_proj, &self.up_proj, &self.down_proj].map(|linear| linear.weight.weight())
    }

    /// Ends loading, see [`Matrix::finish_loading`](super::Matrix::finish_loading).
    pub fn finish_loading(&mut self) {
        for linear in [&mut self.gate_proj, &mut self.up_proj, &mut self.down_proj] {
            linear.weight.finish_loading();
        }
    }
}
