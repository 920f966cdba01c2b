//! Norms, activations and the rotary embedding. Activations are f32.

use super::kernels::{PointwiseOps, kernel};
use super::oracle;
use super::route::Route;
use burn::tensor::Tensor;

/// √(8/π), the slope of the sigmoid in GELU's tanh form.
#[cfg(any(feature = "flex", feature = "cube"))]
pub(super) const GELU_SLOPE: f32 = 1.595_769;
/// The weight of the cube in it.
#[cfg(any(feature = "flex", feature = "cube"))]
pub(super) const GELU_CUBE: f32 = 0.044_715;

/// The activation of SwiGLU (arXiv 2002.05202): silu(gate) · up, elementwise, for tensors of one shape.
///
/// # Panics
/// If the shapes differ.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    assert_eq!(gate.dims(), up.dims(), "gate and up have one shape");
    match Route::of(&gate).if_f32(&up) {
        Route::Plain => oracle::swiglu(gate, up),
        _ => kernel!(PointwiseOps::swiglu(gate, up)),
    }
}

/// The activation of GeGLU (arXiv 2002.05202): gelu(gate) · up with GELU's tanh form, x / (1 + exp(-√(8/π) (x + 0.044715
/// x³))), elementwise, for tensors of one shape.
///
/// # Panics
/// If the shapes differ.
pub fn geglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    assert_eq!(gate.dims(), up.dims(), "gate and up have one shape");
    match Route::of(&gate).if_f32(&up) {
        Route::Plain => oracle::geglu(gate, up),
        _ => kernel!(PointwiseOps::geglu(gate, up)),
    }
}

/// RMS norm over the last axis (arXiv 1910.07467): `x [.., size]` divided by √(mean(x²) + `eps`), times `weight [size]`.
///
/// # Panics
/// If the sizes differ.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    assert_eq!(weight.dims(), [x.dims()[D - 1]], "a weight per element");
    match Route::of(&x).if_f32(&weight) {
        Route::Plain => oracle::rms_norm(x, weight, eps),
        _ => kernel!(PointwiseOps::rms_norm(x, weight, eps as f32)),
    }
}

/// Rotary embedding (RoPE, arXiv 2104.09864) in the rotate-half layout: rotates element `i` of the last axis with element
/// `i + d / 2`. `x [batch, heads, tokens, d]`, `cos` and `sin [rows, 1, tokens, d / 2]`, where `rows` is 1 for tables that all
/// sequences share, or `batch`.
///
/// # Panics
/// If the shapes do not fit.
pub fn rotate(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let [batch, _, tokens, d] = x.dims();
    let rows = cos.dims()[0];
    assert!(rows == 1 || rows == batch, "tables for one row or for all");
    for table in [&cos, &sin] {
        let half = [rows, 1, tokens, d / 2];
        assert!(
            d.is_multiple_of(2) && table.dims() == half,
            "a turn per pair of elements"
        );
    }
    match Route::of(&x).if_f32(&cos).if_f32(&sin) {
        Route::Plain => oracle::rotate(x, cos, sin),
        _ => kernel!(PointwiseOps::rotate(x, cos, sin)),
    }
}
