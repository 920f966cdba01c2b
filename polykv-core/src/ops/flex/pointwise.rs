//! `silu(gate) · up` in one pass.

use super::simd::{Level, dispatch, exp};
use rayon::prelude::*;

const CHUNK: usize = 16_384;

/// Same length in and out.
pub fn silu_mul(level: Level, gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut output = vec![0.0; gate.len()];
    let block = |((output, gate), up): ((&mut [f32], &[f32]), &[f32])| {
        dispatch!(level, fn block(output: &mut [f32], gate: &[f32], up: &[f32]));
    };
    output
        .par_chunks_mut(CHUNK)
        .zip(gate.par_chunks(CHUNK))
        .zip(up.par_chunks(CHUNK))
        .for_each(block);
    output
}

#[inline(always)]
fn block<const FMA: bool>(output: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((output, gate), up) in output.iter_mut().zip(gate).zip(up) {
        *output = gate / (1.0 + exp::<FMA>(-gate)) * up;
    }
}
