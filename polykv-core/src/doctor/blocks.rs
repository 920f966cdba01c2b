//! What GPUs do in one operation around the attention of a token, against the operators that are tested one by one.

use super::host::Inputs;
use super::{Check, compare};
use crate::Result;
use crate::ops::{self, AfterAttention, BeforeAttention};
use burn::tensor::{Device, Tensor};

const EPS: f64 = 1e-5;

pub fn blocks(inputs: &Inputs, device: &Device, checks: &mut Vec<Check>) -> Result<()> {
    let (x, weight) = inputs.linear(device);
    let (width, dim) = (Inputs::WIDTH, Inputs::DIM);
    let weight = weight * 0.25;
    let numbers = Tensor::cat(vec![weight.clone(), weight.clone()], 0);
    let of = |rows: usize, columns: usize| -> Tensor<2> {
        let flat: Tensor<1> = numbers.clone().flatten(0, 1);
        flat.narrow(0, 0, rows * columns).reshape([rows, columns])
    };
    let norm = Tensor::<1>::ones([width], device) * 0.5;
    let head_norm = Tensor::<1>::ones([dim], device) * 2.0;
    let [cos, sin] = inputs.turns(device).map(|table| table.narrow(2, 3, 1));
    let projections = [of(2 * dim, width), of(dim, width), of(dim, width)];

    let normed = ops::rms_norm(x.clone(), norm.clone(), EPS);
    let [q, k, v] = projections.clone().map(|weight| {
        let heads = weight.dims()[0] / dim;
        ops::linear(normed.clone(), weight).reshape([1, heads, 1, dim])
    });
    let rotated = |x: Tensor<4>| {
        let normed = ops::rms_norm(x, head_norm.clone(), EPS);
        ops::rotate(normed, cos.clone(), sin.clone())
    };
    let wanted = [rotated(q), rotated(k), v];
    let before = BeforeAttention {
        norm: norm.clone(),
        projections,
        head_norms: Some([head_norm.clone(), head_norm.clone()]),
        eps: EPS,
    };
    let token = x.clone().reshape([1, 1, width]);
    let found = ops::heads(token.clone(), before, cos.clone(), sin.clone());
    let all = |parts: &[Tensor<4>; 3]| Tensor::cat(parts.to_vec(), 1);
    checks.push(compare(
        "heads of a token",
        all(&found),
        &read(all(&wanted))?,
    )?);

    let inner = weight.dims()[0];
    let [projection, gate, up, down] = [
        of(width, 2 * dim),
        weight.clone(),
        of(inner, width),
        of(width, inner),
    ];
    let [attended, ..] = found;
    let joined = attended.clone().reshape([1, 2 * dim]);
    let x = x + ops::linear(joined, projection.clone());
    let normed = ops::rms_norm(x.clone(), norm.clone(), EPS);
    let [gated, upped] = ops::linears(normed, [gate.clone(), up.clone()]);
    let wanted = x + ops::linear(ops::silu_mul(gated, upped), down.clone());
    let after = AfterAttention {
        projection,
        norm,
        gate,
        up,
        down,
        eps: EPS,
    };
    let found = ops::after_attention(token, attended, after);
    checks.push(compare("output of a token", found, &read(wanted)?)?);
    Ok(())
}

fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f64>> {
    let values: Vec<f32> = tensor.try_into_vec_as().map_err(ops::read_error)?;
    Ok(values.into_iter().map(f64::from).collect())
}
