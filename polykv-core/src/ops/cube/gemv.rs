//! GEMV: products of few rows with stored weights, bound by the memory that the weights lie in. A group of units reads two
//! rows of weights, several vectors of each at a time; no number is read twice but those of the few rows.

mod norm;

pub use norm::{norm_qkv, norm_swiglu};

use super::{empty, unrolls};
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
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
