//! CPU kernels in plain Rust for the Flex backend. Each is written once over a [`simd::Level`] and compiled for
//! AVX-512, AVX2 and without either; the best that the processor has is chosen at run time.

mod decode;
mod pointwise;
mod prefill;
mod simd;
mod view;

#[cfg(test)]
mod tests;

use super::kernels::KvOps;
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{Shape, TensorData};
use simd::Level;
use view::{Heads, Matrix};

impl KvOps for Flex {
    fn attend_prompt(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (q, k, v) = (inner_dense(q), inner_dense(k), inner_dense(v));
        let (q, k, v) = (Heads::of(&q), Heads::of(&k), Heads::of(&v));
        let (output, log_sums) = prefill::attend(Level::best(), &q, &k, &v);
        // The kernel writes [batch, tokens, heads, head_dim], which the output projection wants.
        let output = tensor(output, [q.batch, q.tokens, q.heads, q.dim]).transpose(1, 2);
        (output, tensor(log_sums, [q.batch, q.heads, q.tokens]))
    }

    fn column_sums(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (q, k) = (inner_dense(q), inner_dense(k));
        let (q, k) = (Heads::of(&q), Heads::of(&k));
        let sums = prefill::column_sums(Level::best(), &q, &k, log_sums.storage::<f32>());
        tensor(sums, [k.batch, k.heads, k.tokens])
    }

    fn attend_token(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (q, k, v) = (inner_dense(q), inner_dense(k), inner_dense(v));
        let (q, k, v) = (Heads::of(&q), Heads::of(&k), Heads::of(&v));
        let (output, row) = decode::attend(Level::best(), &q, &k, &v);
        let group = q.heads / k.heads;
        (
            tensor(output, [q.batch, q.heads, 1, q.dim]),
            tensor(row, [q.batch, k.heads, group, k.tokens]),
        )
    }

    fn linear_token(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let x = x.to_contiguous();
        let weight = inner_dense(weight);
        let weight = Matrix::of(&weight);
        let output = decode::linear(Level::best(), x.storage_from_offset(), &weight);
        let rows = x.layout().shape()[0];
        tensor(output, [rows, weight.rows])
    }

    fn silu_mul(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let shape = gate.layout().shape().clone();
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        let output = pointwise::silu_mul(
            Level::best(),
            gate.storage_from_offset(),
            up.storage_from_offset(),
        );
        FlexTensor::from_data(TensorData::new(output, shape))
    }
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

/// The elements of a contiguous tensor that is not the start of its storage.
trait StorageFromOffset {
    fn storage_from_offset(&self) -> &[f32];
}

impl StorageFromOffset for FlexTensor {
    fn storage_from_offset(&self) -> &[f32] {
        let start = self.layout().start_offset();
        &self.storage::<f32>()[start..start + self.layout().num_elements()]
    }
}
