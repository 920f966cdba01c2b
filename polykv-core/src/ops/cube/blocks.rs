//! Weights in blocks of ggml's types: GEMV from the blocks as they lie in the words, and rows of them in f32.

mod numbers;

use super::gemv::{LANES, PAIRS, UNITS, gather, put};
use super::pointwise::{grid, place};
use super::{empty, existing};
use crate::ops::kernels::BlockOps;
use crate::ops::weight::BlockType;
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use numbers::{EIGHT, eight, fours_apart};

/// Numbers of a vector.
const WIDTH: usize = 4;

impl BlockOps for CubeBackend {
    fn block_gemv(x: CubeTensor, blocks: CubeTensor, kind: BlockType) -> CubeTensor {
        let [x, blocks] = [x, blocks].map(into_contiguous);
        let [rows, inputs] = x.shape().dims::<2>();
        let outputs = blocks.shape()[0];
        let output = empty(&x, [rows, outputs], DType::F32);
        let client = x.client.clone();
        let dtype = dtype_to_storage_type(x.dtype);
        debug_assert_eq!(inputs, columns(&blocks, kind));
        // SAFETY: groups have two rows of the weight, cut to the last; their lanes read words of blocks that those rows have
        // and numbers of `x` that these blocks stand over; only lanes with a row write, to its place.
        unsafe {
            gemv_kernel::launch_unchecked(
                &client,
                CubeCount::Static(outputs.div_ceil(2 * PAIRS) as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                WIDTH,
                x.into_tensor_arg(),
                blocks.into_tensor_arg(),
                output.clone().into_tensor_arg(),
                inputs / EIGHT,
                rows,
                kind,
                dtype,
            );
        }
        output
    }

    fn block_rows(blocks: CubeTensor, ids: CubeTensor, kind: BlockType) -> CubeTensor {
        let [blocks, ids] = [blocks, ids].map(into_contiguous);
        let count = ids.shape()[0];
        let inputs = columns(&blocks, kind);
        let output = empty(&blocks, [count, inputs], DType::F32);
        let client = blocks.client.clone();
        let dtype = dtype_to_storage_type(ids.dtype);
        // SAFETY: units beyond the rows end; the others read words of a block of a row that `existing` has put below the
        // number of rows, and write eight numbers of their own.
        unsafe {
            rows_kernel::launch_unchecked(
                &client,
                grid((count * inputs / EIGHT).div_ceil(UNITS)),
                CubeDim::new_1d(UNITS as u32),
                WIDTH,
                blocks.into_tensor_arg(),
                ids.into_tensor_arg(),
                output.clone().into_tensor_arg(),
                count,
                inputs / EIGHT,
                kind,
                dtype,
            );
        }
        output
    }
}

/// The numbers of a row.
fn columns(blocks: &CubeTensor, kind: BlockType) -> usize {
    blocks.shape()[1] / kind.words() * kind.elements()
}

/// One group per two rows of the weight; a lane takes eight numbers of a block at a time, so that neighbours read
/// neighbouring words of the weight and of `x`. `parts` is how many eights a row has.
#[cube(launch_unchecked)]
fn gemv_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    blocks: &Tensor<u32>,
    output: &mut Tensor<f32>,
    parts: usize,
    #[comptime] rows: usize,
    #[comptime] kind: BlockType,
    #[define(E)] _dtype: ElemType,
) {
    let unit = UNIT_POS_X as usize;
    let row = (CUBE_POS_X as usize * PAIRS + unit / LANES) * 2;
    let outputs = blocks.shape(0);
    let (first, second) = (min(row, outputs - 1), min(row + 1, outputs - 1));
    let apart = comptime!(fours_apart(kind));
    let mut of_a = Array::<Vector<f32, N>>::new(rows);
    let mut of_b = Array::<Vector<f32, N>>::new(rows);
    #[unroll]
    for r in 0..rows {
        of_a[r] = Vector::new(0.0f32);
        of_b[r] = Vector::new(0.0f32);
    }
    let mut part = unit % LANES;
    while part < parts {
        let (a, a_behind) = eight::<N>(blocks, first, part, kind);
        let (b, b_behind) = eight::<N>(blocks, second, part, kind);
        let at = part / apart * (2 * apart) + part % apart;
        #[unroll]
        for r in 0..rows {
            let x_word = Vector::<f32, N>::cast_from(x[r * 2 * parts + at]);
            let x_behind = Vector::<f32, N>::cast_from(x[r * 2 * parts + at + apart]);
            of_a[r] += x_word * a + x_behind * a_behind;
            of_b[r] += x_word * b + x_behind * b_behind;
        }
        part += LANES;
    }
    let mut sums = Shared::<[f32]>::new_slice(comptime!(2 * rows * UNITS));
    gather::<N>(&of_a, &of_b, &mut sums, rows, comptime!(2 * rows), WIDTH);
    let none = ComptimeOption::<&[f32]>::new_None();
    put(none, output, row, outputs, &mut sums, rows);
}

/// One unit per eight numbers of `output [count, columns]`.
#[cube(launch_unchecked)]
fn rows_kernel<I: Int, N: Size>(
    blocks: &Tensor<u32>,
    ids: &Tensor<I>,
    output: &mut Tensor<Vector<f32, N>>,
    count: usize,
    parts: usize,
    #[comptime] kind: BlockType,
    #[define(I)] _dtype: ElemType,
) {
    let i = place() * UNITS + UNIT_POS_X as usize;
    if i >= count * parts {
        terminate!();
    }
    let (row, part) = (i / parts, i % parts);
    let stored = existing::<I>(ids[row], blocks.shape(0));
    let (four, behind) = eight::<N>(blocks, stored, part, kind);
    let apart = comptime!(fours_apart(kind));
    let at = row * 2 * parts + part / apart * (2 * apart) + part % apart;
    output[at] = four;
    output[at + apart] = behind;
}
