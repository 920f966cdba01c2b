//! Entries in codes on every device: against the numbers that were given, the CPU, and attention in f64 on the host.

use crate::case::{CASES, Case, behind};
use crate::host::{self, Vectors, numbers};
use burn::tensor::{Device, Tensor, TensorData};
use polykv::Codes;
use polykv::ops::coded::{Channels, Coded, CodedEntries};
use polykv::ops::{Mask, Places};

fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as().unwrap()
}

/// Keys with channels of very different means and spreads, as models have them.
fn keys(case: &Case) -> Vectors {
    let mut keys = case.vectors(case.kv_heads, case.entries, 5, 1.0);
    for (i, x) in keys.values.iter_mut().enumerate() {
        let channel = (i % case.dim) as f32;
        *x = *x * (0.1 + (channel * 0.7).sin().powi(8) * 4.0) + (channel * 1.3).cos() * 3.0;
        *x = half::bf16::from_f32(*x).to_f32();
    }
    keys
}

/// The decoded vectors in f64.
fn decoded(tensor: Tensor<4>, case: &Case) -> Vectors {
    Vectors {
        values: read(tensor),
        heads: case.kv_heads,
        tokens: case.entries,
        dim: case.dim,
    }
}

pub fn vectors(name: &str, device: &Device) {
    for case in CASES
        .iter()
        .filter(|case| device.supports_dtype(case.dtype))
    {
        let given = keys(case);
        let on = |device: &Device| {
            let keys = case.cached(&given, device);
            let channels = Channels::of(keys.clone());
            Codes::ALL.map(|codes| {
                let plain = Coded::of(keys.clone(), codes, None).vectors();
                let relative = Coded::of(keys.clone(), codes, Some(channels.clone())).vectors();
                [read(plain), read(relative)]
            })
        };
        let cpu = on(&Device::flex());
        for (codes, (found, wanted)) in Codes::ALL.into_iter().zip(on(device).iter().zip(&cpu)) {
            for (found, wanted) in found.iter().zip(wanted) {
                // A device may divide less exactly: then a number near the middle between two codes has the other one.
                let near = |(a, b): &(&f32, &f32)| (**a - **b).abs() <= 1e-4 * b.abs().max(1.0);
                let same = found.iter().zip(wanted).filter(near).count();
                println!(
                    "{name:5} {codes}, {}: {same} of {}",
                    case.name(),
                    found.len()
                );
                assert!(
                    same * 1000 >= found.len() * 998,
                    "{name}, {codes}, {}",
                    case.name()
                );
            }
            // In any case within a step of what was given.
            let most = ((1 << codes.bits()) - 1) as f32;
            let rows = given.values.chunks_exact(case.dim);
            for (row, found) in rows.zip(found[0].chunks_exact(case.dim)) {
                for (row, found) in row.chunks(Codes::RUN).zip(found.chunks(Codes::RUN)) {
                    let least = row.iter().copied().fold(f32::MAX, f32::min);
                    let largest = row.iter().copied().fold(f32::MIN, f32::max);
                    let size = largest.abs().max(least.abs());
                    let step = ((largest - least) / most).max(size / 2047.0);
                    for (x, y) in row.iter().zip(found) {
                        assert!((x - y).abs() <= 1.02 * step, "{name}, {codes}: {y} for {x}");
                    }
                }
            }
        }
    }
    wrong_numbers(name, device);
}

fn wrong_numbers(name: &str, device: &Device) {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = numbers(128, 9, 1.0);
        values[70] = bad;
        let vectors = Tensor::<4>::from_data(TensorData::new(values, [1, 1, 2, 64]), device);
        for codes in Codes::ALL {
            let back = read(Coded::of(vectors.clone(), codes, None).vectors());
            assert!(back[..64].iter().all(|x| x.is_finite()), "{name}");
            assert!(
                back[64..96].iter().any(|x| !x.is_finite()),
                "{name} {bad} {codes}"
            );
        }
    }
}

pub fn attention(name: &str, device: &Device) {
    for case in CASES
        .iter()
        .filter(|case| device.supports_dtype(case.dtype))
    {
        let heads = case.batch * case.kv_heads;
        let seen = case.entries + 9;
        let q = case.vectors(case.heads, 1, 1, 2.0);
        let v = case.vectors(case.kv_heads, case.entries, 3, 1.0);
        let positions = behind(heads, case.entries, 1, seen);
        let queries = case.tensor(&q, device);
        let both = [case.cached(&keys(case), device), case.cached(&v, device)];
        let channels = Channels::of(both[0].clone());
        for codes in Codes::ALL {
            let places = case.positions(&positions, device);
            let coded = CodedEntries::of(both.clone(), &places, codes, channels.clone());
            let k = decoded(coded.keys(case.entries), case);
            let v = decoded(coded.values(case.entries), case);
            for (window, softcap) in [(None, None), (Some(30), Some(2.0))] {
                let visible = |batch: usize, head: usize, _: usize, j: usize| {
                    let at = (batch * case.kv_heads + head) * case.entries + j;
                    window.is_none_or(|window| positions[at] + window as i64 >= seen as i64)
                };
                let mask = Mask {
                    softcap,
                    places: window.map(|_| Places {
                        positions: places.clone(),
                        seen,
                        window,
                    }),
                };
                let wanted = host::attention(case.batch, &q, &k, &v, softcap, &visible);
                let (output, block) = coded.attend(queries.clone(), case.entries, &mask);
                let row = block.last_row();
                for (what, found, wanted) in [
                    ("output", read(output), &wanted.output),
                    ("row", read(row), &wanted.last_row),
                ] {
                    assert_eq!(found.len(), wanted.len());
                    let apart = found.iter().zip(wanted.iter());
                    let apart = apart.map(|(a, b)| (f64::from(*a) - b).abs() / (1.0 + b.abs()));
                    let worst = apart.fold(
                        0.0,
                        |worst: f64, x| if x > worst || x.is_nan() { x } else { worst },
                    );
                    println!(
                        "{name:5} {what} in {codes}, window {window:?}, {}: {worst:.1e}",
                        case.name()
                    );
                    assert!(
                        worst <= 2e-5,
                        "{name}, {what} in {codes}, {}: {worst}",
                        case.name()
                    );
                }
            }
        }
    }
}
