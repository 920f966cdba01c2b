//! Several operators of a transformer layer as one, for one token per sequence: there the host's time for an operation is
//! longer than a GPU's, and a good part of a CPU's.

#[cfg(feature = "flex")]
use super::flex::fused as cpu;
use super::kernels::{self, FusedOps, HeadNorms, kernel};
use super::route::{MOST_GEMV_ROWS, Route};
use super::weight::Weight;
use burn::tensor::Tensor;

/// The weights of [`norm_qkv_rope`].
#[derive(Clone, Copy, Debug)]
pub struct NormQkv<'a> {
    /// The weight of the RMS norm over the layer's input, `[hidden]`.
    pub norm: &'a Tensor<1>,
    /// The projections to queries, keys and values (QKV), `[heads * d, hidden]` each.
    pub projections: [&'a Weight; 3],
    /// The weights of the RMS norms over each head of queries and of keys, `[d]` each, if the model has them.
    pub head_norms: Option<[&'a Tensor<1>; 2]>,
    /// Added to the mean square by all norms.
    pub eps: f64,
}

/// The weights of [`output_swiglu`].
#[derive(Clone, Copy, Debug)]
pub struct OutputSwiglu<'a> {
    /// The output projection of attention, `[hidden, heads * d]`.
    pub projection: &'a Weight,
    /// The weight of the RMS norm before SwiGLU, `[hidden]`.
    pub norm: &'a Tensor<1>,
    /// The gate projection of SwiGLU, `[inner, hidden]`.
    pub gate: &'a Weight,
    /// The up projection of SwiGLU, `[inner, hidden]`.
    pub up: &'a Weight,
    /// The down projection of SwiGLU, `[hidden, inner]`.
    pub down: &'a Weight,
    /// Added to the mean square by the norm.
    pub eps: f64,
}

/// Whether there are kernels for [`norm_qkv_rope`] and [`output_swiglu`] of `x [batch, tokens, hidden]` with these
/// weights: for one token of few sequences, on the CPU with any weights, on GPUs with weights of one type that is a
/// tensor's.
pub fn fuses_tokens(x: &Tensor<3>, weights: &[&Weight]) -> bool {
    let [batch, tokens, _] = x.dims();
    let types = || {
        weights
            .iter()
            .map(|weight| weight.dense().map(Tensor::dtype))
    };
    let alike = || types().all(|dtype| dtype.is_some() && types().next() == Some(dtype));
    tokens == 1
        && batch <= MOST_GEMV_ROWS
        && match Route::of(x) {
            Route::Cpu => true,
            Route::Gpu => alike(),
            Route::Plain => false,
        }
}

/// The queries, keys and values of one token, `[batch, heads, 1, d]` each, from the layer's input `x [batch, 1, hidden]`: an
/// RMS norm and the QKV projections, then for queries and keys the norm over each head, if there is one, and the rotary
/// embedding with `cos` and `sin [rows, 1, 1, d / 2]`, where `rows` is 1 for sequences at one position, or `batch`.
///
/// # Panics
/// If [`fuses_tokens`] does not hold, or shapes do not fit.
pub fn norm_qkv_rope(
    x: Tensor<3>,
    weights: NormQkv<'_>,
    cos: Tensor<4>,
    sin: Tensor<4>,
) -> [Tensor<4>; 3] {
    assert!(
        fuses_tokens(&x, &weights.projections),
        "no kernel does this at once"
    );
    let [batch, _, hidden] = x.dims();
    let [rows, _, _, half] = cos.dims();
    let head = 2 * half;
    assert!(rows == 1 || rows == batch, "tables for one row or for all");
    assert_eq!(cos.dims(), [rows, 1, 1, half]);
    assert_eq!(sin.dims(), cos.dims());
    assert_eq!(weights.norm.dims(), [hidden]);
    for weight in weights.projections {
        let [outputs, inputs] = weight.shape();
        assert!(inputs == hidden && outputs.is_multiple_of(head));
    }
    for norm in weights.head_norms.iter().flatten() {
        assert_eq!(norm.dims(), [head]);
    }
    #[cfg(feature = "flex")]
    if Route::of(&x) == Route::Cpu {
        return cpu::norm_qkv_rope(x, weights, cos, sin);
    }
    let [q, k, v] = weights.projections.map(primitive);
    let weights_of_kernel = kernels::QkvWeights {
        norm: weights.norm.clone().into_dispatch(),
        q,
        k,
        v,
        norms: match weights.head_norms {
            Some(norms) => {
                let [q, k] = norms.map(|norm| norm.clone().into_dispatch());
                HeadNorms::Both { q, k }
            }
            None => HeadNorms::None,
        },
    };
    let eps = weights.eps as f32;
    let (q, k, v) = kernel!(FusedOps::norm_qkv_rope(x, weights_of_kernel, cos, sin, eps));
    [q, k, v]
}

/// A layer's output from its input `x [batch, 1, hidden]` and its attention output a, `attended [batch, heads, 1, d]`: the
/// residual h = x + W_O a, then h + W_down (silu(W_gate n) · W_up n) with n = norm(h). The result is `[batch, 1, hidden]`.
///
/// # Panics
/// If [`fuses_tokens`] does not hold, or shapes do not fit.
pub fn output_swiglu(x: Tensor<3>, attended: Tensor<4>, weights: OutputSwiglu<'_>) -> Tensor<3> {
    let all = [weights.projection, weights.gate, weights.up, weights.down];
    assert!(fuses_tokens(&x, &all), "no kernel does this at once");
    let [batch, _, hidden] = x.dims();
    let [sequences, heads, tokens, head] = attended.dims();
    let inner = weights.gate.shape()[0];
    assert_eq!([sequences, tokens], [batch, 1]);
    assert_eq!(weights.projection.shape(), [hidden, heads * head]);
    assert_eq!(weights.norm.dims(), [hidden]);
    assert_eq!(weights.gate.shape(), [inner, hidden]);
    assert_eq!(weights.up.shape(), [inner, hidden]);
    assert_eq!(weights.down.shape(), [hidden, inner]);
    #[cfg(feature = "flex")]
    if Route::of(&x) == Route::Cpu {
        return cpu::output_swiglu(x, attended, weights);
    }
    let [projection, gate, up, down] = all.map(primitive);
    let weights_of_kernel = kernels::OutputWeights {
        projection,
        norm: weights.norm.clone().into_dispatch(),
        gate,
        up,
        down,
    };
    let eps = weights.eps as f32;
    kernel!(FusedOps::output_swiglu(x, attended, weights_of_kernel, eps))
}

fn primitive(weight: &Weight) -> burn::backend::DispatchTensor {
    match weight.dense() {
        Some(tensor) => tensor.clone().into_dispatch(),
        None => unreachable!("fuses_tokens has seen a tensor"),
    }
}
