//! The operators of attention that backends implement with kernels of their own.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, DispatchTensor, backend_extension};
use burn::tensor::{DType, Device, Tensor};

/// Shapes: `q [batch, heads, t, d]` in f32, `k`, `v [batch, kv_heads, n, d]` as they are stored, `heads` a multiple of
/// `kv_heads`; results are f32.
#[backend_extension(Flex: cfg(feature = "flex"))]
pub trait KvOps: Backend {
    /// Causal attention aligned at the end: the output `[batch, heads, t, d]`, and per query the logarithm of the sum
    /// of its exponentials, `[batch, heads, t]`.
    fn attend_prompt(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Attention received per key, sum over queries and mean over the query group: `[batch, kv_heads, n]`.
    fn column_sums(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Attention of one query (`t = 1`) over all keys: the output `[batch, heads, 1, d]` and the probabilities
    /// `[batch, kv_heads, group, n]`.
    fn attend_token(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// Whether the tensor's backend implements [`KvOps`] for its dtype; elsewhere plain tensor operations do the same.
pub fn has_kernels<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && is_cpu(&tensor.device())
}

/// Whether the device is the CPU backend.
pub fn is_cpu(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    return matches!(device.as_dispatch(), burn::backend::DispatchDevice::Flex(_));
    #[cfg(not(feature = "flex"))]
    return {
        let _ = device;
        false
    };
}

fn pair<const A: usize, const B: usize>(
    (a, b): (DispatchTensor, DispatchTensor),
) -> (Tensor<A>, Tensor<B>) {
    (Tensor::from_dispatch(a), Tensor::from_dispatch(b))
}

pub fn attend_prompt(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<3>) {
    pair(Dispatch::attend_prompt(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
    ))
}

pub fn column_sums(q: Tensor<4>, k: Tensor<4>, log_sums: Tensor<3>) -> Tensor<3> {
    Tensor::from_dispatch(Dispatch::column_sums(
        q.into_dispatch(),
        k.into_dispatch(),
        log_sums.into_dispatch(),
    ))
}

pub fn attend_token(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    pair(Dispatch::attend_token(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
    ))
}
