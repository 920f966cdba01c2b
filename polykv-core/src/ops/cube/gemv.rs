//! GEMV: products of few rows with stored weights, bound by the memory that the weights lie in. A group of units reads two
//! rows of weights, several vectors of each at a time; no number is read twice but those of the few rows.

use super::{empty, unrolls};
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

pub const UNITS: usize = 128;
/// Units of a group.
pub const LANES: usize = 32;
/// Weight rows of a cube whose groups take two each.
pub const PAIRS: usize = UNITS / LANES;

/// How a launch reads.
struct Shape {
    rows: usize,
    width: usize,
    words: usize,
    /// Vectors of a weight row in flight per unit.
    depth: usize,
}

impl Shape {
    fn of(x: &CubeTensor, weights: &[&CubeTensor]) -> Self {
        let inputs = weights[0].shape()[1];
        let rows = x.shape().num_elements() / inputs;
        let real = unrolls(&x.client);
        // Sixteen bytes at a time; with many rows their sums would not fit the registers.
        let most = match real && rows <= 2 {
            true => 16 / weights[0].dtype.size(),
            false => 4,
        };
        let fits = |width: &usize| {
            let whole = |weight: &&CubeTensor| weight.meta.strides()[0].is_multiple_of(*width);
            inputs.is_multiple_of(*width) && weights.iter().all(whole)
        };
        let width = [8, 4].into_iter().filter(|&width| width <= most);
        let width = width.into_iter().find(fits).unwrap_or(1);
        Self {
            rows,
            width,
            words: inputs / width,
            depth: if real { 4 } else { 1 },
        }
    }

    /// What the kernels rely on: weights of one type and width, whose rows `x` has the words for, and a residual like the
    /// output.
    fn fits(
        &self,
        x: &CubeTensor,
        weights: &[&CubeTensor],
        residual: Option<(&CubeTensor, &CubeTensor)>,
    ) -> bool {
        let inputs = self.words * self.width;
        let alike = |weight: &&CubeTensor| {
            weight.dtype == weights[0].dtype && weight.shape()[1] == inputs && weight.shape()[0] > 0
        };
        let whole = x.shape().num_elements() == self.rows * inputs;
        let same = |(all, output): (&CubeTensor, &CubeTensor)| {
            all.shape().num_elements() == output.shape().num_elements()
        };
        weights.iter().all(alike) && whole && residual.is_none_or(same)
    }
}

/// `x [.., in]`, contiguous and of at most 8 rows, times the transpose of `weight [out, in]`, plus `residual [.., out]` if
/// there is one: `[.., out]`.
pub fn multiply(x: CubeTensor, weight: CubeTensor, residual: Option<CubeTensor>) -> CubeTensor {
    let shape = Shape::of(&x, &[&weight]);
    let output = output(&x, &weight);
    let client = x.client.clone();
    let outputs = weight.shape()[0];
    let dtype = dtype_to_storage_type(weight.dtype);
    debug_assert!(shape.fits(&x, &[&weight], residual.as_ref().map(|all| (all, &output))));
    // SAFETY: groups have two rows of the weight, cut to the last, and read `words` words of each and of the rows of `x`,
    // which have as many; only lanes with a row write, to its place.
    unsafe {
        one_kernel::launch_unchecked(
            &client,
            CubeCount::Static(outputs.div_ceil(2 * PAIRS) as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            shape.width,
            x.into_tensor_arg(),
            weight.into_tensor_arg(),
            residual.map(CubeTensor::into_buffer_arg).into(),
            output.clone().into_tensor_arg(),
            shape.words,
            shape.rows,
            shape.width,
            shape.depth,
            dtype,
        );
    }
    output
}

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

fn output(x: &CubeTensor, weight: &CubeTensor) -> CubeTensor {
    let mut dims = x.shape().to_vec();
    let rank = dims.len();
    dims[rank - 1] = weight.shape()[0];
    empty(x, dims, DType::F32)
}

/// One group per two rows of the weight.
#[cube(launch_unchecked)]
fn one_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<f32, N>>,
    weight: &Tensor<Vector<E, N>>,
    residual: ComptimeOption<&[f32]>,
    output: &mut Tensor<f32>,
    words: usize,
    #[comptime] rows: usize,
    #[comptime] width: usize,
    #[comptime] depth: usize,
    #[define(E)] _dtype: ElemType,
) {
    let cube = CUBE_POS_X as usize;
    let mut sums = Shared::<[f32]>::new_slice(comptime!(2 * rows * UNITS));
    multiply_cube::<E, N>(
        x, weight, residual, output, cube, &mut sums, words, rows, width, depth,
    );
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

/// The products of `x` with a cube's rows of a weight, plus the residual if there is one.
#[cube]
fn multiply_cube<E: Float, N: Size>(
    x: &Tensor<Vector<f32, N>>,
    weight: &Tensor<Vector<E, N>>,
    residual: ComptimeOption<&[f32]>,
    output: &mut Tensor<f32>,
    cube: usize,
    sums: &mut Shared<[f32]>,
    words: usize,
    #[comptime] rows: usize,
    #[comptime] width: usize,
    #[comptime] depth: usize,
) {
    let unit = UNIT_POS_X as usize;
    let row = (cube * PAIRS + unit / LANES) * 2;
    let outputs = weight.shape(0);
    let (first, second) = (min(row, outputs - 1), min(row + 1, outputs - 1));
    let none = ComptimeOption::<&[Vector<f32, N>]>::new_None();
    multiply_rows::<E, N>(
        x, none, weight, first, weight, second, sums, words, rows, width, depth,
    );
    put(residual, output, row, outputs, sums, rows);
}

/// Writes the sums of a group's two rows, the first of which is `row`, plus the residual if there is one.
#[cube]
pub fn put(
    residual: ComptimeOption<&[f32]>,
    output: &mut Tensor<f32>,
    row: usize,
    outputs: usize,
    sums: &mut Shared<[f32]>,
    #[comptime] rows: usize,
) {
    let unit = UNIT_POS_X as usize;
    let lane = unit % LANES;
    if lane < 2usize && row + lane < outputs {
        #[unroll]
        for r in 0..rows {
            let at = r * outputs + row + lane;
            let more: ComptimeOption<f32> = residual.as_ref().map(|all| all[at]);
            output[at] = sums[(2 * r + lane) * UNITS + unit - lane] + more.unwrap_or(0.0f32);
        }
    }
}

/// The products of `x` with two weight rows per group: those of x row `r` with the rows of `a` and `b` are in `sums` at
/// `2 r` and `2 r + 1` times `UNITS` plus the group's first unit. With a `norm [words]` it multiplies the words of `x` first, and
/// the sums of squares of the rows of `x` follow behind the products, at `2 rows + r`.
#[cube]
fn multiply_rows<E: Float, N: Size>(
    x: &Tensor<Vector<f32, N>>,
    norm: ComptimeOption<&[Vector<f32, N>]>,
    a: &Tensor<Vector<E, N>>,
    row_a: usize,
    b: &Tensor<Vector<E, N>>,
    row_b: usize,
    sums: &mut Shared<[f32]>,
    words: usize,
    #[comptime] rows: usize,
    #[comptime] width: usize,
    #[comptime] depth: usize,
) {
    let unit = UNIT_POS_X as usize;
    let lane = unit % LANES;
    let start_a = row_a * a.stride(0) / width;
    let start_b = row_b * b.stride(0) / width;
    let normed = norm.is_some();
    let mut of_a = Array::<Vector<f32, N>>::new(rows);
    let mut of_b = Array::<Vector<f32, N>>::new(rows);
    let mut squares = Array::<Vector<f32, N>>::new(rows);
    #[unroll]
    for r in 0..rows {
        of_a[r] = Vector::new(0.0f32);
        of_b[r] = Vector::new(0.0f32);
        squares[r] = Vector::new(0.0f32);
    }
    let mut w = lane;
    // All loads of a round are on their way before the first is used.
    while w + (depth - 1) * LANES < words {
        let mut from_a = Array::<Vector<E, N>>::new(depth);
        let mut from_b = Array::<Vector<E, N>>::new(depth);
        #[unroll]
        for i in 0..depth {
            from_a[i] = a[start_a + w + i * LANES];
            from_b[i] = b[start_b + w + i * LANES];
        }
        #[unroll]
        for i in 0..depth {
            let a_word = Vector::<f32, N>::cast_from(from_a[i]);
            let b_word = Vector::<f32, N>::cast_from(from_b[i]);
            let factor: ComptimeOption<Vector<f32, N>> =
                norm.as_ref().map(|all| all[w + i * LANES]);
            let factor = factor.unwrap_or(Vector::new(1.0f32));
            #[unroll]
            for r in 0..rows {
                let x_word = x[r * words + w + i * LANES];
                if comptime!(normed) {
                    squares[r] += x_word * x_word;
                }
                let x_word = x_word * factor;
                of_a[r] += x_word * a_word;
                of_b[r] += x_word * b_word;
            }
        }
        w += depth * LANES;
    }
    while w < words {
        let a_word = Vector::<f32, N>::cast_from(a[start_a + w]);
        let b_word = Vector::<f32, N>::cast_from(b[start_b + w]);
        let factor: ComptimeOption<Vector<f32, N>> = norm.as_ref().map(|all| all[w]);
        let factor = factor.unwrap_or(Vector::new(1.0f32));
        #[unroll]
        for r in 0..rows {
            let x_word = x[r * words + w];
            if comptime!(normed) {
                squares[r] += x_word * x_word;
            }
            let x_word = x_word * factor;
            of_a[r] += x_word * a_word;
            of_b[r] += x_word * b_word;
        }
        w += LANES;
    }
    if comptime!(normed) {
        #[unroll]
        for r in 0..rows {
            let parts = squares[r];
            let mut sum = 0.0f32;
            #[unroll]
            for i in 0..width {
                sum += parts.extract(i);
            }
            sums[(2 * rows + r) * UNITS + unit] = sum;
        }
    }
    let all = comptime!(if normed { 3 * rows } else { 2 * rows });
    gather::<N>(&of_a, &of_b, sums, rows, all, width);
}

/// Adds up what the lanes of each group have of two weight rows, to where [`multiply_rows`] has its results, and of what else is in the
/// first `all` times `UNITS` of the sums.
#[cube]
pub fn gather<N: Size>(
    of_a: &Array<Vector<f32, N>>,
    of_b: &Array<Vector<f32, N>>,
    sums: &mut Shared<[f32]>,
    #[comptime] rows: usize,
    #[comptime] all: usize,
    #[comptime] width: usize,
) {
    let unit = UNIT_POS_X as usize;
    let lane = unit % LANES;
    #[unroll]
    for r in 0..rows {
        let (parts_a, parts_b) = (of_a[r], of_b[r]);
        let mut sum_a = 0.0f32;
        let mut sum_b = 0.0f32;
        #[unroll]
        for i in 0..width {
            sum_a += parts_a.extract(i);
            sum_b += parts_b.extract(i);
        }
        sums[2 * r * UNITS + unit] = sum_a;
        sums[(2 * r + 1) * UNITS + unit] = sum_b;
    }
    // The lanes of each group, halved again and again.
    #[unroll]
    for step in 0..5u32 {
        let half = comptime!(LANES >> (step as usize + 1));
        sync_cube();
        if lane < half {
            #[unroll]
            for s in 0..all {
                sums[s * UNITS + unit] += sums[s * UNITS + unit + half];
            }
        }
    }
    sync_cube();
}
