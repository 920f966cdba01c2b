//! The operators of layers on every device, against plain tensor operations on the CPU.

use crate::host::numbers;
use burn::tensor::{DType, Device, Tensor, TensorData, s};
use polykv::ops::{self, NormQkv, OutputSwiglu, Weight, oracle};

const EPS: f64 = 1e-5;

fn tensor<const D: usize>(dims: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let values = numbers(dims.iter().product(), seed, 1.0);
    Tensor::from_data(TensorData::new(values, dims), device)
}

/// A weight whose products with numbers up to 1 are about 1, as `dtype` holds it.
fn weight(dims: [usize; 2], seed: u64, dtype: DType, device: &Device) -> Tensor<2> {
    let scale = 1.0 / (dims[1] as f32).sqrt();
    (tensor(dims, seed, &Device::flex()) * scale)
        .cast(dtype)
        .cast(DType::F32)
        .to_device(device)
        .cast(dtype)
}

/// On the CPU, in f32.
fn host<const D: usize>(tensor: &Tensor<D>) -> Tensor<D> {
    let values: Vec<f32> = tensor.clone().cast(DType::F32).try_into_vec_as().unwrap();
    Tensor::from_data(TensorData::new(values, tensor.dims()), &Device::flex())
}

fn close<const D: usize>(what: &str, found: &Tensor<D>, wanted: &Tensor<D>) {
    assert_eq!(found.dims(), wanted.dims(), "{what}");
    let values = |tensor: &Tensor<D>| -> Vec<f32> { tensor.clone().try_into_vec_as().unwrap() };
    let pairs = values(found).into_iter().zip(values(wanted));
    let worst = pairs.fold(0.0f32, |worst, (a, b)| {
        let difference = (a - b).abs() / (1.0 + b.abs());
        assert!(difference.is_finite(), "{what}: {a} for {b}");
        worst.max(difference)
    });
    println!("{what:60} {worst:.1e}");
    assert!(worst <= 2e-5, "{what}: {worst}");
}

fn dtypes(device: &Device) -> impl Iterator<Item = DType> {
    let all = [DType::F32, DType::F16, DType::BF16];
    let device = device.clone();
    all.into_iter()
        .filter(move |dtype| device.supports_dtype(*dtype))
}

pub fn products(name: &str, device: &Device) {
    for (rows, inputs, outputs) in [
        (1, 576, 96),
        (1, 1100, 37),
        (1, 2056, 35),
        (2, 77, 5),
        (3, 260, 17),
        (8, 128, 9),
    ] {
        for dtype in dtypes(device) {
            let what = format!("{name}: {rows} rows of {inputs} with {outputs} {dtype:?}");
            let w = weight([outputs, inputs], 5, dtype, device);
            let x = tensor([rows, inputs], 6, device);
            let wanted = host(&x).matmul(host(&w).transpose());
            close(&what, &ops::linear(x, &w.into()), &wanted);
        }
    }
}

/// Products of many rows as they run where burn's own would round to TF32.
pub fn unrounded_products(name: &str, device: &Device) {
    // The CPU has no product that rounds.
    if !ops::is_cube(device) {
        return;
    }
    for (rows, inputs, outputs) in [(9, 576, 96), (130, 77, 35)] {
        let what = format!("{name}: {rows} rows of {inputs} with {outputs}, unrounded");
        let w = weight([outputs, inputs], 5, DType::F32, device);
        let x = tensor([rows, inputs], 6, device);
        let wanted = host(&x).matmul(host(&w).transpose());
        close(&what, &ops::unrounded_matmul(x, w.transpose()), &wanted);
    }
    // Queries with the keys of their heads, a part of the tokens.
    let q = tensor([2, 3, 11, 20], 7, device);
    let k = tensor([2, 3, 40, 20], 8, device).slice(s![.., .., 4..37, ..]);
    let wanted = host(&q).matmul(host(&k).swap_dims(2, 3));
    let found = ops::unrounded_matmul(q, k.swap_dims(2, 3));
    close(&format!("{name}: heads, unrounded"), &found, &wanted);
}

pub fn elementwise(name: &str, device: &Device) {
    for (rows, dim) in [(1, 576), (7, 1030), (40, 33)] {
        let (x, w) = (tensor([rows, dim], 7, device), tensor([dim], 8, device));
        let wanted = oracle::rms_norm(host(&x), host(&w), EPS);
        let found = ops::rms_norm(x.clone(), w, EPS);
        close(&format!("{name}: norm of {rows} x {dim}"), &found, &wanted);
        let up = tensor([rows, dim], 9, device);
        let wanted = oracle::swiglu(host(&x) * 4.0, host(&up));
        let found = ops::swiglu(x.clone() * 4.0, up.clone());
        close(
            &format!("{name}: SwiGLU of {rows} x {dim}"),
            &found,
            &wanted,
        );
        let wanted = oracle::geglu(host(&x) * 4.0, host(&up));
        let found = ops::geglu(x * 4.0, up);
        close(&format!("{name}: GeGLU of {rows} x {dim}"), &found, &wanted);
    }
    for (batch, heads, tokens, dim) in [(1, 4, 1, 64), (2, 3, 9, 80), (1, 2, 5, 6)] {
        // Heads side by side, as projections give them, and a part of the tokens.
        let x = tensor([batch, tokens + 2, heads, dim], 10, device);
        let x = x.slice(s![.., 1..tokens + 1, .., ..]).swap_dims(1, 2);
        for rows in [1, batch] {
            let table = |seed| tensor([rows, 1, tokens, dim / 2], seed, device);
            let (cos, sin) = (table(11), table(12));
            let wanted = oracle::rotate(host(&x), host(&cos), host(&sin));
            let shape = format!("{batch} x {heads} x {tokens} x {dim}");
            let what = format!("{name}: rotation of {shape} by {rows} tables");
            close(&what, &ops::rotate(x.clone(), cos, sin), &wanted);
        }
    }
    for rotated in [12, 16] {
        let heads = tensor([2, 3, 9, 20], 10, device);
        let x = heads.slice(s![.., .., .., 0..rotated]);
        let table = |seed| tensor([1, 1, 9, rotated / 2], seed, device);
        let (cos, sin) = (table(11), table(12));
        let wanted = oracle::rotate(host(&x), host(&cos), host(&sin));
        let what = format!("{name}: rotation of {rotated} of 20 elements");
        close(&what, &ops::rotate(x, cos, sin), &wanted);
    }
}

/// What is one operation around the attention of one token per sequence, against plain operations one by one.
pub fn fused(name: &str, device: &Device) {
    let (hidden, dim, inner) = (100, 10, 150);
    // With head norms each sequence has a position of its own.
    for (batch, heads, kv_heads, head_norms) in [
        (1, 6, 2, false),
        (1, 7, 1, true),
        (3, 4, 4, true),
        (2, 4, 1, false),
    ] {
        for dtype in dtypes(device) {
            let what = format!("{name}: {batch} {dtype:?}, {heads} heads");
            let vector = |size, seed| tensor::<1>([size], seed, device);
            let matrix =
                |out, inputs, seed| Weight::new(weight([out, inputs], seed, dtype, device));
            let x = tensor::<3>([batch, 1, hidden], 12, device);
            let rows = if head_norms { batch } else { 1 };
            let table = |seed| tensor::<4>([rows, 1, 1, dim / 2], seed, device);
            let (cos, sin) = (table(13), table(14));
            let [to_q, to_k, to_v] = [
                matrix(heads * dim, hidden, 2),
                matrix(kv_heads * dim, hidden, 3),
                matrix(kv_heads * dim, hidden, 4),
            ];
            let projections = [&to_q, &to_k, &to_v];
            assert!(ops::fuses_tokens(&x, &projections), "{what}");
            let (norm, of_q, of_k) = (vector(hidden, 1), vector(dim, 5), vector(dim, 6));
            let times =
                |x: Tensor<2>, weight: &Weight| x.matmul(host(&weight.to_f32()).transpose());
            let rows = host(&x).reshape([batch, hidden]);
            let normed = oracle::rms_norm(rows.clone(), host(&norm), EPS);
            let [q, k, v] = projections.map(|weight| {
                let heads = weight.shape()[0] / dim;
                times(normed.clone(), weight).reshape([batch, heads, 1, dim])
            });
            let rotated = |x: Tensor<4>, norm: &Tensor<1>| {
                let x = match head_norms {
                    true => oracle::rms_norm(x, host(norm), EPS),
                    false => x,
                };
                oracle::rotate(x, host(&cos), host(&sin))
            };
            let wanted = [rotated(q, &of_q), rotated(k, &of_k), v];
            let weights = NormQkv {
                norm: &norm,
                projections,
                head_norms: head_norms.then_some([&of_q, &of_k]),
                eps: EPS,
            };
            let found = ops::norm_qkv_rope(x.clone(), weights, cos.clone(), sin.clone());
            for (part, (found, wanted)) in ["q", "k", "v"].iter().zip(found.iter().zip(&wanted)) {
                close(&format!("{what}, {part}"), found, wanted);
            }

            let norm = vector(hidden, 8);
            let weights = OutputSwiglu {
                projection: &matrix(hidden, heads * dim, 7),
                norm: &norm,
                gate: &matrix(inner, hidden, 9),
                up: &matrix(inner, hidden, 10),
                down: &matrix(hidden, inner, 11),
                eps: EPS,
            };
            let attended = tensor::<4>([batch, heads, 1, dim], 15, device);
            let joined = host(&attended).reshape([batch, heads * dim]);
            let h = rows + times(joined, weights.projection);
            let normed = oracle::rms_norm(h.clone(), host(&norm), EPS);
            let (gate, up) = (
                times(normed.clone(), weights.gate),
                times(normed, weights.up),
            );
            let wanted = h + times(oracle::swiglu(gate, up), weights.down);
            let found = ops::output_swiglu(x, attended, weights);
            let found = found.reshape([batch, hidden]);
            close(&format!("{what}, output"), &found, &wanted);
        }
    }
}
