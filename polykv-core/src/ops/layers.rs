//! Operators of the models' layers. Weights may be stored in f32, f16, bf16 or 8 bits; activations are f32.

#[cfg(feature = "flex")]
use super::flex::layers as cpu;
use super::{kernels, oracle};
use burn::tensor::activation::silu;
use burn::tensor::quantization::{QuantScheme, QuantStore, QuantValue, ScaleDtype};
use burn::tensor::{DType, Int, Tensor};

/// Values of a row that share a scale in 8-bit weights.
pub const Q8_BLOCK: usize = 32;

/// How 8-bit weights are stored: symmetric, one f32 scale per [`Q8_BLOCK`] values of a row.
pub fn q8_scheme() -> QuantScheme {
    QuantScheme::default()
        .with_value(QuantValue::Q8S)
        .with_store(QuantStore::Native)
        .per_block([Q8_BLOCK as u8], ScaleDtype::F32)
}

/// Rounds a weight `[out, in]`, `in` a multiple of [`Q8_BLOCK`], to 8 bits. [`settle`] it before it is used.
pub fn quantize(weight: Tensor<2>) -> Tensor<2> {
    weight.quantize_dynamic(&q8_scheme())
}

/// Prepares a weight for being read with every token: on the CPU it moves to huge pages, and 8-bit weights take the
/// layout of the kernels, which only the operators of this module understand.
pub fn settle<const D: usize>(weight: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if kernels::is_cpu(&weight.device()) {
        return cpu::settle(weight);
    }
    weight
}

/// `x [rows, in]` times the transpose of `weight [out, in]` → `[rows, out]`.
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let [output] = linears(x, [weight]);
    output
}

/// `x [rows, in]` times the transposes of several weights `[out, in]` of one storage type.
pub fn linears<const N: usize>(x: Tensor<2>, weights: [Tensor<2>; N]) -> [Tensor<2>; N] {
    // Stock products of few rows run on one thread of the CPU; those of many are as fast as it gets.
    #[cfg(feature = "flex")]
    if x.dims()[0] <= kernels::FEW && kernels::has_cpu_kernels(&x) {
        let mut start = 0;
        let widths = weights.each_ref().map(|weight| weight.dims()[0]);
        let all = cpu::multiply(x, weights);
        return widths.map(|width| {
            start += width;
            match N {
                1 => all.clone(),
                _ => all
                    .clone()
                    .slice(burn::tensor::s![.., start - width..start]),
            }
        });
    }
    weights.map(|weight| match kernels::multiplies_few(&x, &weight) {
        true => kernels::multiply_few(x.clone(), weight),
        false => product(x.clone(), widen(weight).transpose()),
    })
}

/// The rows `ids` of `weight [out, in]`, as f32.
pub fn rows(weight: Tensor<2>, ids: Tensor<1, Int>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if is_quantized(&weight) && kernels::is_cpu(&weight.device()) {
        return cpu::select(weight, ids);
    }
    weight.select(0, ids).dequantize().cast(DType::F32)
}

/// A stored weight as f32.
pub fn to_f32(weight: Tensor<2>) -> Tensor<2> {
    widen(weight).cast(DType::F32)
}

/// A stored weight as f32 where products cannot read its type well; on GPUs half-precision types stay.
fn widen(weight: Tensor<2>) -> Tensor<2> {
    if weight.dtype() == DType::F32 {
        return weight;
    }
    // The CPU backend would convert on one thread for every product.
    #[cfg(feature = "flex")]
    if kernels::is_cpu(&weight.device()) {
        return cpu::widen(weight);
    }
    weight.dequantize()
}

/// The product of activations and something stored, in the storage type where the device computes in it; f32.
pub(super) fn product<const D: usize>(x: Tensor<D>, stored: Tensor<D>) -> Tensor<D> {
    match stored.dtype() {
        DType::F32 => kernels::matmul(x, stored),
        _ if kernels::is_cpu(&stored.device()) => x.matmul(stored.cast(DType::F32)),
        dtype => x.cast(dtype).matmul(stored).cast(DType::F32),
    }
}

#[cfg(feature = "flex")]
fn is_quantized(weight: &Tensor<2>) -> bool {
    matches!(weight.dtype(), DType::QFloat(_))
}

/// `silu(gate) · up`, elementwise.
pub fn silu_mul<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if kernels::has_cpu_kernels(&gate) {
        return cpu::silu_mul(gate, up);
    }
    match kernels::has_gpu_kernels(&gate) {
        true => kernels::silu_mul(gate, up),
        false => silu(gate) * up,
    }
}

/// Root-mean-square normalisation over the last axis, times `weight [size]`.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if kernels::has_cpu_kernels(&x) {
        return cpu::rms_norm(x, weight, eps as f32);
    }
    match kernels::has_gpu_kernels(&x) {
        true => kernels::rms_norm(x, weight, eps as f32),
        false => oracle::rms_norm(x, weight, eps),
    }
}

/// Turns element `i` of the last axis with element `i + d / 2`: `x [batch, heads, tokens, d]`, `cos` and `sin
/// [1, 1, tokens, d / 2]`.
pub fn rotate(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if kernels::has_cpu_kernels(&x) {
        return cpu::rotate(x, cos, sin);
    }
    match kernels::has_gpu_kernels(&x) {
        true => kernels::rotate(x, cos, sin),
        false => oracle::rotate(x, cos, sin),
    }
}
