//! Weights of every storage format on the CPU: the products of few rows with them, and their values in f32.

use super::CHUNK;
use super::bridge::{elements, flex, float, float_back, inner_dense, integers, tensor, widened};
use super::gemv::{self, Rows};
use super::simd::{LANES, Level, Vector, dispatch};
use super::view::Matrix;
use crate::ops::weight::{Block, Blocks, Q8Weight, Weight};
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Int, Tensor, bf16, f16};
use rayon::prelude::*;

/// `x [rows, in]` in f32 times the transposes of weights of one format `[out, in]`, the results side by side: `[rows, Σ
/// out]`.
pub fn gemv<const N: usize>(x: Tensor<2>, weights: [&Weight; N]) -> Tensor<2> {
    let x = float(x);
    let blocks: Vec<Blocks<'_>> = weights
        .iter()
        .filter_map(|weight| match weight {
            Weight::Q8(weight) => Some(weight.blocks()),
            Weight::Dense(_) => None,
        })
        .collect();
    if !blocks.is_empty() {
        return products(x, &blocks);
    }
    let dense: Vec<FlexTensor> = weights
        .iter()
        .filter_map(|weight| match weight {
            Weight::Dense(tensor) => Some(inner_dense(float(tensor.clone()))),
            Weight::Q8(_) => None,
        })
        .collect();
    match dense.first().map(FlexTensor::dtype) {
        Some(DType::F16) => products(x, &matrices::<f16>(&dense)),
        Some(DType::BF16) => products(x, &matrices::<bf16>(&dense)),
        _ => products(x, &matrices::<f32>(&dense)),
    }
}

fn matrices<E: super::simd::Element>(weights: &[FlexTensor]) -> Vec<Matrix<'_, E>> {
    weights.iter().map(Matrix::of).collect()
}

fn products<W: Rows>(x: FlexTensor, weights: &[W]) -> Tensor<2> {
    let x = x.to_contiguous();
    let rows = x.layout().shape()[0];
    let output = gemv::multiply(Level::best(), elements(&x), weights);
    let width = output.len() / rows;
    float_back(tensor(output, [rows, width]))
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
    let rows = flex(rows).int().to_contiguous();
    let rows: Vec<usize> = integers(&rows).iter().map(|&row| row as usize).collect();
    widen_rows(weight, &rows)
}

fn widen_rows(weight: &Q8Weight, rows: &[usize]) -> Tensor<2> {
    let blocks = weight.blocks();
    let output = row_values(Level::best(), &blocks, rows);
    float_back(tensor(output, [rows.len(), blocks.columns()]))
}

/// The given rows of 8-bit weights as f32, `[rows.len(), columns]`.
fn row_values(level: Level, weight: &Blocks<'_>, rows: &[usize]) -> Vec<f32> {
    let columns = weight.columns();
    let mut output = vec![0.0; rows.len() * columns];
    let block = |(row, output): (&usize, &mut [f32])| {
        let blocks = weight.row(*row);
        dispatch!(level, fn scaled(output: &mut [f32], blocks: &[Block]));
    };
    match output.len() < CHUNK {
        true => rows
            .iter()
            .zip(output.chunks_exact_mut(columns))
            .for_each(block),
        false => rows
            .par_iter()
            .zip(output.par_chunks_exact_mut(columns))
            .with_min_len(CHUNK.div_ceil(columns))
            .for_each(block),
    }
    output
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
