//! What models compute with their weights.

use super::has_gpu_kernels;
#[cfg(feature = "cube")]
use super::shapes;
#[cfg(feature = "cube")]
use burn::backend::DispatchDevice;
#[cfg(feature = "cube")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, ExtensionType, backend_extension};
use burn::tensor::{DType, Tensor};

/// Activations are f32; weights `[out, in]` as they are stored, those of norms f32. Kernels that do several things at once
/// are for what is done for every token: there the host's time for an operation counts.
#[backend_extension(Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"))]
pub trait LayerOps: Backend {
    /// `lhs [.., m, k]` times `rhs [.., k, n]` in f32, without rounding what goes in.
    #[fusion(meta = |lhs, rhs| shapes::product(lhs, rhs))]
    fn multiply(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self>;

    /// As [`linear`](crate::ops::linear) for [`FEW`] rows at most, without rounding what goes in.
    #[fusion(meta = |x, weight| shapes::rows(x, weight))]
    fn multiply_few(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    /// As [`rms_norm`](crate::ops::rms_norm).
    #[fusion(meta = |x, _weight, _eps| x.clone())]
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self>;

    /// As [`rotate`](crate::ops::rotate).
    #[fusion(meta = |x, _cos, _sin| x.clone())]
    fn rotate(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// As [`silu_mul`](crate::ops::silu_mul).
    #[fusion(meta = |gate, _up| gate.clone())]
    fn silu_mul(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;

    /// As [`heads`](crate::ops::heads) of one token for each of [`FEW`] sequences at most.
    #[fusion(meta = heads_of_token)]
    fn token_heads(
        x: FloatTensor<Self>,
        #[extension_type] weights: HeadWeights<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        eps: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// As [`after_attention`](crate::ops::after_attention) of one token for each of [`FEW`] sequences at most.
    #[fusion(meta = |x, _attended, _weights, _eps| x.clone())]
    fn token_output(
        x: FloatTensor<Self>,
        attended: FloatTensor<Self>,
        #[extension_type] weights: OutputWeights<Self>,
        eps: f32,
    ) -> FloatTensor<Self>;
}

/// Rows up to which products are bound by the memory that the weights lie in.
pub const FEW: usize = 8;

/// What a layer has before attention.
#[derive(ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub struct HeadWeights<B: Backend> {
    pub norm: FloatTensor<B>,
    pub q: FloatTensor<B>,
    pub k: FloatTensor<B>,
    pub v: FloatTensor<B>,
    #[extension_type]
    pub norms: HeadNorms<B>,
}

/// The norms over each head of queries and keys.
#[derive(ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum HeadNorms<B: Backend> {
    None,
    Both {
        q: FloatTensor<B>,
        k: FloatTensor<B>,
    },
}

/// What a layer has after attention.
#[derive(ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub struct OutputWeights<B: Backend> {
    pub projection: FloatTensor<B>,
    pub norm: FloatTensor<B>,
    pub gate: FloatTensor<B>,
    pub up: FloatTensor<B>,
    pub down: FloatTensor<B>,
}

/// Queries, keys and values of one token, `[batch, heads, 1, d]` each.
#[cfg(feature = "cube")]
fn heads_of_token(
    x: &TensorSpec,
    weights: &HeadWeightsMetadata,
    cos: &TensorSpec,
    _sin: &TensorSpec,
    _eps: &f32,
) -> (TensorSpec, TensorSpec, TensorSpec) {
    let dim = 2 * cos.shape[3];
    let heads = |weight: &TensorSpec| shapes::like(x, [x.shape[0], weight.shape[0] / dim, 1, dim]);
    (heads(&weights.q), heads(&weights.k), heads(&weights.v))
}

/// The matrix product, in f32 if both are: burn's own rounds factors to TF32, 10 bits, where a GPU has that.
pub fn matmul<const D: usize>(lhs: Tensor<D>, rhs: Tensor<D>) -> Tensor<D> {
    match lhs.dtype() == DType::F32 && rounds_products(&lhs) {
        true => multiply(lhs, rhs),
        false => lhs.matmul(rhs),
    }
}

/// The product of two matrices in f32, without rounding them.
pub fn multiply<const D: usize>(lhs: Tensor<D>, rhs: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::multiply(lhs.into_dispatch(), rhs.into_dispatch()))
}

fn rounds_products<const D: usize>(tensor: &Tensor<D>) -> bool {
    match tensor.device().as_dispatch() {
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(own) => {
            use cubecl::prelude::*;
            let tf32 = cubecl::tf32::elem_type_native();
            own.client().properties().supports_type(tf32)
        }
        _ => false,
    }
}

/// Whether a GPU has a kernel for products of few rows with a weight as it is stored.
pub fn multiplies_few(x: &Tensor<2>, weight: &Tensor<2>) -> bool {
    x.dims()[0] <= FEW && has_gpu_kernels(x) && is_plain(weight)
}

/// Whether a GPU has kernels for what a layer does with one token per sequence and weights as they are stored.
pub fn runs_tokens(x: &Tensor<3>, weights: &[Tensor<2>]) -> bool {
    let [batch, tokens, _] = x.dims();
    let alike = |weight: &Tensor<2>| is_plain(weight) && weight.dtype() == weights[0].dtype();
    tokens == 1 && batch <= FEW && has_gpu_kernels(x) && weights.iter().all(alike)
}

fn is_plain(weight: &Tensor<2>) -> bool {
    matches!(weight.dtype(), DType::F32 | DType::F16 | DType::BF16)
}

pub fn multiply_few(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::multiply_few(
        x.into_dispatch(),
        weight.into_dispatch(),
    ))
}

pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f32) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::rms_norm(
        x.into_dispatch(),
        weight.into_dispatch(),
        eps,
    ))
}

pub fn rotate(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::rotate(
        x.into_dispatch(),
        cos.into_dispatch(),
        sin.into_dispatch(),
    ))
}

pub fn silu_mul<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::silu_mul(gate.into_dispatch(), up.into_dispatch()))
}

pub fn token_heads(
    x: Tensor<3>,
    weights: HeadWeights<Dispatch>,
    cos: Tensor<4>,
    sin: Tensor<4>,
    eps: f32,
) -> [Tensor<4>; 3] {
    let (x, cos, sin) = (x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch());
    let (q, k, v) = Dispatch::token_heads(x, weights, cos, sin, eps);
    [q, k, v].map(Tensor::from_dispatch)
}

pub fn token_output(
    x: Tensor<3>,
    attended: Tensor<4>,
    weights: OutputWeights<Dispatch>,
    eps: f32,
) -> Tensor<3> {
    let (x, attended) = (x.into_dispatch(), attended.into_dispatch());
    Tensor::from_dispatch(Dispatch::token_output(x, attended, weights, eps))
}
