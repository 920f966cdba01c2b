//! Tensor operations under the cache and the policies, on any burn device.

mod attend;
mod pool;
mod select;

pub use attend::{AttentionBlock, attend, window_attention};
pub use pool::{Pool, pool};
pub use select::{Protected, drop_lowest, put, select, take};

use burn::tensor::Tensor;
use burn::tensor::kind::Basic;

/// Bytes that a tensor's elements occupy.
pub fn bytes<const D: usize, K: Basic>(tensor: &Tensor<D, K>) -> usize {
    tensor.shape().num_elements() * tensor.dtype().size()
}
