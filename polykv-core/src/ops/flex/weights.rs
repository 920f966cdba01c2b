//! Weights of every storage format on the CPU: the products of few rows with them, and their values in f32.

use super::bridge::{elements, flex, float, float_back, inner_dense, integers, tensor, widened};
use super::gemv::{self, Rows};
use super::pointwise;
use super::simd::Level;
use super::view::Matrix;
use crate::ops::weight::{Blocks, Q8Weight, Weight};
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Int, Tensor, bf16, f16};

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
    let output = pointwise::widen_rows(Level::best(), &blocks, rows);
    float_back(tensor(output, [rows.len(), blocks.columns()]))
}
