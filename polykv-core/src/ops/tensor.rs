//! Small helpers on tensors.

use super::kernels::{GemmOps, kernel};
use super::route::{is_cpu, rounds_products};
use burn::tensor::kind::Basic;
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor};

/// The error for a tensor that could not be read from its device.
pub fn read_error(error: impl std::fmt::Debug) -> crate::Error {
    crate::Error::Failed(format!("reading from the device: {error:?}"))
}

/// The bytes of a tensor's elements.
pub fn bytes<const D: usize, K: Basic>(tensor: &Tensor<D, K>) -> usize {
    tensor.shape().num_elements() * tensor.dtype().size()
}

/// Vectors scaled to unit norm along the last axis; zeros stay zeros.
pub fn unit(x: Tensor<4>) -> Tensor<4> {
    let norm = x.clone().square().sum_dim(3).sqrt();
    x / norm.clamp_min(1e-12)
}

/// The product of `lhs [.., m, k]` and `rhs [.., k, n]`: `[.., m, n]`. If both are f32, it is computed
/// in f32 on every device; burn's own product rounds factors to TF32, 10 bits of mantissa, where a GPU has that type.
pub fn matmul<const D: usize>(lhs: Tensor<D>, rhs: Tensor<D>) -> Tensor<D> {
    match lhs.dtype() == DType::F32 && rounds_products(&lhs.device()) {
        true => unrounded_matmul(lhs, rhs),
        false => lhs.matmul(rhs),
    }
}

/// The product of `lhs [.., m, k]` and `rhs [.., k, n]` in f32 by the GPU kernel that rounds no factor: what [`matmul`]
/// runs where burn's own product would.
///
/// # Panics
/// On devices without CubeCL kernels, see [`is_cube`](super::is_cube).
pub fn unrounded_matmul<const D: usize>(lhs: Tensor<D>, rhs: Tensor<D>) -> Tensor<D> {
    kernel!(GemmOps::gemm(lhs, rhs))
}

/// The product of activations and something stored, in the type of storage where the device computes in it; f32.
pub(super) fn product<const D: usize>(x: Tensor<D>, stored: Tensor<D>) -> Tensor<D> {
    match stored.dtype() {
        DType::F32 => matmul(x, stored),
        _ if is_cpu(&stored.device()) => x.matmul(stored.cast(DType::F32)),
        dtype => x.cast(dtype).matmul(stored).cast(DType::F32),
    }
}

/// Gathers entries: `tensor [batch, kv_heads, n, d]` at `slots [batch, kv_heads, m]` → `[batch, kv_heads, m, d]`. Slots
/// are below n: burn does not check them on GPUs.
pub(crate) fn take(tensor: Tensor<4>, slots: Tensor<3, Int>) -> Tensor<4> {
    let [batch, kv_heads, _, d] = tensor.dims();
    let count = slots.dims()[2];
    let index = slots
        .unsqueeze_dim::<4>(3)
        .expand([batch, kv_heads, count, d]);
    tensor.gather(2, index)
}

/// Overwrites entries, in place while the tensor is not shared: `tensor [batch, kv_heads, n, d]` at the different
/// `slots [batch, kv_heads, m]`, all below n, becomes `entries [batch, kv_heads, m, d]`.
pub(crate) fn put(tensor: Tensor<4>, slots: Tensor<3, Int>, entries: Tensor<4>) -> Tensor<4> {
    let dims = entries.dims();
    let index = slots.unsqueeze_dim::<4>(3).expand(dims);
    tensor.scatter(2, index, entries, IndexingUpdateOp::Assign)
}
