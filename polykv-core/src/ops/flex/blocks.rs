//! Products with weights of few bits: in blocks of ggml's types, and prompts' with weights in 8 bits or in bf16.

pub mod activations;
#[cfg(target_arch = "x86_64")]
pub mod gemm;
pub mod gemv;
mod layout;

use super::view::Matrix;
use crate::ops::weight::{BlockRows, Blocks};
use burn::tensor::bf16;

/// `x [n, columns]` times the transposes of weights of as many columns, without unpacking them to f32: `[n, rows]` each.
/// `None` where the processor has no fast dot products for that.
pub fn gemm(x: &[f32], columns: usize, weights: &[BlockRows<'_>]) -> Option<Vec<Vec<f32>>> {
    #[cfg(target_arch = "x86_64")]
    return gemm::multiply(x, columns, weights);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (x, columns, weights);
        None
    }
}

/// The same with a weight in 8 bits: `[n, rows]`.
pub fn q8_gemm(x: &[f32], weight: Blocks<'_>) -> Option<Vec<f32>> {
    #[cfg(target_arch = "x86_64")]
    {
        let outputs = gemm::multiply_in_bf16(x, weight.columns(), &[weight])?;
        outputs.into_iter().next()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (x, weight);
        None
    }
}

/// The same with a weight in bf16, whose columns are a multiple of [`RUN`](activations::RUN).
pub fn bf16_gemm(x: &[f32], weight: Matrix<'_, bf16>) -> Option<Vec<f32>> {
    #[cfg(target_arch = "x86_64")]
    {
        if !weight.columns.is_multiple_of(activations::RUN) {
            return None;
        }
        let outputs = gemm::multiply_in_bf16(x, weight.columns, &[weight])?;
        outputs.into_iter().next()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (x, weight);
        None
    }
}
