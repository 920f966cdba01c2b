//! Between burn's tensors and the slices that kernels read.

use super::simd::{Element, Level};
use super::widen::widen;
use crate::machine;
use burn::backend::flex::{FlexQTensor, FlexTensor};
use burn::backend::{BackendTensor, DispatchKindConversion, DispatchTensor, Flex};
use burn::tensor::kind::Basic;
use burn::tensor::{DType, Shape, Tensor, TensorData, bf16, f16};
use std::borrow::Cow;

/// The elements of a contiguous integer tensor.
pub fn integers(tensor: &FlexTensor) -> Cow<'_, [i64]> {
    match tensor.dtype() {
        DType::I64 => elements::<i64>(tensor).into(),
        _ => elements::<i32>(tensor)
            .iter()
            .map(|&x| i64::from(x))
            .collect::<Vec<_>>()
            .into(),
    }
}

pub fn integer_tensor<const D: usize>(
    values: Vec<i64>,
    shape: [usize; D],
    dtype: DType,
) -> FlexTensor {
    let data = TensorData::new(values, Shape::from(shape));
    match dtype {
        DType::I64 => FlexTensor::from_data(data),
        dtype => FlexTensor::from_data(data.convert_dtype(dtype)),
    }
}

pub fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, Shape::from(shape)))
}

/// Kernels read rows as slices: a tensor whose last axis is strided is copied, other views are read in place.
pub fn inner_dense(tensor: FlexTensor) -> FlexTensor {
    match tensor.layout().strides().last() {
        Some(1) if tensor.layout().has_positive_strides() => tensor,
        _ => tensor.to_contiguous(),
    }
}

/// As f32, last axis dense.
pub fn widened(tensor: FlexTensor) -> FlexTensor {
    match tensor.dtype() {
        DType::F16 => widened_from::<f16>(&tensor),
        DType::BF16 => widened_from::<bf16>(&tensor),
        _ => inner_dense(tensor),
    }
}

pub fn widened_from<E: Element>(tensor: &FlexTensor) -> FlexTensor {
    let tensor = tensor.to_contiguous();
    let output = widen(Level::best(), elements::<E>(&tensor));
    FlexTensor::from_data(TensorData::new(output, tensor.layout().shape().clone()))
}

/// The elements of a contiguous tensor, which may start inside its storage.
pub fn elements<E: burn::tensor::Element + bytemuck::Pod>(tensor: &FlexTensor) -> &[E] {
    let start = tensor.layout().start_offset();
    &tensor.storage::<E>()[start..start + tensor.layout().num_elements()]
}

/// A slot as an index below `n`; what is no such number counts as n − 1.
#[inline(always)]
pub fn existing(slot: i64, n: usize) -> usize {
    usize::try_from(slot).map_or(n - 1, |slot| slot.min(n - 1))
}

/// The primitive of a tensor on the CPU.
pub fn flex<const D: usize, K: Basic>(tensor: Tensor<D, K>) -> BackendTensor<Flex> {
    <DispatchTensor as DispatchKindConversion<Flex>>::try_into_backend(tensor.into_dispatch())
        .unwrap_or_else(|other| unreachable!("kernels of the CPU were given {other:?}"))
}

pub fn float<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    flex(tensor).float()
}

pub fn float_back<const D: usize>(tensor: FlexTensor) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(tensor)
}

/// Values and scales of a tensor that burn holds quantised on the CPU.
pub fn quantized(tensor: Tensor<2>) -> FlexQTensor {
    flex(tensor).quantized()
}

/// The same tensor after its memory has moved to huge pages, where the system has them.
pub fn on_huge_pages(tensor: Tensor<2>) -> Tensor<2> {
    let tensor = float(tensor);
    match tensor.dtype() {
        DType::F16 => machine::use_huge_pages(tensor.storage::<f16>()),
        DType::BF16 => machine::use_huge_pages(tensor.storage::<bf16>()),
        DType::F64 => machine::use_huge_pages(tensor.storage::<f64>()),
        _ => machine::use_huge_pages(tensor.storage::<f32>()),
    }
    float_back(tensor)
}
