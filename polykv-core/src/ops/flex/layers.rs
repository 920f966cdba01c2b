//! The operators of the models' layers on the CPU; the callers have seen that the tensors are there and in f32, weights
//! apart.

use super::linear::{self, Blocks, Weight};
use super::simd::Level;
use super::view::{Heads, Matrix};
use super::{elements, inner_dense, pointwise, tensor, widened};
use crate::machine;
use burn::backend::flex::{FlexQTensor, FlexTensor};
use burn::backend::{BackendTensor, DispatchKindConversion, DispatchTensor, Flex};
use burn::tensor::kind::Basic;
use burn::tensor::quantization::{QuantScheme, QuantStore, QuantValue};
use burn::tensor::{DType, Int, Tensor, TensorData, bf16, f16};

/// As [`linears`](crate::ops::linears), the results side by side.
pub fn multiply<const N: usize>(x: Tensor<2>, weights: [Tensor<2>; N]) -> Tensor<2> {
    let x = float(x);
    let dtype = weights[0].dtype();
    if matches!(dtype, DType::QFloat(_)) {
        let weights = weights.map(packed);
        return products(x, &weights.each_ref().map(blocks));
    }
    let weights = weights.map(|weight| inner_dense(float(weight)));
    match dtype {
        DType::F16 => products(x, &weights.each_ref().map(Matrix::<f16>::of)),
        DType::BF16 => products(x, &weights.each_ref().map(Matrix::<bf16>::of)),
        _ => products(x, &weights.each_ref().map(Matrix::<f32>::of)),
    }
}

fn products<W: Weight>(x: FlexTensor, weights: &[W]) -> Tensor<2> {
    let x = x.to_contiguous();
    let rows = x.layout().shape()[0];
    let output = linear::multiply(Level::best(), elements(&x), weights);
    let width = output.len() / rows;
    float_back(tensor(output, [rows, width]))
}

/// As [`silu_mul`](crate::ops::silu_mul).
pub fn silu_mul<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    let shape = gate.shape();
    let (gate, up) = (float(gate).to_contiguous(), float(up).to_contiguous());
    let output = pointwise::silu_mul(Level::best(), elements(&gate), elements(&up));
    float_back(FlexTensor::from_data(TensorData::new(output, shape)))
}

/// As [`rms_norm`](crate::ops::rms_norm).
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f32) -> Tensor<D> {
    let shape = x.shape();
    let (x, weight) = (float(x).to_contiguous(), float(weight).to_contiguous());
    let output = pointwise::rms_norm(Level::best(), elements(&x), elements(&weight), eps);
    float_back(FlexTensor::from_data(TensorData::new(output, shape)))
}

/// As [`rotate`](crate::ops::rotate).
pub fn rotate(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let x = inner_dense(float(x));
    let (cos, sin) = (float(cos).to_contiguous(), float(sin).to_contiguous());
    let x = Heads::of(&x);
    let output = pointwise::rotate(Level::best(), &x, elements(&cos), elements(&sin));
    float_back(tensor(output, [x.batch, x.heads, x.tokens, x.dim]))
}

/// A weight of any storage type as f32.
pub fn widen(weight: Tensor<2>) -> Tensor<2> {
    match weight.dtype() {
        DType::QFloat(_) => {
            let weight = packed(weight);
            let weight = blocks(&weight);
            widen_rows(&weight, &(0..weight.rows()).collect::<Vec<_>>())
        }
        _ => float_back(widened(float(weight))),
    }
}

/// A weight as the kernels read it, on huge pages. Those in 8 bits are burn's until then, with values and scales apart:
/// every use would copy all scales.
pub fn settle<const D: usize>(weight: Tensor<D>) -> Tensor<D> {
    if matches!(weight.dtype(), DType::QFloat(_)) {
        let weight = flex(weight).quantized();
        let [rows, _] = weight.tensor().layout().shape().dims::<2>();
        let bytes = linear::pack(weight.tensor().storage(), weight.scales());
        machine::use_huge_pages(bytemuck::cast_slice(&bytes));
        let width = bytes.len() / rows.max(1);
        let bytes = FlexTensor::from_data(TensorData::new(bytes, [rows, width]));
        let scheme = QuantScheme::default()
            .with_value(QuantValue::Q8S)
            .with_store(QuantStore::Native);
        let weight: BackendTensor<Flex> =
            BackendTensor::Quantized(FlexQTensor::new(bytes, scheme, vec![1.0], None));
        return Tensor::from_dispatch(DispatchTensor::from_backend(weight));
    }
    let weight = float(weight);
    match weight.dtype() {
        DType::F16 => machine::use_huge_pages(bytemuck::cast_slice(weight.storage::<f16>())),
        DType::BF16 => machine::use_huge_pages(bytemuck::cast_slice(weight.storage::<bf16>())),
        _ => machine::use_huge_pages(bytemuck::cast_slice(weight.storage::<f32>())),
    }
    float_back(weight)
}

/// Some rows of an 8-bit weight as f32.
pub fn select(weight: Tensor<2>, rows: Tensor<1, Int>) -> Tensor<2> {
    let rows = flex(rows).int().to_contiguous();
    let rows: Vec<usize> = match rows.dtype() {
        DType::I32 => indices::<i32>(&rows),
        _ => indices::<i64>(&rows),
    };
    widen_rows(&blocks(&packed(weight)), &rows)
}

fn indices<E: burn::tensor::Element + bytemuck::Pod>(rows: &FlexTensor) -> Vec<usize> {
    let rows = elements::<E>(rows).iter();
    rows.map(|row| row.elem::<i64>() as usize).collect()
}

fn widen_rows(weight: &Blocks<'_>, rows: &[usize]) -> Tensor<2> {
    let output = pointwise::widen_rows(Level::best(), weight, rows);
    float_back(tensor(output, [rows.len(), weight.columns()]))
}

/// The bytes of a weight that was settled, `[rows, blocks of a row]`.
fn packed(weight: Tensor<2>) -> FlexTensor {
    flex(weight).quantized().tensor().clone()
}

fn blocks(weight: &FlexTensor) -> Blocks<'_> {
    Blocks::new(weight.storage(), weight.layout().shape()[0])
}

fn flex<const D: usize, K: Basic>(tensor: Tensor<D, K>) -> BackendTensor<Flex> {
    <DispatchTensor as DispatchKindConversion<Flex>>::try_into_backend(tensor.into_dispatch())
        .unwrap_or_else(|other| unreachable!("kernels of the CPU were given {other:?}"))
}

fn float<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    flex(tensor).float()
}

fn float_back<const D: usize>(tensor: FlexTensor) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(tensor)
}
