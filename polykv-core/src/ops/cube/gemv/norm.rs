//! Products of an RMS norm, which is a part of them: each group sums up the squares of what it reads anyway.

use super::{LANES, PAIRS, Shape, UNITS, multiply_rows, output};
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Queries, keys and values `[rows, 1, out]` each of the RMS norm of `x` with the weight `norm [in]`: the products with three
/// weights at once, and the rotary embedding of the first two if there are tables `cos` and `sin [1 or rows, 1, 1, d / 2]`.
pub fn norm_qkv(
    x: CubeTensor,
    norm: CubeTensor,
    weights: [CubeTensor; 3],
    rotary: Option<[CubeTensor; 2]>,
    dim: usize,
    eps: f32,
) -> [CubeTensor; 3] {
    let norm = into_contiguous(norm);
    let shape = Shape::of(&x, &weights.each_ref());
    let results = weights.each_ref().map(|weight| output(&x, weight));
    let client = x.client.clone();
    let cubes = weights
        .each_ref()
        .map(|w| (w.shape()[0] / 2).div_ceil(PAIRS));
    let dtype = dtype_to_storage_type(weights[0].dtype);
    let rotated = rotary.is_some();
    let tables = rotary.as_ref().map_or(1, |[cos, _]| cos.shape()[0]);
    let [cos, sin] = match rotary {
        Some(tables) => tables.map(into_contiguous),
        None => [x.clone(), x.clone()],
    };
    debug_assert!(shape.fits(&x, &weights.each_ref(), None));
    debug_assert_eq!(norm.shape().num_elements(), weights[0].shape()[1]);
    debug_assert!(
        weights.iter().all(|w| w.shape()[0].is_multiple_of(dim)) && dim.is_multiple_of(2)
    );
    debug_assert!(!rotated || cos.shape().num_elements() == tables * dim / 2);
    debug_assert!(!rotated || sin.shape().num_elements() == tables * dim / 2);
    let [a, b, c] = weights.map(CubeTensor::into_tensor_arg);
    let [to_a, to_b, to_c] = results.clone().map(CubeTensor::into_tensor_arg);
    // SAFETY: a cube has pairs of rows of one of the three weights, by the numbers of cubes that each takes, cut to its last
    // pair; it reads `words` words of each, of the rows of `x` and of the norm's weight, and writes to the places of rows that
    // exist. Tables have half a head's numbers for each of `tables` rows, the last of which counts for those beyond.
    unsafe {
        norm_qkv_kernel::launch_unchecked(
            &client,
            CubeCount::Static(cubes.iter().sum::<usize>() as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            shape.width,
            x.into_tensor_arg(),
            norm.into_buffer_arg(),
            a,
            b,
            c,
            cos.into_buffer_arg(),
            sin.into_buffer_arg(),
            to_a,
            to_b,
            to_c,
            cubes[0],
            cubes[1],
            eps,
            shape.words,
            dim / 2,
            tables,
            rotated,
            shape.rows,
            shape.width,
            shape.depth,
            dtype,
        );
    }
    results
}

/// SwiGLU of the RMS norm of `x` with the weight `norm [in]`: silu of the product with `gate` times the product with `up`, weights
/// of one shape.
pub fn norm_swiglu(
    x: CubeTensor,
    norm: CubeTensor,
    gate: CubeTensor,
    up: CubeTensor,
    eps: f32,
) -> CubeTensor {
    let norm = into_contiguous(norm);
    let shape = Shape::of(&x, &[&gate, &up]);
    let output = output(&x, &gate);
    let client = x.client.clone();
    let outputs = gate.shape()[0];
    let dtype = dtype_to_storage_type(gate.dtype);
    debug_assert!(shape.fits(&x, &[&gate, &up], None) && gate.shape() == up.shape());
    debug_assert_eq!(norm.shape().num_elements(), gate.shape()[1]);
    // SAFETY: groups have a row of both weights, cut to the last, and read `words` words of each, of the rows of `x` and of the
    // norm's weight; only groups with a row write, to its place.
    unsafe {
        norm_swiglu_kernel::launch_unchecked(
            &client,
            CubeCount::Static(outputs.div_ceil(PAIRS) as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            shape.width,
            x.into_tensor_arg(),
            norm.into_buffer_arg(),
            gate.into_tensor_arg(),
            up.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            eps,
            shape.words,
            shape.rows,
            shape.width,
            shape.depth,
            dtype,
        );
    }
    output
}

/// The first `cubes_a` cubes have the rows of `a`, the next `cubes_b` those of `b`. A group has two rows that the rotary
/// embedding turns together.
#[cube(launch_unchecked)]
fn norm_qkv_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<f32, N>>,
    norm: &[Vector<f32, N>],
    a: &Tensor<Vector<E, N>>,
    b: &Tensor<Vector<E, N>>,
    c: &Tensor<Vector<E, N>>,
    cos: &[f32],
    sin: &[f32],
    to_a: &mut Tensor<f32>,
    to_b: &mut Tensor<f32>,
    to_c: &mut Tensor<f32>,
    cubes_a: usize,
    cubes_b: usize,
    eps: f32,
    words: usize,
    half: usize,
    tables: usize,
    #[comptime] rotated: bool,
    #[comptime] rows: usize,
    #[comptime] width: usize,
    #[comptime] depth: usize,
    #[define(E)] _dtype: ElemType,
) {
    let cube = CUBE_POS_X as usize;
    let mut sums = Shared::<[f32]>::new_slice(comptime!(3 * rows * UNITS));
    if cube < cubes_a {
        norm_pair::<E, N>(
            x, norm, a, cos, sin, to_a, cube, &mut sums, eps, words, half, tables, rotated, rows,
            width, depth,
        );
    } else if cube < cubes_a + cubes_b {
        let cube = cube - cubes_a;
        norm_pair::<E, N>(
            x, norm, b, cos, sin, to_b, cube, &mut sums, eps, words, half, tables, rotated, rows,
            width, depth,
        );
    } else {
        let cube = cube - cubes_a - cubes_b;
        norm_pair::<E, N>(
            x, norm, c, cos, sin, to_c, cube, &mut sums, eps, words, half, tables, false, rows,
            width, depth,
        );
    }
}

/// The products of the normed `x` with two rows of a weight for each group of a cube, half a head apart.
#[cube]
fn norm_pair<E: Float, N: Size>(
    x: &Tensor<Vector<f32, N>>,
    norm: &[Vector<f32, N>],
    weight: &Tensor<Vector<E, N>>,
    cos: &[f32],
    sin: &[f32],
    output: &mut Tensor<f32>,
    cube: usize,
    sums: &mut Shared<[f32]>,
    eps: f32,
    words: usize,
    half: usize,
    tables: usize,
    #[comptime] rotated: bool,
    #[comptime] rows: usize,
    #[comptime] width: usize,
    #[comptime] depth: usize,
) {
    let unit = UNIT_POS_X as usize;
    let outputs = weight.shape(0);
    let pair = cube * PAIRS + unit / LANES;
    let read = min(pair, outputs / 2 - 1);
    let turn = read % half;
    let first = read / half * 2 * half + turn;
    let norm = ComptimeOption::<&[Vector<f32, N>]>::new_Some(norm);
    multiply_rows::<E, N>(
        x,
        norm,
        weight,
        first,
        weight,
        first + half,
        sums,
        words,
        rows,
        width,
        depth,
    );
    if unit % LANES == 0usize && pair < outputs / 2 {
        #[unroll]
        for r in 0..rows {
            let scale = root(sums[(2 * rows + r) * UNITS + unit], words * width, eps);
            let one = sums[2 * r * UNITS + unit] * scale;
            let other = sums[(2 * r + 1) * UNITS + unit] * scale;
            let at = r * outputs + first;
            if comptime!(rotated) {
                // A table for each sequence, or one for all.
                let table = min(r.runtime(), tables - 1) * half + turn;
                let (cos, sin) = (cos[table], sin[table]);
                output[at] = one * cos - other * sin;
                output[at + half] = other * cos + one * sin;
            } else {
                output[at] = one;
                output[at + half] = other;
            }
        }
    }
}

/// What a vector of `count` numbers is multiplied by in an RMS norm, from the sum of its squares.
#[cube]
fn root(squares: f32, count: usize, eps: f32) -> f32 {
    1.0f32 / (squares / f32::cast_from(count) + eps).sqrt()
}

/// One group per row of both weights.
#[cube(launch_unchecked)]
fn norm_swiglu_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<f32, N>>,
    norm: &[Vector<f32, N>],
    gate: &Tensor<Vector<E, N>>,
    up: &Tensor<Vector<E, N>>,
    output: &mut Tensor<f32>,
    eps: f32,
    words: usize,
    #[comptime] rows: usize,
    #[comptime] width: usize,
    #[comptime] depth: usize,
    #[define(E)] _dtype: ElemType,
) {
    let unit = UNIT_POS_X as usize;
    let mut sums = Shared::<[f32]>::new_slice(comptime!(3 * rows * UNITS));
    let norm = ComptimeOption::<&[Vector<f32, N>]>::new_Some(norm);
    let row = CUBE_POS_X as usize * PAIRS + unit / LANES;
    let outputs = gate.shape(0);
    let read = min(row, outputs - 1);
    multiply_rows::<E, N>(
        x, norm, gate, read, up, read, &mut sums, words, rows, width, depth,
    );
    if unit % LANES == 0usize && row < outputs {
        #[unroll]
        for r in 0..rows {
            let scale = root(sums[(2 * rows + r) * UNITS + unit], words * width, eps);
            let gate = sums[2 * r * UNITS + unit] * scale;
            let up = sums[(2 * r + 1) * UNITS + unit] * scale;
            output[r * outputs + row] = gate / (1.0f32 + (-gate).exp()) * up;
        }
    }
}
