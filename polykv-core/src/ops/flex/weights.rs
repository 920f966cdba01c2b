//! Weights of every storage format on the CPU: the products of few rows with them, and their values in f32.

use super::CHUNK;
use super::blocks;
use super::bridge::{elements, flex, float, float_back, inner_dense, integers, tensor, widened};
use super::gemv::{self, Rows};
use super::simd::{LANES, Level, Vector, dispatch};
use super::view::Matrix;
use crate::ops::weight::{Block, BlockRows, BlockType, BlockWeight, Blocks, Q8Weight, Weight};
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Int, Tensor, bf16, f16};
use rayon::prelude::*;

/// Rows of a weight in blocks that are unpacked at once.
const TILE_ROWS: usize = 512;

/// `x [rows, in]` in f32 of few rows times the transposes of weights `[out, in]`: `[rows, out]` each.
pub fn gemv<const N: usize>(x: Tensor<2>, weights: [&Weight; N]) -> [Tensor<2>; N] {
    let rows = x.dims()[0];
    let x = float(x).to_contiguous();
    products(elements(&x), weights).map(|output| {
        let width = output.len() / rows;
        float_back(tensor(output, [rows, width]))
    })
}

/// The same of slices. Weights of one format are handed to the threads at once.
pub fn products<const N: usize>(x: &[f32], weights: [&Weight; N]) -> [Vec<f32>; N] {
    let in_blocks: Option<Vec<BlockRows<'_>>> = all(&weights, |weight| match weight {
        Weight::Blocks(weight) => Some(weight.blocks()),
        _ => None,
    });
    if let Some(weights) = in_blocks {
        return of_format(x, &weights);
    }
    let q8: Option<Vec<Blocks<'_>>> = all(&weights, |weight| match weight {
        Weight::Q8(weight) => Some(weight.blocks()),
        _ => None,
    });
    if let Some(weights) = q8 {
        return of_format(x, &weights);
    }
    let dtype = weights.iter().find_map(|weight| match weight {
        Weight::Dense(tensor) => Some(tensor.dtype()),
        _ => None,
    });
    let dense: Option<Vec<FlexTensor>> = all(&weights, |weight| match weight {
        Weight::Dense(tensor) if Some(tensor.dtype()) == dtype => {
            Some(inner_dense(float(tensor.clone())))
        }
        _ => None,
    });
    match (dense, dtype) {
        (Some(dense), Some(DType::F16)) => of_format(x, &matrices::<f16>(&dense)),
        (Some(dense), Some(DType::BF16)) => of_format(x, &matrices::<bf16>(&dense)),
        (Some(dense), _) => of_format(x, &matrices::<f32>(&dense)),
        (None, _) => weights.map(|weight| {
            let [output] = products(x, [weight]);
            output
        }),
    }
}

/// What `view` finds in all weights, or nothing.
fn all<'a, T>(weights: &[&'a Weight], view: impl Fn(&'a Weight) -> Option<T>) -> Option<Vec<T>> {
    weights.iter().map(|weight| view(weight)).collect()
}

fn matrices<E: super::simd::Element>(weights: &[FlexTensor]) -> Vec<Matrix<'_, E>> {
    weights.iter().map(Matrix::of).collect()
}

fn of_format<W: Rows, const N: usize>(x: &[f32], weights: &[W]) -> [Vec<f32>; N] {
    let mut output = gemv::multiply(Level::best(), x, weights);
    if N == 1 {
        return std::array::from_fn(|_| std::mem::take(&mut output));
    }
    let width: usize = weights.iter().map(W::rows).sum();
    let mut start = 0;
    std::array::from_fn(|i| {
        let part = start..start + weights[i].rows();
        start = part.end;
        let rows = output.chunks_exact(width);
        rows.flat_map(|row| &row[part.clone()]).copied().collect()
    })
}

/// `x [rows, in]` of many rows in f32 times the transposes of weights in blocks: `[rows, out]` each. Where the processor has
/// no fast dot products of bf16 or of bytes, tiles of a weight are unpacked to f32 one after the other, so that it never exists as
/// a whole.
pub fn block_gemm(x: Tensor<2>, weights: &[&BlockWeight]) -> Vec<Tensor<2>> {
    let [rows, columns] = x.dims();
    let dense = float(x.clone()).to_contiguous();
    let views: Vec<_> = weights.iter().map(|weight| weight.blocks()).collect();
    match blocks::gemm(elements(&dense), columns, &views) {
        Some(outputs) => {
            let outputs = outputs.into_iter().zip(views);
            outputs
                .map(|(output, weight)| float_back(tensor(output, [rows, weight.rows])))
                .collect()
        }
        None => weights
            .iter()
            .map(|weight| tiled_gemm(x.clone(), weight))
            .collect(),
    }
}

/// `x [rows, in]` of many rows in f32 times the transpose of a weight in 8 bits: `[rows, out]`. `None` where unpacking the
/// weight to f32 is as fast.
pub fn q8_gemm(x: Tensor<2>, weight: &Q8Weight) -> Option<Tensor<2>> {
    let rows = x.dims()[0];
    let x = float(x).to_contiguous();
    let weight = weight.blocks();
    let output = blocks::q8_gemm(elements(&x), weight)?;
    Some(float_back(tensor(output, [rows, weight.rows])))
}

/// The same with a weight in bf16. `None` where the processor has no products of bf16, and for widths that are no multiple of
/// 32.
pub fn bf16_gemm(x: Tensor<2>, weight: Tensor<2>) -> Option<Tensor<2>> {
    let (rows, outputs) = (x.dims()[0], weight.dims()[0]);
    let x = float(x).to_contiguous();
    let weight = inner_dense(float(weight));
    let output = blocks::bf16_gemm(elements(&x), Matrix::of(&weight))?;
    Some(float_back(tensor(output, [rows, outputs])))
}

/// By burn's product with one tile after the other.
pub fn tiled_gemm(x: Tensor<2>, weight: &BlockWeight) -> Tensor<2> {
    let all: Vec<usize> = (0..weight.shape()[0]).collect();
    let tile = |rows: &[usize]| x.clone().matmul(decode_rows(weight, rows).transpose());
    Tensor::cat(all.chunks(TILE_ROWS).map(tile).collect(), 1)
}

/// A tensor in f16 or bf16 as f32.
pub fn widen(weight: Tensor<2>) -> Tensor<2> {
    float_back(widened(float(weight)))
}

/// All values of an 8-bit weight as f32.
pub fn q8_to_f32(weight: &Q8Weight) -> Tensor<2> {
    let all: Vec<usize> = (0..weight.blocks().rows).collect();
    widen_rows(weight, &all)
}

/// The given rows of an 8-bit weight as f32.
pub fn q8_rows(weight: &Q8Weight, rows: Tensor<1, Int>) -> Tensor<2> {
    widen_rows(weight, &indices(rows))
}

/// All values of a weight in blocks as f32.
pub fn blocks_to_f32(weight: &BlockWeight) -> Tensor<2> {
    let all: Vec<usize> = (0..weight.shape()[0]).collect();
    decode_rows(weight, &all)
}

/// The given rows of a weight in blocks as f32.
pub fn block_rows(weight: &BlockWeight, rows: Tensor<1, Int>) -> Tensor<2> {
    decode_rows(weight, &indices(rows))
}

fn indices(rows: Tensor<1, Int>) -> Vec<usize> {
    let rows = flex(rows).int().to_contiguous();
    integers(&rows).iter().map(|&row| row as usize).collect()
}

fn widen_rows(weight: &Q8Weight, rows: &[usize]) -> Tensor<2> {
    let (level, weight) = (Level::best(), weight.blocks());
    each_row(weight.columns(), rows, |row, output| {
        let blocks = weight.row(row);
        dispatch!(level, fn scaled(output: &mut [f32], blocks: &[Block]));
    })
}

fn decode_rows(weight: &BlockWeight, rows: &[usize]) -> Tensor<2> {
    let (level, weight) = (Level::best(), weight.blocks());
    let kind = weight.kind;
    each_row(weight.columns, rows, |row, output| {
        let blocks = weight.row(row);
        dispatch!(level, fn decoded(output: &mut [f32], kind: BlockType, blocks: &[u8]));
    })
}

/// `[rows.len(), columns]`, each row filled from its index.
fn each_row(columns: usize, rows: &[usize], fill: impl Fn(usize, &mut [f32]) + Sync) -> Tensor<2> {
    let mut output = vec![0.0; rows.len() * columns];
    let fill = |(row, output): (&usize, &mut [f32])| fill(*row, output);
    match output.len() < CHUNK {
        true => rows
            .iter()
            .zip(output.chunks_exact_mut(columns))
            .for_each(fill),
        false => rows
            .par_iter()
            .zip(output.par_chunks_exact_mut(columns))
            .with_min_len(CHUNK.div_ceil(columns))
            .for_each(fill),
    }
    float_back(tensor(output, [rows.len(), columns]))
}

#[inline(always)]
fn decoded<V: Vector>(output: &mut [f32], kind: BlockType, blocks: &[u8]) {
    kind.decode(blocks, output);
}

#[inline(always)]
fn scaled<V: Vector>(output: &mut [f32], blocks: &[Block]) {
    let (output, _) = output.as_chunks_mut::<LANES>();
    for (output, block) in output.as_chunks_mut::<2>().0.iter_mut().zip(blocks) {
        let values = block.values.as_chunks().0;
        for (output, values) in output.iter_mut().zip(values) {
            *output = V::load_i8(values)
                .mul_add(V::splat(block.scale), V::splat(0.0))
                .lanes();
        }
    }
}
