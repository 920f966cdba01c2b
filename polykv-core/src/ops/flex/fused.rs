//! Several operators of a layer at once, for a token: without a tensor between them.

use super::bridge::{elements, float, float_back, tensor};
use super::pointwise::{rms_norm, rotate, swiglu};
use super::simd::Level;
use super::view::Heads;
use super::weights::products;
use crate::ops::{NormQkv, OutputSwiglu};
use burn::tensor::Tensor;

/// See [`norm_qkv_rope`](crate::ops::norm_qkv_rope).
pub fn norm_qkv_rope(
    x: Tensor<3>,
    weights: NormQkv<'_>,
    cos: Tensor<4>,
    sin: Tensor<4>,
) -> [Tensor<4>; 3] {
    let (level, eps) = (Level::best(), weights.eps as f32);
    let [batch, _, _] = x.dims();
    let [x, norm] = [float(x), float(weights.norm.clone())].map(|x| x.to_contiguous());
    let dim = 2 * cos.dims()[3];
    let [cos, sin] = [cos, sin].map(|table| float(table).to_contiguous());
    let (cos, sin) = (elements(&cos), elements(&sin));
    let normed = rms_norm(level, elements(&x), elements(&norm), eps);
    let [q, k, v] = products(&normed, weights.projections);
    let rotated = |x: Vec<f32>, norm: Option<&Tensor<1>>| {
        let x = match norm {
            Some(norm) => {
                let norm = float(norm.clone()).to_contiguous();
                rms_norm(level, &x, elements(&norm), eps)
            }
            None => x,
        };
        rotate(level, &Heads::of_tokens(&x, batch, dim), cos, sin)
    };
    let [of_q, of_k] = match weights.head_norms {
        Some([q, k]) => [Some(q), Some(k)],
        None => [None, None],
    };
    [rotated(q, of_q), rotated(k, of_k), v].map(|x| {
        let heads = x.len() / (batch * dim);
        float_back(tensor(x, [batch, heads, 1, dim]))
    })
}

/// See [`output_swiglu`](crate::ops::output_swiglu).
pub fn output_swiglu(x: Tensor<3>, attended: Tensor<4>, weights: OutputSwiglu<'_>) -> Tensor<3> {
    let level = Level::best();
    let dims = x.dims();
    let [x, attended] = [float(x), float(attended)].map(|x| x.to_contiguous());
    let norm = float(weights.norm.clone()).to_contiguous();
    let [mut h] = products(elements(&attended), [weights.projection]);
    add(&mut h, elements(&x));
    let normed = rms_norm(level, &h, elements(&norm), weights.eps as f32);
    let [gate, up] = products(&normed, [weights.gate, weights.up]);
    let [mut output] = products(&swiglu(level, &gate, &up), [weights.down]);
    add(&mut output, &h);
    float_back(tensor(output, dims))
}

fn add(to: &mut [f32], x: &[f32]) {
    for (to, x) in to.iter_mut().zip(x) {
        *to += x;
    }
}
