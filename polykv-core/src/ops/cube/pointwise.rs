//! What lies between the products of a layer: RMS norm, rotary embedding, the gates of SwiGLU and GeGLU.

use super::{dense, empty, width};
use crate::ops::kernels::PointwiseOps;
use crate::ops::pointwise::{GELU_CUBE, GELU_SLOPE};
use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

const UNITS: usize = 256;

impl PointwiseOps for CubeBackend {
    fn rms_norm(x: CubeTensor, weight: CubeTensor, eps: f32) -> CubeTensor {
        rms_norm(x, weight, eps)
    }

    fn rotate(x: CubeTensor, cos: CubeTensor, sin: CubeTensor) -> CubeTensor {
        rotate(x, cos, sin)
    }

    fn swiglu(gate: CubeTensor, up: CubeTensor) -> CubeTensor {
        gated(gate, up, false)
    }

    fn geglu(gate: CubeTensor, up: CubeTensor) -> CubeTensor {
        gated(gate, up, true)
    }
}

/// `x [.., dim]` over the root of its mean square, times `weight [dim]`.
pub fn rms_norm(x: CubeTensor, weight: CubeTensor, eps: f32) -> CubeTensor {
    let [x, weight] = [x, weight].map(into_contiguous);
    let dims = x.shape().to_vec();
    let dim = dims[dims.len() - 1];
    let rows = x.shape().num_elements() / dim;
    let output = empty(&x, dims, DType::F32);
    let width = width(&[&x]);
    let client = x.client.clone();
    debug_assert_eq!(weight.shape().num_elements(), dim);
    // SAFETY: cubes beyond the rows end; units of the others read and write words of their row, and those of the weight
    // below the same number.
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
pub fn grid(count: usize) -> CubeCount {
    let across = count.clamp(1, 32768);
    CubeCount::Static(across as u32, count.div_ceil(across) as u32, 1)
}

#[cube]
pub fn place() -> usize {
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
        let value = x[row * words + w];
        squares += value * value;
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

fn rotate(x: CubeTensor, cos: CubeTensor, sin: CubeTensor) -> CubeTensor {
    let [cos, sin] = [cos, sin].map(into_contiguous);
    let x = dense(x);
    let output = empty(&x, x.shape(), DType::F32);
    let width = pair_width(&[&x]);
    let words = x.shape()[3] / 2 / width;
    let count = x.shape().num_elements() / 2 / width;
    let client = x.client.clone();
    debug_assert_eq!(cos.shape()[2..], [x.shape()[2], x.shape()[3] / 2]);
    debug_assert!(cos.shape()[0] == 1 || cos.shape()[0] == x.shape()[0]);
    debug_assert_eq!(sin.shape(), cos.shape());
    // SAFETY: units beyond the pairs end; the others have one word of a first half and its partner in the second, of a
    // token and a sequence below those that the tables have.
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

/// Two tensors of one head size, turned by one kernel.
pub fn rotate_both(
    q: CubeTensor,
    k: CubeTensor,
    cos: CubeTensor,
    sin: CubeTensor,
) -> [CubeTensor; 2] {
    let [cos, sin] = [cos, sin].map(into_contiguous);
    let outputs = [&q, &k].map(|x| empty(x, x.shape(), DType::F32));
    let width = pair_width(&[&q, &k]);
    let words = q.shape()[3] / 2 / width;
    let [first, second] = [&q, &k].map(|x| x.shape().num_elements() / 2 / width);
    let client = q.client.clone();
    let [to_q, to_k] = outputs.clone().map(CubeTensor::into_tensor_arg);
    debug_assert_eq!(q.shape()[3], k.shape()[3]);
    debug_assert_eq!([q.shape()[2], k.shape()[2]], [cos.shape()[2]; 2]);
    debug_assert!(cos.shape()[0] == 1 || [q.shape()[0], k.shape()[0]] == [cos.shape()[0]; 2]);
    debug_assert_eq!(sin.shape(), cos.shape());
    // SAFETY: units up to `first` have a word of the queries' first halves, the next `second` one of the keys', and each
    // its partner; those beyond do nothing. Both have the head size, the tokens and the sequences of the tables.
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
    // A table for each sequence, or one for all.
    let row = min(batch, cos.shape(0) - 1);
    let turn = (row * tokens + token) * words + word;
    let (cos, sin) = (cos[turn], sin[turn]);
    let to = vector * 2 * words + word;
    output[to] = first * cos - second * sin;
    output[to + words] = second * cos + first * sin;
}

/// `silu(gate) · up`, or with `gelu` GELU in its tanh form in place of SiLU.
fn gated(gate: CubeTensor, up: CubeTensor, gelu: bool) -> CubeTensor {
    let [gate, up] = [gate, up].map(into_contiguous);
    let output = empty(&gate, gate.shape(), DType::F32);
    let count = gate.shape().num_elements();
    let width = match count.is_multiple_of(4) {
        true => 4,
        false => 1,
    };
    let client = gate.client.clone();
    debug_assert_eq!(up.shape(), gate.shape());
    // SAFETY: units beyond `count` words end; three contiguous tensors of one shape have so many.
    unsafe {
        gated_kernel::launch_unchecked(
            &client,
            grid((count / width).div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            width,
            gate.into_buffer_arg(),
            up.into_buffer_arg(),
            output.clone().into_buffer_arg(),
            count / width,
            gelu,
        );
    }
    output
}

#[cube(launch_unchecked)]
fn gated_kernel<N: Size>(
    gate: &[Vector<f32, N>],
    up: &[Vector<f32, N>],
    output: &mut [Vector<f32, N>],
    count: usize,
    #[comptime] gelu: bool,
) {
    let i = place() * UNITS + UNIT_POS_X as usize;
    if i >= count {
        terminate!();
    }
    let gate = gate[i];
    let x = if gelu {
        Vector::new(GELU_SLOPE) * (gate + Vector::new(GELU_CUBE) * gate * gate * gate)
    } else {
        gate
    };
    output[i] = gate / (Vector::new(1.0f32) + (-x).exp()) * up[i];
}
