//! Products with weights of few bits: in blocks of ggml's types, and prompts' with weights in 8 bits.

pub mod activations;
#[cfg(target_arch = "x86_64")]
pub mod gemm;
pub mod gemv;
mod layout;

use crate::ops::weight::{BlockRows, Blocks};

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
        let outputs = gemm::multiply_by::<gemm::Bf16, _>(x, weight.columns(), &[weight])?;
        outputs.into_iter().next()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (x, weight);
        None
    }
}
