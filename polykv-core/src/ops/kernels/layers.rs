//! What models compute with their weights.
//!
//! Activations are f32; weights `[out, in]` as they are stored, those of norms f32.

#[cfg(feature = "cube")]
use super::shapes;
#[cfg(feature = "cube")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, ExtensionType, backend_extension};

/// Products. The CPU has its own kernels behind [`Weight`](crate::ops::Weight), which read 8-bit weights too.
#[backend_extension(Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"))]
pub trait GemmOps: Backend {
    /// `lhs [.., m, k]` times `rhs [.., k, n]` in f32, without rounding a factor.
    #[fusion(meta = |lhs, rhs| shapes::product(lhs, rhs))]
    fn gemm(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `x [.., in]` of at most [`MOST_GEMV_ROWS`](crate::ops::route::MOST_GEMV_ROWS) rows times the transpose of `weight
    /// [out, in]`, without rounding a factor: `[.., out]`.
    #[fusion(meta = |x, weight| shapes::rows(x, weight))]
    fn gemv(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// What lies between the products.
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
    Flex: cfg(feature = "flex"),
)]
pub trait PointwiseOps: Backend {
    /// See [`rms_norm`](crate::ops::rms_norm).
    #[fusion(meta = |x, _weight, _eps| x.clone())]
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self>;

    /// See [`rotate`](crate::ops::rotate).
    #[fusion(meta = |x, _cos, _sin| x.clone())]
    fn rotate(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// See [`swiglu`](crate::ops::swiglu).
    #[fusion(meta = |gate, _up| gate.clone())]
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`geglu`](crate::ops::geglu).
    #[fusion(meta = |gate, _up| gate.clone())]
    fn geglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Several operators at once, for what is done for every token: there the host's time for an operation is longer than the
/// device's.
#[backend_extension(Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"))]
pub trait FusedOps: Backend {
    /// See [`norm_qkv_rope`](crate::ops::norm_qkv_rope).
    #[fusion(meta = qkv_shapes)]
    fn norm_qkv_rope(
        x: FloatTensor<Self>,
        #[extension_type] weights: QkvWeights<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        eps: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// See [`output_swiglu`](crate::ops::output_swiglu).
    #[fusion(meta = |x, _attended, _weights, _eps| x.clone())]
    fn output_swiglu(
        x: FloatTensor<Self>,
        attended: FloatTensor<Self>,
        #[extension_type] weights: OutputWeights<Self>,
        eps: f32,
    ) -> FloatTensor<Self>;
}

/// The weights of [`FusedOps::norm_qkv_rope`].
#[derive(ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub struct QkvWeights<B: Backend> {
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

/// The weights of [`FusedOps::output_swiglu`].
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
fn qkv_shapes(
    x: &TensorSpec,
    weights: &QkvWeightsMetadata,
    cos: &TensorSpec,
    _sin: &TensorSpec,
    _eps: &f32,
) -> (TensorSpec, TensorSpec, TensorSpec) {
    let dim = 2 * cos.shape[3];
    let heads = |weight: &TensorSpec| shapes::like(x, [x.shape[0], weight.shape[0] / dim, 1, dim]);
    (heads(&weights.q), heads(&weights.k), heads(&weights.v))
}
