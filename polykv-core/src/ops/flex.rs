//! CPU kernels in plain Rust for the Flex backend. Each is written once over a [`simd::Level`] and compiled for
//! AVX-512, AVX2 and without either; the best that the processor has is chosen at run time.

mod choice;
mod columns;
mod entries;
mod hits;
mod keys;
mod lanes;
pub mod layers;
mod linear;
mod pointwise;
mod pool;
mod prefill;
mod simd;
mod tiles;
mod token;
mod view;
mod window;

#[cfg(test)]
mod tests;

use super::kernels::KvOps;
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape, TensorData, bf16, f16};
use simd::{Element, Level};
use std::borrow::Cow;
use view::Heads;

/// Below this many bytes of work a second thread costs more than it saves.
const PARALLEL_BYTES: usize = 64 << 10;

impl KvOps for Flex {
    fn attend_prompt(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (q, k, v) = (inner_dense(q), widened(k), widened(v));
        let (q, k, v) = (Heads::of(&q), Heads::of(&k), Heads::of(&v));
        let (output, log_sums) = prefill::attend(Level::best(), &q, &k, &v);
        // The kernel writes [batch, tokens, heads, head_dim], which the output projection wants.
        let output = tensor(output, [q.batch, q.tokens, q.heads, q.dim]).transpose(1, 2);
        (output, tensor(log_sums, [q.batch, q.heads, q.tokens]))
    }

    fn attend_summed(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (q, k, v) = (inner_dense(q), widened(k), widened(v));
        let (q, k, v) = (Heads::of(&q), Heads::of(&k), Heads::of(&v));
        let (output, log_sums, sums) = prefill::attend_summed(Level::best(), &q, &k, &v);
        let output = tensor(output, [q.batch, q.tokens, q.heads, q.dim]).transpose(1, 2);
        let log_sums = tensor(log_sums, [q.batch, q.heads, q.tokens]);
        (output, log_sums, tensor(sums, [k.batch, k.heads, k.tokens]))
    }

    fn column_sums(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (q, k) = (inner_dense(q), widened(k));
        let (q, k) = (Heads::of(&q), Heads::of(&k));
        let sums = columns::column_sums(Level::best(), &q, &k, log_sums.storage::<f32>());
        tensor(sums, [k.batch, k.heads, k.tokens])
    }

    fn attention_hits(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
        first: usize,
        count: usize,
        bits: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (q, k) = (inner_dense(q), widened(k));
        let (q, k) = (Heads::of(&q), Heads::of(&k));
        let log_sums = log_sums.storage::<f32>();
        let (digits, counts) = hits::hits(Level::best(), &q, &k, log_sums, first, count, bits);
        let dims = [k.batch, k.heads, k.tokens - q.tokens + first + count];
        (tensor(digits, dims), tensor(counts, dims))
    }

    fn attend_token(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        entries: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (k, v) = (k.narrow(2, 0, entries), v.narrow(2, 0, entries));
        attend_token(q, k, v, None)
    }

    fn attend_lengths(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        lengths: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let lengths = lengths.to_contiguous();
        attend_token(q, k, v, Some(&integers(&lengths)))
    }

    fn window_score(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        positions: IntTensor<Self>,
        seen: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (q, k) = (inner_dense(q), widened(k));
        let (q, k) = (Heads::of(&q), Heads::of(&k));
        let positions = positions.to_contiguous();
        let (sums, variances) = window::score(Level::best(), &q, &k, &integers(&positions), seen);
        let dims = [k.batch, k.heads, k.tokens];
        (tensor(sums, dims), tensor(variances, dims))
    }
}

/// The elements of a contiguous integer tensor.
fn integers(tensor: &FlexTensor) -> Cow<'_, [i64]> {
    match tensor.dtype() {
        DType::I64 => elements::<i64>(tensor).into(),
        _ => elements::<i32>(tensor)
            .iter()
            .map(|&x| i64::from(x))
            .collect::<Vec<_>>()
            .into(),
    }
}

fn integer_tensor<const D: usize>(values: Vec<i64>, shape: [usize; D], dtype: DType) -> FlexTensor {
    let data = TensorData::new(values, Shape::from(shape));
    match dtype {
        DType::I64 => FlexTensor::from_data(data),
        dtype => FlexTensor::from_data(data.convert_dtype(dtype)),
    }
}

/// Over the first `lengths [batch * kv_heads]` keys of each head, or over all.
fn attend_token(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    lengths: Option<&[i64]>,
) -> (FlexTensor, FlexTensor) {
    let (q, k, v) = (inner_dense(q), inner_dense(k), inner_dense(v));
    match k.dtype() {
        DType::F16 => attend_stored::<f16>(&q, &k, &v, lengths),
        DType::BF16 => attend_stored::<bf16>(&q, &k, &v, lengths),
        _ => attend_stored::<f32>(&q, &k, &v, lengths),
    }
}

fn attend_stored<E: Element>(
    q: &FlexTensor,
    k: &FlexTensor,
    v: &FlexTensor,
    lengths: Option<&[i64]>,
) -> (FlexTensor, FlexTensor) {
    let (q, k, v) = (Heads::of(q), Heads::<E>::of(k), Heads::<E>::of(v));
    let (output, row) = token::attend(Level::best(), &q, &k, &v, lengths);
    let group = q.heads / k.heads;
    (
        tensor(output, [q.batch, q.heads, 1, q.dim]),
        tensor(row, [q.batch, k.heads, group, k.tokens]),
    )
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, Shape::from(shape)))
}

/// Kernels read rows as slices: a tensor whose last axis is strided is copied, other views are read in place.
fn inner_dense(tensor: FlexTensor) -> FlexTensor {
    match tensor.layout().strides().last() {
        Some(1) if tensor.layout().has_positive_strides() => tensor,
        _ => tensor.to_contiguous(),
    }
}

/// As f32, last axis dense.
fn widened(tensor: FlexTensor) -> FlexTensor {
    match tensor.dtype() {
        DType::F16 => widened_from::<f16>(&tensor),
        DType::BF16 => widened_from::<bf16>(&tensor),
        _ => inner_dense(tensor),
    }
}

fn widened_from<E: Element>(tensor: &FlexTensor) -> FlexTensor {
    let tensor = tensor.to_contiguous();
    let output = pointwise::widen(Level::best(), elements::<E>(&tensor));
    FlexTensor::from_data(TensorData::new(output, tensor.layout().shape().clone()))
}

/// The elements of a contiguous tensor, which may start inside its storage.
fn elements<E: burn::tensor::Element + bytemuck::Pod>(tensor: &FlexTensor) -> &[E] {
    let start = tensor.layout().start_offset();
    &tensor.storage::<E>()[start..start + tensor.layout().num_elements()]
}
