//! What lies between the products: SwiGLU's gate, normalisation, rotation; one pass each.

use super::CHUNK;
use super::bridge::{elements, inner_dense, tensor};
use super::simd::{Level, Vector, dispatch, dot, exp, fma};
use super::view::Heads;
use crate::ops::kernels::PointwiseOps;
use crate::ops::pointwise::{GELU_CUBE, GELU_SLOPE};
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::TensorData;
use rayon::prelude::*;

impl PointwiseOps for Flex {
    fn rms_norm(x: FlexTensor, weight: FlexTensor, eps: f32) -> FlexTensor {
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        let output = rms_norm(Level::best(), elements(&x), elements(&weight), eps);
        FlexTensor::from_data(TensorData::new(output, x.layout().shape().clone()))
    }

    fn rotate(x: FlexTensor, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
        let (x, cos, sin) = (inner_dense(x), cos.to_contiguous(), sin.to_contiguous());
        let x = Heads::of(&x);
        let output = rotate(Level::best(), &x, elements(&cos), elements(&sin));
        tensor(output, [x.batch, x.heads, x.tokens, x.dim])
    }

    fn swiglu(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        let output = swiglu(Level::best(), elements(&gate), elements(&up));
        FlexTensor::from_data(TensorData::new(output, gate.layout().shape().clone()))
    }

    fn geglu(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        let output = geglu(Level::best(), elements(&gate), elements(&up));
        FlexTensor::from_data(TensorData::new(output, gate.layout().shape().clone()))
    }
}

/// `silu(gate) · up`; same length in and out.
pub fn swiglu(level: Level, gate: &[f32], up: &[f32]) -> Vec<f32> {
    gated(gate, up, |output, gate, up| {
        dispatch!(level, fn swiglu_of(output: &mut [f32], gate: &[f32], up: &[f32]));
    })
}

/// `gelu(gate) · up` in GELU's tanh form; same length in and out.
pub fn geglu(level: Level, gate: &[f32], up: &[f32]) -> Vec<f32> {
    gated(gate, up, |output, gate, up| {
        dispatch!(level, fn geglu_of(output: &mut [f32], gate: &[f32], up: &[f32]));
    })
}

/// The chunks of gate and up, in parallel.
fn gated(
    gate: &[f32],
    up: &[f32],
    of_chunk: impl Fn(&mut [f32], &[f32], &[f32]) + Sync,
) -> Vec<f32> {
    let mut output = vec![0.0; gate.len()];
    if gate.len() <= CHUNK {
        of_chunk(&mut output, gate, up);
        return output;
    }
    let block = |((output, gate), up): ((&mut [f32], &[f32]), &[f32])| of_chunk(output, gate, up);
    output
        .par_chunks_mut(CHUNK)
        .zip(gate.par_chunks(CHUNK))
        .zip(up.par_chunks(CHUNK))
        .for_each(block);
    output
}

#[inline(always)]
fn swiglu_of<V: Vector>(output: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((output, gate), up) in output.iter_mut().zip(gate).zip(up) {
        *output = gate / (1.0 + exp::<V>(-gate)) * up;
    }
}

#[inline(always)]
fn geglu_of<V: Vector>(output: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((output, gate), up) in output.iter_mut().zip(gate).zip(up) {
        let x = GELU_SLOPE * (gate + GELU_CUBE * gate * gate * gate);
        *output = gate / (1.0 + exp::<V>(-x)) * up;
    }
}

/// Rows of `weight`'s length over the root of their mean square, times `weight`.
pub fn rms_norm(level: Level, x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut output = vec![0.0; x.len()];
    let step = (CHUNK / weight.len()).max(1) * weight.len();
    let block = |(output, x): (&mut [f32], &[f32])| {
        dispatch!(level, fn normed(output: &mut [f32], x: &[f32], weight: &[f32], eps: f32));
    };
    if x.len() <= step {
        block((&mut output, x));
        return output;
    }
    output
        .par_chunks_mut(step)
        .zip(x.par_chunks(step))
        .for_each(block);
    output
}

#[inline(always)]
fn normed<V: Vector>(output: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let size = weight.len();
    for (output, x) in output.chunks_exact_mut(size).zip(x.chunks_exact(size)) {
        let sum = dot::<V, f32>(x, x);
        let scale = 1.0 / (sum / size as f32 + eps).sqrt();
        for ((output, x), weight) in output.iter_mut().zip(x).zip(weight) {
            *output = x * scale * weight;
        }
    }
}

/// Turns element `i` of each vector with element `i + dim / 2`; `cos` and `sin` are `[rows, tokens, dim / 2]` with one row for
/// all of the batch or one for each. Returns `[batch, heads, tokens, dim]`.
pub fn rotate(level: Level, x: &Heads<'_>, cos: &[f32], sin: &[f32]) -> Vec<f32> {
    let mut output = vec![0.0; x.batch * x.heads * x.tokens * x.dim];
    let tokens = (CHUNK / x.dim).clamp(1, x.tokens);
    let blocks = x.tokens.div_ceil(tokens);
    // Chunks must not straddle heads: each head's tokens are cut on their own.
    let block = |(i, output): (usize, &mut [f32])| {
        let (head, first) = (i / blocks, i % blocks * tokens);
        let at = Rotation {
            batch: head / x.heads,
            head: head % x.heads,
            first,
        };
        dispatch!(level, fn rotated(
            at: Rotation, output: &mut [f32], x: &Heads<'_>, cos: &[f32], sin: &[f32],
        ));
    };
    let parts: Vec<&mut [f32]> = output
        .chunks_exact_mut(x.tokens * x.dim)
        .flat_map(|head| head.chunks_mut(tokens * x.dim))
        .collect();
    match x.tokens * x.heads * x.dim < CHUNK {
        true => parts.into_iter().enumerate().for_each(block),
        false => parts.into_par_iter().enumerate().for_each(block),
    }
    output
}

/// Consecutive tokens of one head.
#[derive(Clone, Copy)]
struct Rotation {
    batch: usize,
    head: usize,
    first: usize,
}

#[inline(always)]
fn rotated<V: Vector>(at: Rotation, output: &mut [f32], x: &Heads<'_>, cos: &[f32], sin: &[f32]) {
    let half = x.dim / 2;
    // A table for each row, or one for all.
    let table = match cos.len() > x.tokens * half {
        true => at.batch * x.tokens,
        false => 0,
    };
    for (t, output) in output.chunks_exact_mut(x.dim).enumerate() {
        let token = at.first + t;
        let (a, b) = x.row(at.batch, at.head, token).split_at(half);
        let turn = (table + token) * half;
        let (cos, sin) = (&cos[turn..][..half], &sin[turn..][..half]);
        let (first, second) = output.split_at_mut(half);
        for i in 0..half {
            first[i] = fma::<V>(a[i], cos[i], -(b[i] * sin[i]));
            second[i] = fma::<V>(b[i], cos[i], a[i] * sin[i]);
        }
    }
}
