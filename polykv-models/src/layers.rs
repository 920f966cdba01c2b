//! The building blocks that model families share. Field names spell the checkpoints' tensor names.

mod attention;
mod embedding;
mod linear;
mod mlp;
mod rms_norm;
mod rope;

pub use attention::Attention;
pub use embedding::Embedding;
pub use linear::Linear;
pub use mlp::Mlp;
pub use rms_norm::RmsNorm;
pub use rope::{Rope, RopeTable};

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Tensor};

/// A weight that is created only if nothing is loaded into it.
fn weight<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Param::uninitialized(
        ParamId::new(),
        move |device, _| Tensor::zeros(shape, device),
        device.clone(),
        false,
        shape.into(),
    )
}
