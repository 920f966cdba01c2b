//! The operators of layers on every device, against plain tensor operations on the CPU.

use crate::host::numbers;
use burn::tensor::activation::silu;
use burn::tensor::{DType, Device, Tensor, TensorData, s};
use polykv::ops::{self, AfterAttention, BeforeAttention, oracle};

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
            close(&what, &ops::linear(x, w), &wanted);
        }
    }
}

/// Products of many rows as they run where stock ones would round to TF32.
pub fn unrounded_products(name: &str, device: &Device) {
    // Stock products of the CPU round nothing.
    if !ops::is_cube(device) {
        return;
    }
    for (rows, inputs, outputs) in [(9, 576, 96), (130, 77, 35)] {
        let what = format!("{name}: {rows} rows of {inputs} with {outputs}, unrounded");
        let w = weight([outputs, inputs], 5, DType::F32, device);
        let x = tensor([rows, inputs], 6, device);
        let wanted = host(&x).matmul(host(&w).transpose());
        close(&what, &ops::kernels::multiply(x, w.transpose()), &wanted);
    }
    // Queries with the keys of their heads, a part of the tokens.
    let q = tensor([2, 3, 11, 20], 7, device);
    let k = tensor([2, 3, 40, 20], 8, device).slice(s![.., .., 4..37, ..]);
    let wanted = host(&q).matmul(host(&k).swap_dims(2, 3));
    let found = ops::kernels::multiply(q, k.swap_dims(2, 3));
    close(&format!("{name}: heads, unrounded"), &found, &wanted);
}

pub fn elementwise(name: &str, device: &Device) {
    for (rows, dim) in [(1, 576), (7, 1030), (40, 33)] {
        let (x, w) = (tensor([rows, dim], 7, device), tensor([dim], 8, device));
        let wanted = oracle::rms_norm(host(&x), host(&w), EPS);
        let found = ops::rms_norm(x.clone(), w, EPS);
        close(&format!("{name}: norm of {rows} x {dim}"), &found, &wanted);
        let up = tensor([rows, dim], 9, device);
        let wanted = silu(host(&x) * 4.0) * host(&up);
        let found = ops::silu_mul(x * 4.0, up);
        close(&format!("{name}: gate of {rows} x {dim}"), &found, &wanted);
    }
    for (batch, heads, tokens, dim) in [(1, 4, 1, 64), (2, 3, 9, 80), (1, 2, 5, 6)] {
        // Heads side by side, as projections give them, and a part of the tokens.
        let x = tensor([batch, tokens + 2, heads, dim], 10, device);
        let x = x.slice(s![.., 1..tokens + 1, .., ..]).swap_dims(1, 2);
        let table = |seed| tensor([1, 1, tokens, dim / 2], seed, device);
        let (cos, sin) = (table(11), table(12));
        let wanted = oracle::rotate(host(&x), host(&cos), host(&sin));
        let what = format!("{name}: rotation of {batch} x {heads} x {tokens} x {dim}");
        close(&what, &ops::rotate(x, cos, sin), &wanted);
    }
}

/// What layers do around attention, one token per sequence and several.
pub fn blocks(name: &str, device: &Device) {
    let (hidden, dim, inner) = (100, 10, 150);
    for (batch, tokens, heads, kv_heads, normed) in [
        (1, 1, 6, 2, false),
        (1, 1, 7, 1, true),
        (3, 1, 4, 4, true),
        (1, 4, 6, 2, true),
    ] {
        for dtype in dtypes(device) {
            // Stock products of several tokens compute in the type that is stored.
            if tokens > 1 && dtype != DType::F32 {
                continue;
            }
            let what = format!("{name}: {batch} x {tokens} {dtype:?}, {heads} heads");
            let vector = |size, seed| tensor::<1>([size], seed, device);
            let matrix = |out, inputs, seed| weight([out, inputs], seed, dtype, device);
            let before = || BeforeAttention {
                norm: vector(hidden, 1),
                projections: [
                    matrix(heads * dim, hidden, 2),
                    matrix(kv_heads * dim, hidden, 3),
                    matrix(kv_heads * dim, hidden, 4),
                ],
                head_norms: normed.then(|| [vector(dim, 5), vector(dim, 6)]),
                eps: EPS,
            };
            let after = || AfterAttention {
                projection: matrix(hidden, heads * dim, 7),
                norm: vector(hidden, 8),
                gate: matrix(inner, hidden, 9),
                up: matrix(inner, hidden, 10),
                down: matrix(hidden, inner, 11),
                eps: EPS,
            };
            let x = tensor([batch, tokens, hidden], 12, device);
            let table = |seed| tensor([1, 1, tokens, dim / 2], seed, device);
            let (cos, sin) = (table(13), table(14));
            let own = before();
            let on_host = BeforeAttention {
                norm: host(&own.norm),
                projections: own.projections.each_ref().map(host),
                head_norms: own.head_norms.as_ref().map(|own| own.each_ref().map(host)),
                eps: EPS,
            };
            let wanted = ops::heads(host(&x), on_host, host(&cos), host(&sin));
            let found = ops::heads(x.clone(), own, cos, sin);
            for (part, (found, wanted)) in ["q", "k", "v"].iter().zip(found.iter().zip(&wanted)) {
                close(&format!("{what}, {part}"), found, wanted);
            }
            let own = after();
            let on_host = AfterAttention {
                projection: host(&own.projection),
                norm: host(&own.norm),
                gate: host(&own.gate),
                up: host(&own.up),
                down: host(&own.down),
                eps: EPS,
            };
            let attended = tensor([batch, heads, tokens, dim], 15, device);
            let wanted = ops::after_attention(host(&x), host(&attended), on_host);
            let found = ops::after_attention(x, attended, own);
            close(&format!("{what}, output"), &found, &wanted);
        }
    }
}
