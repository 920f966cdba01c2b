//! What a layer does before and after attention. For the few rows of a decode step GPUs do it as one operation each: there
//! the host's time for an operation is longer than the device's.

use super::kernels::{self, HeadNorms, HeadWeights, OutputWeights};
use super::{linear, linears, rms_norm, rotate, silu_mul};
use burn::tensor::Tensor;

/// What a layer has before attention.
pub struct BeforeAttention {
    pub norm: Tensor<1>,
    /// To queries, keys and values, `[heads * d, hidden]` each.
    pub projections: [Tensor<2>; 3],
    /// Over each head of queries and of keys, before they are rotated.
    pub head_norms: Option<[Tensor<1>; 2]>,
    /// Of all norms.
    pub eps: f64,
}

/// What a layer has after attention: the projection of the heads, then a norm and the gated feed-forward block.
pub struct AfterAttention {
    /// `[hidden, heads * d]`
    pub projection: Tensor<2>,
    pub norm: Tensor<1>,
    pub gate: Tensor<2>,
    pub up: Tensor<2>,
    pub down: Tensor<2>,
    pub eps: f64,
}

/// Rotated queries, rotated keys and values of `x [batch, tokens, hidden]`: `[batch, heads, tokens, d]` each; `cos` and
/// `sin [1, 1, tokens, d / 2]`.
pub fn heads(x: Tensor<3>, own: BeforeAttention, cos: Tensor<4>, sin: Tensor<4>) -> [Tensor<4>; 3] {
    if kernels::runs_tokens(&x, &own.projections) {
        let [q, k, v] = own.projections.map(Tensor::into_dispatch);
        let weights = HeadWeights {
            norm: own.norm.into_dispatch(),
            q,
            k,
            v,
            norms: match own.head_norms.map(|norms| norms.map(Tensor::into_dispatch)) {
                Some([q, k]) => HeadNorms::Both { q, k },
                None => HeadNorms::None,
            },
        };
        return kernels::token_heads(x, weights, cos, sin, own.eps as f32);
    }
    let [batch, tokens, hidden] = x.dims();
    let dim = 2 * cos.dims()[3];
    let normed = rms_norm(x, own.norm, own.eps).reshape([batch * tokens, hidden]);
    let [q, k, v] = linears(normed, own.projections).map(|x| {
        let [_, wide] = x.dims();
        x.reshape([batch, tokens, wide / dim, dim])
    });
    let (q, k) = match own.head_norms {
        Some([of_q, of_k]) => (rms_norm(q, of_q, own.eps), rms_norm(k, of_k, own.eps)),
        None => (q, k),
    };
    let q = rotate(q.swap_dims(1, 2), cos.clone(), sin.clone());
    [q, rotate(k.swap_dims(1, 2), cos, sin), v.swap_dims(1, 2)]
}

/// The layer's output: `x [batch, tokens, hidden]`, what went into the layer, and `attended [batch, heads, tokens, d]`.
pub fn after_attention(x: Tensor<3>, attended: Tensor<4>, own: AfterAttention) -> Tensor<3> {
    let weights = [own.projection, own.gate, own.up, own.down];
    let on_device = kernels::runs_tokens(&x, &weights);
    let [projection, gate, up, down] = weights;
    if on_device {
        let weights = OutputWeights {
            projection: projection.into_dispatch(),
            norm: own.norm.into_dispatch(),
            gate: gate.into_dispatch(),
            up: up.into_dispatch(),
            down: down.into_dispatch(),
        };
        return kernels::token_output(x, attended, weights, own.eps as f32);
    }
    let dims = x.dims();
    let rows = [dims[0] * dims[1], dims[2]];
    let x = x + project(attended, projection);
    let normed = rms_norm(x.clone(), own.norm, own.eps).reshape(rows);
    let [gate, up] = linears(normed, [gate, up]);
    x + linear(silu_mul(gate, up), down).reshape(dims)
}

/// The projection of what the heads attended to: `[batch, heads, tokens, d]` → `[batch, tokens, hidden]`.
pub fn project(attended: Tensor<4>, projection: Tensor<2>) -> Tensor<3> {
    let [batch, heads, tokens, dim] = attended.dims();
    let [hidden, _] = projection.dims();
    let joined = attended
        .swap_dims(1, 2)
        .reshape([batch * tokens, heads * dim]);
    linear(joined, projection).reshape([batch, tokens, hidden])
}
