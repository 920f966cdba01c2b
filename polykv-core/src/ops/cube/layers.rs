//! Elementwise operators of layers and norms, and what a layer does around attention, made of them.

use super::{dense, empty, rows, width};
use crate::ops::kernels::{HeadNorms, HeadWeights, OutputWeights};
use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::reshape;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

const UNITS: usize = 256;

/// As [`LayerOps::rms_norm`](crate::ops::kernels::LayerOps::rms_norm).
pub fn rms_norm(x: CubeTensor, weight: CubeTensor, eps: f32) -> CubeTensor {
    let [x, weight] = [x, weight].map(into_contiguous);
    let dims = x.shape().to_vec();
    let dim = dims[dims.len() - 1];
    let rows = x.shape().num_elements() / dim;
    let output = empty(&x, dims, DType::F32);
    let width = width(&[&x]);
    let client = x.client.clone();
    // SAFETY: every index is below the shapes above; see the kernel.
    unsafe {
        norm_kernel::launch_unchecked(
            &client,
            grid(rows),
            CubeDim::new_1d(UNITS as u32),
            width,
            x.into_tensor_arg(),
            weight.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            eps,
            rows,
            dim / width,
            width,
        );
    }
    output
}

/// Enough cubes for `count`, each with the number [`place`].
fn grid(count: usize) -> CubeCount {
    let across = count.clamp(1, 32768);
    CubeCount::Static(across as u32, count.div_ceil(across) as u32, 1)
}

#[cube]
fn place() -> usize {
    CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize
}

/// One cube per row.
#[cube(launch_unchecked)]
fn norm_kernel<N: Size>(
    x: &Tensor<Vector<f32, N>>,
    weight: &Tensor<Vector<f32, N>>,
    output: &mut Tensor<Vector<f32, N>>,
    eps: f32,
    rows: usize,
    words: usize,
    #[comptime] width: usize,
) {
    let row = place();
    let unit = UNIT_POS_X as usize;
    if row >= rows {
        terminate!();
    }
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut w = unit;
    while w < words {
        let own = x[row * words + w];
        squares += own * own;
        w += UNITS;
    }
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..width {
        sum += squares.extract(i);
    }
    let mut sums = Shared::<[f32]>::new_slice(UNITS);
    sums[unit] = sum;
    #[unroll]
    for step in 0..8u32 {
        let half = comptime!(UNITS >> (step as usize + 1));
        sync_cube();
        if unit < half {
            sums[unit] += sums[unit + half];
        }
    }
    sync_cube();
    let scale = 1.0f32 / (sums[0] / f32::cast_from(words * width) + eps).sqrt();
    let mut w = unit;
    while w < words {
        output[row * words + w] = x[row * words + w] * Vector::new(scale) * weight[w];
        w += UNITS;
    }
}

/// As [`LayerOps::rotate`](crate::ops::kernels::LayerOps::rotate).
pub fn rotate(x: CubeTensor, cos: CubeTensor, sin: CubeTensor) -> CubeTensor {
    let [cos, sin] = [cos, sin].map(into_contiguous);
    let x = dense(x);
    let output = empty(&x, x.shape(), DType::F32);
    let width = pair_width(&[&x]);
    let words = x.shape()[3] / 2 / width;
    let count = x.shape().num_elements() / 2 / width;
    let client = x.client.clone();
    // SAFETY: as above.
    unsafe {
        rotate_kernel::launch_unchecked(
            &client,
            grid(count.div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            width,
            x.into_tensor_arg(),
            cos.into_tensor_arg(),
            sin.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            count,
            words,
            width,
        );
    }
    output
}

/// As [`rotate`] for two tensors of one head size.
fn rotate_both(q: CubeTensor, k: CubeTensor, cos: CubeTensor, sin: CubeTensor) -> [CubeTensor; 2] {
    let [cos, sin] = [cos, sin].map(into_contiguous);
    let outputs = [&q, &k].map(|x| empty(x, x.shape(), DType::F32));
    let width = pair_width(&[&q, &k]);
    let words = q.shape()[3] / 2 / width;
    let [first, second] = [&q, &k].map(|x| x.shape().num_elements() / 2 / width);
    let client = q.client.clone();
    let [to_q, to_k] = outputs.clone().map(CubeTensor::into_tensor_arg);
    // SAFETY: as above.
    unsafe {
        rotate_both_kernel::launch_unchecked(
            &client,
            grid((first + second).div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            width,
            q.into_tensor_arg(),
            k.into_tensor_arg(),
            cos.into_tensor_arg(),
            sin.into_tensor_arg(),
            to_q,
            to_k,
            first,
            second,
            words,
            width,
        );
    }
    outputs
}

/// How many elements of half a vector are read at once.
fn pair_width(tensors: &[&CubeTensor]) -> usize {
    match tensors[0].shape()[3].is_multiple_of(8) {
        true => width(tensors),
        false => 1,
    }
}

#[cube(launch_unchecked)]
fn rotate_kernel<N: Size>(
    x: &Tensor<Vector<f32, N>>,
    cos: &Tensor<Vector<f32, N>>,
    sin: &Tensor<Vector<f32, N>>,
    output: &mut Tensor<Vector<f32, N>>,
    count: usize,
    words: usize,
    #[comptime] width: usize,
) {
    let i = place() * UNITS + UNIT_POS_X as usize;
    if i < count {
        rotate_word::<N>(x, cos, sin, output, i, words, width);
    }
}

#[cube(launch_unchecked)]
fn rotate_both_kernel<N: Size>(
    q: &Tensor<Vector<f32, N>>,
    k: &Tensor<Vector<f32, N>>,
    cos: &Tensor<Vector<f32, N>>,
    sin: &Tensor<Vector<f32, N>>,
    to_q: &mut Tensor<Vector<f32, N>>,
    to_k: &mut Tensor<Vector<f32, N>>,
    first: usize,
    second: usize,
    words: usize,
    #[comptime] width: usize,
) {
    let i = place() * UNITS + UNIT_POS_X as usize;
    if i < first {
        rotate_word::<N>(q, cos, sin, to_q, i, words, width);
    } else if i < first + second {
        rotate_word::<N>(k, cos, sin, to_k, i - first, words, width);
    }
}

/// The `i`th word of all first halves, and its partner.
#[cube]
fn rotate_word<N: Size>(
    x: &Tensor<Vector<f32, N>>,
    cos: &Tensor<Vector<f32, N>>,
    sin: &Tensor<Vector<f32, N>>,
    output: &mut Tensor<Vector<f32, N>>,
    i: usize,
    words: usize,
    #[comptime] width: usize,
) {
    let (vector, word) = (i / words, i % words);
    let (heads, tokens) = (x.shape(1), x.shape(2));
    let token = vector % tokens;
    let head = vector / tokens % heads;
    let batch = vector / tokens / heads;
    let at = batch * x.stride(0) + head * x.stride(1) + token * x.stride(2);
    let first = x[at / width + word];
    let second = x[at / width + words + word];
    let (cos, sin) = (cos[token * words + word], sin[token * words + word]);
    let to = vector * 2 * words + word;
    output[to] = first * cos - second * sin;
    output[to + words] = second * cos + first * sin;
}

/// As [`LayerOps::silu_mul`](crate::ops::kernels::LayerOps::silu_mul).
pub fn silu_mul(gate: CubeTensor, up: CubeTensor) -> CubeTensor {
    let [gate, up] = [gate, up].map(into_contiguous);
    let output = empty(&gate, gate.shape(), DType::F32);
    let count = gate.shape().num_elements();
    let width = match count.is_multiple_of(4) {
        true => 4,
        false => 1,
    };
    let client = gate.client.clone();
    // SAFETY: as above.
    unsafe {
        silu_mul_kernel::launch_unchecked(
            &client,
            grid((count / width).div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            width,
            gate.into_buffer_arg(),
            up.into_buffer_arg(),
            output.clone().into_buffer_arg(),
            count / width,
        );
    }
    output
}

#[cube(launch_unchecked)]
fn silu_mul_kernel<N: Size>(
    gate: &[Vector<f32, N>],
    up: &[Vector<f32, N>],
    output: &mut [Vector<f32, N>],
    count: usize,
) {
    let i = place() * UNITS + UNIT_POS_X as usize;
    if i >= count {
        terminate!();
    }
    let gate = gate[i];
    output[i] = gate / (Vector::new(1.0f32) + (-gate).exp()) * up[i];
}

/// As [`LayerOps::token_heads`](crate::ops::kernels::LayerOps::token_heads).
pub fn token_heads(
    x: CubeTensor,
    weights: HeadWeights<CubeBackend>,
    cos: CubeTensor,
    sin: CubeTensor,
    eps: f32,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let normed = rms_norm(x, weights.norm, eps);
    let projections = [weights.q, weights.k, weights.v].map(dense);
    let dim = 2 * cos.shape().dims::<4>()[3];
    let [mut q, mut k, v] = rows::multiply_three(normed, projections).map(|x| {
        // Of one token the heads follow each other as they are.
        let [batch, _, wide] = x.shape().dims::<3>();
        reshape(x, [batch, wide / dim, 1, dim].into())
    });
    if let HeadNorms::Both { q: of_q, k: of_k } = weights.norms {
        (q, k) = (rms_norm(q, of_q, eps), rms_norm(k, of_k, eps));
    }
    let [q, k] = rotate_both(q, k, cos, sin);
    (q, k, v)
}

/// As [`LayerOps::token_output`](crate::ops::kernels::LayerOps::token_output).
pub fn token_output(
    x: CubeTensor,
    attended: CubeTensor,
    weights: OutputWeights<CubeBackend>,
    eps: f32,
) -> CubeTensor {
    let [batch, heads, _, dim] = attended.shape().dims::<4>();
    let attended = into_contiguous(attended);
    let joined = reshape(attended, [batch, 1, heads * dim].into());
    let x = rows::multiply(joined, dense(weights.projection), Some(into_contiguous(x)));
    let normed = rms_norm(x.clone(), weights.norm, eps);
    let between = rows::gated(normed, dense(weights.gate), dense(weights.up));
    rows::multiply(between, dense(weights.down), Some(x))
}
