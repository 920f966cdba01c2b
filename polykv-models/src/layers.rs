//! The building blocks that model families share. Field names spell the checkpoints' tensor names.

mod attention;
mod block;
mod embedding;
mod linear;
mod loaded;
mod matrix;
mod mlp;
mod rms_norm;
mod rope;
mod sparse_mlp;

pub use attention::Attention;
pub use block::{Block, FeedForward};
pub use embedding::Embedding;
pub use linear::Linear;
pub use loaded::{LoadedWeights, Matrices};
pub use matrix::{Loaded, Matrix};
pub use mlp::{Activation, Mlp};
pub use rms_norm::RmsNorm;
pub use rope::{Rope, RopeTable, Rotation};
pub use sparse_mlp::SparseMlp;

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Tensor};

/// A parameter that is created only if nothing is loaded into it.
fn parameter<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Param::uninitialized(
        ParamId::new(),
        move |device, _| Tensor::zeros(shape, device),
        device.clone(),
        false,
        shape.into(),
    )
}
