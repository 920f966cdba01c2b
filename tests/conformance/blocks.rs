//! Weights in blocks of every type on every device, against the same blocks decoded on the host and products in f64, and a
//! model of them against the same model in f32 on the CPU.

use crate::block_model::blocks_of_every_type;
use crate::host::numbers;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use polykv::models::{CausalLm, PrefillOptions, load};
use polykv::ops::{self, BlockType, Weight};
use polykv::{KvCache, Plan, Storage};
use std::path::Path;

/// Random valid blocks: any integers; scales and minima of either sign, some of them subnormal in half precision.
fn random_blocks(kind: BlockType, [rows, columns]: [usize; 2]) -> Vec<u8> {
    let count = rows * columns / kind.elements();
    let bytes = numbers(count * kind.bytes(), 3, 128.0);
    let mut bytes: Vec<u8> = bytes.into_iter().map(|x| x as i8 as u8).collect();
    let at: &[usize] = match kind {
        BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 => &[0],
        BlockType::Q6K => &[208],
        _ => &[0, 2],
    };
    let scales = numbers(2 * count, 4, 0.01);
    for (i, block) in bytes.chunks_exact_mut(kind.bytes()).enumerate() {
        for (j, &at) in at.iter().enumerate() {
            let scale = scales[2 * i + j] * if i % 5 == 4 { 1e-3 } else { 1.0 };
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
        }
    }
    bytes
}

fn on<const D: usize>(values: &[f32], dims: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), dims), device)
}

fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as().unwrap()
}

/// Rows that are no multiple of what a group of units takes, and some or many blocks in a row.
fn shapes(kind: BlockType) -> [[usize; 2]; 2] {
    match kind.elements() {
        256 => [[37, 512], [9, 768]],
        _ => [[37, 96], [9, 352]],
    }
}

/// A product in f64 is off by no more than rounding: of sums on GPUs, on the CPU of activations to 8 bits too, half a step
/// of the largest.
fn allowed(device: &Device, x: &[f32], w: &[f32]) -> f64 {
    let terms = x.iter().zip(w).map(|(x, w)| f64::from((x * w).abs()));
    let sum = 2e-6 * terms.sum::<f64>();
    if !ops::is_cpu(device) {
        return sum;
    }
    let most = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let weights: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
    sum + f64::from(most) / 250.0 * weights
}

/// Panics if the products `[rows, outputs]` of `x [rows, inputs]` with `wide [outputs, inputs]` are wrong.
fn check_products(
    what: &str,
    device: &Device,
    found: &[f32],
    x: &[f32],
    wide: &[f32],
    inputs: usize,
) {
    let pairs = x
        .chunks_exact(inputs)
        .flat_map(|x| wide.chunks_exact(inputs).map(move |w| (x, w)));
    assert_eq!(found.len(), pairs.clone().count(), "{what}");
    let mut worst = 0.0f64;
    for (found, (x, w)) in found.iter().zip(pairs) {
        let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
        let off = (f64::from(*found) - terms.sum::<f64>()).abs();
        let of_allowed = off / allowed(device, x, w);
        assert!(of_allowed <= 1.0, "{what}: {found} is off by {off:.1e}");
        worst = worst.max(of_allowed);
    }
    println!("{what:60} {worst:.2} of what rounding allows");
}

pub fn products(name: &str, device: &Device) {
    for kind in BlockType::ALL {
        for [outputs, inputs] in shapes(kind) {
            let bytes = random_blocks(kind, [outputs, inputs]);
            let mut wide = vec![0.0; outputs * inputs];
            kind.decode(&bytes, &mut wide);
            let weight = Weight::in_blocks(kind, [outputs, inputs], bytes.into(), None, device);
            let weight = weight.unwrap();
            assert_eq!(weight.shape(), [outputs, inputs]);
            for rows in [1, 2, 3, 7, 33] {
                let x = numbers(rows * inputs, 6, 1.0);
                let found = read(ops::linear(on(&x, [rows, inputs], device), &weight));
                let what = format!("{name}: {rows} rows of {inputs} with {outputs} in {kind}");
                check_products(&what, device, &found, &x, &wide, inputs);
            }
        }
    }
}

/// Activations in half precision, where a device has them: only GPUs take them.
pub fn activations(name: &str, device: &Device) {
    if !ops::is_cube(device) {
        return;
    }
    let (kind, [outputs, inputs]) = (BlockType::Q4K, [9, 512]);
    let bytes = random_blocks(kind, [outputs, inputs]);
    let mut wide = vec![0.0; outputs * inputs];
    kind.decode(&bytes, &mut wide);
    let weight = Weight::in_blocks(kind, [outputs, inputs], bytes.into(), None, device).unwrap();
    for dtype in [DType::F16, DType::BF16] {
        if !device.supports_dtype(dtype) {
            println!("{name} has no {dtype:?}");
            continue;
        }
        for rows in [2, 33] {
            let x = on(&numbers(rows * inputs, 6, 1.0), [rows, inputs], device).cast(dtype);
            let rounded = read(x.clone().cast(DType::F32));
            let found = ops::linear(x, &weight);
            assert_eq!(found.dtype(), DType::F32);
            let what = format!("{name}: {rows} rows in {dtype:?} with {kind}");
            check_products(&what, device, &read(found), &rounded, &wide, inputs);
        }
    }
}

/// The numbers themselves: all of them, and those of some rows, as they lie and in another order.
pub fn rows(name: &str, device: &Device) {
    for kind in BlockType::ALL {
        let [outputs, inputs] = shapes(kind)[0];
        let bytes = random_blocks(kind, [outputs, inputs]);
        let mut wide = vec![0.0; outputs * inputs];
        kind.decode(&bytes, &mut wide);
        // 7 and 37 have no common divisor.
        let order: Vec<u32> = (0..outputs as u32).map(|row| row * 7 % 37).collect();
        for order in [None, Some(order)] {
            let weight = Weight::in_blocks(
                kind,
                [outputs, inputs],
                bytes.clone().into(),
                order.clone(),
                device,
            );
            let weight = weight.unwrap();
            let stored = |row: usize| order.as_ref().map_or(row, |order| order[row] as usize);
            let ids = [36, 0, 3, 3, 20];
            let some = Tensor::<1, Int>::from_data(ids.map(|id| id as i64), device);
            for (found, ids) in [
                (weight.rows(some), ids.to_vec()),
                (weight.to_f32(), (0..outputs).collect()),
            ] {
                let wanted: Vec<f32> = ids
                    .iter()
                    .flat_map(|&id| wide[stored(id) * inputs..][..inputs].iter().copied())
                    .collect();
                let found = read(found);
                assert_eq!(found.len(), wanted.len());
                let blocks = wanted.chunks_exact(kind.elements());
                for (found, wanted) in found.chunks_exact(kind.elements()).zip(blocks) {
                    let most = wanted.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                    for (a, b) in found.iter().zip(wanted) {
                        let off = (a - b).abs();
                        assert!(off <= 1e-6 * most, "{name}, {kind}: {a} for {b}");
                    }
                }
            }
        }
    }
}

/// Logits of a prompt of many rows, of a prompt of few, and of steps after it.
fn logits(model: &dyn CausalLm) -> Vec<f32> {
    let ids = |ids: Vec<i64>| {
        let dims = [1, ids.len()];
        Tensor::<2, Int>::from_data(TensorData::new(ids, dims), model.device())
    };
    let mut found = Vec::new();
    for prompt in [(3..60).collect(), vec![5, 9, 11]] {
        let plan = Plan::full(model.config().layers.len());
        let mut cache = KvCache::new(plan, model.cache_shape(1), model.device()).unwrap();
        let all = model.logits(ids(prompt), &mut cache, &mut PrefillOptions::default());
        found.extend(read(all.unwrap()));
        for token in 60..64 {
            found.extend(read(model.decode(ids(vec![token]), &mut cache).unwrap()));
        }
    }
    found
}

/// A model whose matrices are of every type, computed with in its blocks. GPUs round nothing but the cache, to f16 where
/// they have it; the CPU rounds activations.
pub fn model(devices: &[(String, Device)], folder: &Path) {
    let path = folder.join("x.gguf");
    blocks_of_every_type().write(&path);
    let exact = load::load_weights(&path, Storage::F32, &Device::flex()).unwrap();
    let wanted = logits(&*exact);
    let apart = |a: &[f32], b: &[f32]| {
        let square = |x: f32| f64::from(x) * f64::from(x);
        let off: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
        (off / b.iter().copied().map(square).sum::<f64>()).sqrt()
    };
    let mut of_cpu: Option<Vec<f32>> = None;
    for (name, device) in devices {
        let model = load::load_weights(&path, Storage::Native, device).unwrap();
        let found = logits(&*model);
        let off = apart(&found, &wanted);
        println!("{name}: a model in blocks is off by {off:.1e}");
        let most = if ops::is_cpu(device) { 3e-2 } else { 2e-3 };
        assert!(off <= most, "{name}: {off}");
        match &of_cpu {
            Some(of_cpu) => assert!(apart(&found, of_cpu) <= 3e-2, "{name}"),
            None => of_cpu = Some(found),
        }
    }
}
