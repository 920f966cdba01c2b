//! Weights in blocks of ggml's types, as GPUs hold them: see [`GpuBlocks`](crate::ops::weight::GpuBlocks).

use crate::ops::weight::BlockType;
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};
use burn::tensor::DType;

/// Products with blocks, and what stands in them.
#[backend_extension(Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"))]
pub trait BlockOps: Backend {
    /// `x [n, in]` of at most [`MOST_GEMV_ROWS`](crate::ops::route::MOST_GEMV_ROWS) rows in f32, f16 or bf16 times the
    /// transpose of the weight in `blocks [out, words]`: `[n, out]` in f32, as are all sums.
    #[fusion(meta = |x, blocks, _kind| TensorSpec::new([x.shape[0], blocks.shape[0]].into(), DType::F32))]
    fn block_gemv(
        x: FloatTensor<Self>,
        blocks: IntTensor<Self>,
        kind: BlockType,
    ) -> FloatTensor<Self>;

    /// The rows `ids [n]` of the weight in `blocks [out, words]`: `[n, in]` in f32. An id that is no number below `out`
    /// counts as `out − 1`.
    #[fusion(meta = |blocks, ids, kind| {
        let columns = blocks.shape[1] / kind.words() * kind.elements();
        TensorSpec::new([ids.shape[0], columns].into(), DType::F32)
    })]
    fn block_rows(
        blocks: IntTensor<Self>,
        ids: IntTensor<Self>,
        kind: BlockType,
    ) -> FloatTensor<Self>;
}
