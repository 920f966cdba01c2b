//! Tensor operations under the cache, the policies and the models, on any burn device. Those that matter for speed
//! have kernels ([`KvOps`](kernels::KvOps), [`EntryOps`](kernels::EntryOps)); the rest, and every kernel's oracle, are
//! plain tensor operations.

mod attend;
mod block;
#[cfg(feature = "cube")]
#[allow(clippy::too_many_arguments, reason = "kernels take flat arguments")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
pub mod kernels;
mod keys;
pub mod layers;
pub mod oracle;
mod pool;
mod select;
mod top;

pub use attend::{
    AttentionBlock, Observer, attend, attend_first, attend_lengths, attend_summed, attention_row,
    window_attention, window_score,
};
pub use block::{AfterAttention, BeforeAttention, after_attention, heads, project};
pub use kernels::{Entries, is_cpu, is_cube, matmul};
pub use keys::{closest, key_cosines, key_norms, merge_into, spread_into};
pub use layers::{linear, linears, quantize, rms_norm, rotate, rows, settle, silu_mul, to_f32};
pub use pool::{Pool, pool};
pub use select::{
    Nans, Protect, Protected, choose, compact, drop_from_order, drop_lowest, extend_order, grow,
    move_last, put, replace, rest, select, take, write,
};
pub use top::top;

use burn::tensor::Tensor;
use burn::tensor::kind::Basic;

/// What a failed read of a tensor becomes.
pub fn read_error(error: impl std::fmt::Debug) -> crate::Error {
    crate::Error::Failed(format!("reading from the device: {error:?}"))
}

/// Bytes that a tensor's elements occupy.
pub fn bytes<const D: usize, K: Basic>(tensor: &Tensor<D, K>) -> usize {
    tensor.shape().num_elements() * tensor.dtype().size()
}

/// Vectors scaled to unit norm along the last axis; zeros stay zeros.
pub fn unit(x: Tensor<4>) -> Tensor<4> {
    let norm = x.clone().square().sum_dim(3).sqrt();
    x / norm.clamp_min(1e-12)
}
