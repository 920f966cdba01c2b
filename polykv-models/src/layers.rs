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
use polykv_core::{Result, ops};

/// A layer as families share it: attention between two norms, and the feed-forward block. `[batch, tokens, hidden]` in and
/// out; `attend` gets rotated queries, rotated keys and values, `[batch, heads, tokens, head_dim]` each.
///
/// # Errors
/// Those of `attend`.
pub fn run(
    x: Tensor<3>,
    (before, attention): (&RmsNorm, &Attention),
    (after, mlp): (&RmsNorm, &Mlp),
    rope: &RopeTable,
    attend: impl FnOnce(Tensor<4>, Tensor<4>, Tensor<4>) -> Result<Tensor<4>>,
) -> Result<Tensor<3>> {
    let (cos, sin) = (rope.cos.clone(), rope.sin.clone());
    let [q, k, v] = ops::heads(x.clone(), attention.weights(before), cos, sin);
    let attended = attend(q, k, v)?;
    let weights = mlp.weights(&attention.o_proj, after);
    Ok(ops::after_attention(x, attended, weights))
}

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
