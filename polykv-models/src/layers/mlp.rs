use super::{Linear, RmsNorm};
use burn::module::Module;
use burn::tensor::Device;
use polykv_core::ops::AfterAttention;

/// The gated feed-forward block: `down(silu(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub struct Mlp {
    pub gate_proj: Linear,
    pub up_proj: Linear,
    pub down_proj: Linear,
}

impl Mlp {
    pub fn new(hidden: usize, intermediate: usize, device: &Device) -> Self {
        Self {
            gate_proj: Linear::new(hidden, intermediate, device),
            up_proj: Linear::new(hidden, intermediate, device),
            down_proj: Linear::new(intermediate, hidden, device),
        }
    }

    /// With what lies between it and attention, as operators take them.
    pub fn weights(&self, projection: &Linear, norm: &RmsNorm) -> AfterAttention {
        AfterAttention {
            projection: projection.weight.val(),
            norm: norm.weight.val(),
            gate: self.gate_proj.weight.val(),
            up: self.up_proj.weight.val(),
            down: self.down_proj.weight.val(),
            eps: norm.eps,
        }
    }
}
