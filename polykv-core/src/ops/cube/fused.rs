//! Several operators of a layer at once, made of the kernels for one token.

use super::{dense, gemv, pointwise};
use crate::ops::kernels::{FusedOps, HeadNorms, OutputWeights, QkvWeights};
use burn::backend::TensorMetadata;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::reshape;
use burn_cubecl::tensor::CubeTensor;

impl FusedOps for CubeBackend {
    fn norm_qkv_rope(
        x: CubeTensor,
        weights: QkvWeights<Self>,
        cos: CubeTensor,
        sin: CubeTensor,
        eps: f32,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let projections = [weights.q, weights.k, weights.v].map(dense);
        let dim = 2 * cos.shape().dims::<4>()[3];
        let x = into_contiguous(x);
        // Norms over heads stand between the products and the rotary embedding.
        let rotary = match weights.norms {
            HeadNorms::None => Some([cos.clone(), sin.clone()]),
            HeadNorms::Both { .. } => None,
        };
        let heads = gemv::norm_qkv(x, weights.norm, projections, rotary, dim, eps).map(|x| {
            // Of one token the heads follow each other as they are.
            let [batch, _, wide] = x.shape().dims::<3>();
            reshape(x, [batch, wide / dim, 1, dim].into())
        });
        let [q, k, v] = heads;
        match weights.norms {
            HeadNorms::None => (q, k, v),
            HeadNorms::Both { q: of_q, k: of_k } => {
                let q = pointwise::rms_norm(q, of_q, eps);
                let k = pointwise::rms_norm(k, of_k, eps);
                let [q, k] = pointwise::rotate_both(q, k, cos, sin);
                (q, k, v)
            }
        }
    }

    fn output_swiglu(
        x: CubeTensor,
        attended: CubeTensor,
        weights: OutputWeights<Self>,
        eps: f32,
    ) -> CubeTensor {
        let [batch, heads, _, dim] = attended.shape().dims::<4>();
        let attended = into_contiguous(attended);
        let joined = reshape(attended, [batch, 1, heads * dim].into());
        let residual = Some(into_contiguous(x));
        let h = gemv::multiply(joined, dense(weights.projection), residual);
        let (gate, up) = (dense(weights.gate), dense(weights.up));
        let inner = gemv::norm_swiglu(h.clone(), weights.norm, gate, up, eps);
        gemv::multiply(inner, dense(weights.down), Some(h))
    }
}
