//! The fused operators for one token, compared with the single operators that the self-test checks by themselves.

use super::host::Inputs;
use super::{Check, compare};
use crate::Result;
use crate::ops::{self, NormQkv, OutputSwiglu, Weight};
use burn::tensor::{Device, Tensor};

const EPS: f64 = 1e-5;

/// Adds no check where the device has no such operations.
pub fn fused(inputs: &Inputs, device: &Device, checks: &mut Vec<Check>) -> Result<()> {
    let (x, weight) = inputs.linear(device);
    let (width, dim) = (Inputs::WIDTH, Inputs::DIM);
    let weight = weight * 0.25;
    let numbers = Tensor::cat(vec![weight.clone(), weight.clone()], 0);
    let of = |rows: usize, columns: usize| -> Weight {
        let flat: Tensor<1> = numbers.clone().flatten(0, 1);
        let part = flat.narrow(0, 0, rows * columns);
        Weight::Dense(part.reshape([rows, columns]))
    };
    let token = x.clone().reshape([1, 1, width]);
    let [to_q, to_k, to_v] = [of(2 * dim, width), of(dim, width), of(dim, width)];
    let projections = [&to_q, &to_k, &to_v];
    if !ops::fuses_tokens(&token, &projections) {
        return Ok(());
    }
    let norm = Tensor::<1>::ones([width], device) * 0.5;
    let head_norm = Tensor::<1>::ones([dim], device) * 2.0;
    let [cos, sin] = inputs.rotations(device).map(|table| table.narrow(2, 3, 1));

    let normed = ops::rms_norm(x.clone(), norm.clone(), EPS);
    let [q, k, v] = projections.map(|weight| {
        let heads = weight.shape()[0] / dim;
        ops::linear(normed.clone(), weight).reshape([1, heads, 1, dim])
    });
    let rotated = |x: Tensor<4>| {
        let normed = ops::rms_norm(x, head_norm.clone(), EPS);
        ops::rotate(normed, cos.clone(), sin.clone())
    };
    let wanted = [rotated(q), rotated(k), v];
    let weights = NormQkv {
        norm: &norm,
        projections,
        head_norms: Some([&head_norm, &head_norm]),
        eps: EPS,
    };
    let found = ops::norm_qkv_rope(token.clone(), weights, cos.clone(), sin.clone());
    let all = |parts: &[Tensor<4>; 3]| Tensor::cat(parts.to_vec(), 1);
    checks.push(compare(
        "norm, QKV and RoPE of a token",
        all(&found),
        &read(all(&wanted))?,
    )?);

    let inner = weight.dims()[0];
    let weights = OutputSwiglu {
        projection: &of(width, 2 * dim),
        norm: &norm,
        gate: &Weight::Dense(weight),
        up: &of(inner, width),
        down: &of(width, inner),
        eps: EPS,
    };
    let [attended, ..] = found;
    let joined = attended.clone().reshape([1, 2 * dim]);
    let h = x + ops::linear(joined, weights.projection);
    let normed = ops::rms_norm(h.clone(), norm.clone(), EPS);
    let [gate, up] = ops::linears(normed, [weights.gate, weights.up]);
    let wanted = h + ops::linear(ops::swiglu(gate, up), weights.down);
    let found = ops::output_swiglu(token, attended, weights);
    checks.push(compare(
        "output and SwiGLU of a token",
        found,
        &read(wanted)?,
    )?);
    Ok(())
}

fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f64>> {
    let values: Vec<f32> = tensor.try_into_vec_as().map_err(ops::read_error)?;
    Ok(values.into_iter().map(f64::from).collect())
}
