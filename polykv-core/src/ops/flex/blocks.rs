//! Products with weights in blocks of ggml's types.

pub mod activations;
#[cfg(target_arch = "x86_64")]
mod gemm;
pub mod gemv;
mod layout;

use crate::ops::weight::BlockRows;

/// `x [n, columns]` times the transposes of weights of as many columns, in 8-bit integers: `[n, rows]` each. `None` where the
/// processor has no fast dot products of them.
pub fn gemm(x: &[f32], columns: usize, weights: &[BlockRows<'_>]) -> Option<Vec<Vec<f32>>> {
    #[cfg(target_arch = "x86_64")]
    return gemm::multiply(x, columns, weights);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (x, columns, weights);
        None
    }
}
