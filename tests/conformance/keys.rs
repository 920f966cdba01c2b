//! Norms and cosines of keys, what is merged, and attention that sums its columns on the way, against f64 on the
//! host.

use crate::case::shuffled;
use crate::host::{self, Vectors, numbers};
use burn::tensor::{DType, Device, Int, Tensor, TensorData, s};
use polykv::ops::{self, AttentionBlock, Mask};

const BATCH: usize = 2;
const KV_HEADS: usize = 2;
const ALL: usize = BATCH * KV_HEADS;

/// Sizes that no tile divides: entries, evicted ones, elements of a vector.
const CASES: [(usize, usize, usize, DType); 5] = [
    (301, 211, 64, DType::F32),
    (90, 1, 80, DType::F32),
    (40, 23, 7, DType::F32),
    (150, 50, 64, DType::F16),
    (150, 50, 64, DType::BF16),
];

fn vectors(tokens: usize, dim: usize, seed: u64, dtype: DType) -> Vectors {
    let mut values = numbers(ALL * tokens * dim, seed, 2.0);
    values.iter_mut().for_each(|x| match dtype {
        DType::F16 => *x = half::f16::from_f32(*x).to_f32(),
        DType::BF16 => *x = half::bf16::from_f32(*x).to_f32(),
        _ => {}
    });
    Vectors {
        values,
        heads: KV_HEADS,
        tokens,
        dim,
    }
}

/// As caches hold it: a part of a longer tensor.
fn cached(vectors: &Vectors, dtype: DType, device: &Device) -> Tensor<4> {
    let dims = [BATCH, KV_HEADS, vectors.tokens, vectors.dim];
    let data = TensorData::new(vectors.values.clone(), dims);
    let stored = Tensor::<4>::from_data(data, device).cast(dtype);
    let longer = [BATCH, KV_HEADS, vectors.tokens + 3, vectors.dim];
    Tensor::zeros(longer, (device, dtype))
        .slice_assign(s![.., .., 0..vectors.tokens, ..], stored)
        .slice(s![.., .., 0..vectors.tokens, ..])
}

fn wide(row: &[f32]) -> Vec<f64> {
    row.iter().map(|&x| f64::from(x)).collect()
}

fn product(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

fn agree<const D: usize>(what: &str, found: Tensor<D>, wanted: &[f64]) {
    let found: Vec<f32> = found.try_into_vec_as().unwrap();
    assert_eq!(found.len(), wanted.len(), "{what}");
    let mut worst = 0.0f64;
    for (i, (a, b)) in found.iter().zip(wanted).enumerate() {
        let difference = (f64::from(*a) - b).abs() / (1.0 + b.abs());
        assert!(difference <= 2e-5, "{what}: {a} for {b} at {i}");
        worst = worst.max(difference);
    }
    println!("{what:54} {worst:.1e}");
}

pub fn compared(name: &str, device: &Device) {
    for (entries, going, dim, dtype) in CASES {
        if !device.supports_dtype(dtype) {
            continue;
        }
        let of = |what: &str| format!("{name:5} {what}, {entries} of {dim}, {going} go, {dtype:?}");
        let keys = vectors(entries, dim, 41, dtype);
        let on_device = cached(&keys, dtype, device);
        let rows = |kv: usize| (0..entries).map(move |token| (kv, token));
        let row = |kv: usize, token: usize| wide(keys.row(kv / KV_HEADS, kv % KV_HEADS, token));
        let norms = ops::key_norms(on_device.clone());
        let wanted = (0..ALL).flat_map(rows).map(|(kv, token)| {
            let row = row(kv, token);
            product(&row, &row).sqrt()
        });
        agree(&of("key norms"), norms.clone(), &wanted.collect::<Vec<_>>());

        let anchors = vectors(1, dim, 42, DType::F32);
        let anchor = Tensor::from_data(
            TensorData::new(anchors.values.clone(), [BATCH, KV_HEADS, 1, dim]),
            device,
        );
        let found = ops::key_cosines(on_device.clone(), norms, anchor);
        let wanted = (0..ALL).flat_map(rows).map(|(kv, token)| {
            let anchor = wide(anchors.row(kv / KV_HEADS, kv % KV_HEADS, 0));
            cosine(&row(kv, token), &anchor)
        });
        agree(&of("key cosines"), found, &wanted.collect::<Vec<_>>());

        // Every head evicts others: the slots of a rotation.
        let staying = entries - going;
        let slots = |kv: usize, i: usize| (i * 11 + kv * 7) % entries;
        let evicted: Vec<usize> = (0..ALL)
            .flat_map(|kv| (0..going).map(move |i| slots(kv, i)))
            .collect();
        let kept: Vec<usize> = (0..ALL)
            .flat_map(|kv| (going..entries).map(move |i| slots(kv, i)))
            .collect();
        let tensor = |slots: &[usize]| {
            let values: Vec<i64> = slots.iter().map(|&slot| slot as i64).collect();
            let dims = [BATCH, KV_HEADS, values.len() / ALL];
            Tensor::<3, Int>::from_data(TensorData::new(values, dims), device)
        };
        let (best, places) = ops::closest(on_device.clone(), tensor(&evicted), tensor(&kept));
        let found: Vec<i64> = places.clone().try_into_vec_as().unwrap();
        let matches = evicted.iter().enumerate().map(|(i, &slot)| {
            let kv = i / going;
            let key = row(kv, slot);
            let others = kept[kv * staying..(kv + 1) * staying].iter().enumerate();
            let cosines =
                others.map(|(place, &other)| (place as i64, cosine(&key, &row(kv, other))));
            cosines.fold((0, -2.0), |best, next| match next.1 > best.1 {
                true => next,
                false => best,
            })
        });
        let (wanted_places, wanted): (Vec<i64>, Vec<f64>) = matches.unzip();
        agree(&of("closest"), best, &wanted);
        assert_eq!(found, wanted_places, "{}", of("places of the closest"));

        let parts = numbers(ALL * going, 43, 1.0);
        // Some are dropped.
        let parts: Vec<f32> = parts.iter().map(|&x| x.max(0.0)).collect();
        let on_device_parts = TensorData::new(parts.clone(), [BATCH, KV_HEADS, going]);
        let merged = ops::merge_into(
            on_device,
            tensor(&evicted),
            tensor(&kept),
            places,
            Tensor::from_data(on_device_parts, device),
        );
        let mut sums = vec![0.0; ALL * staying * dim];
        for (i, &slot) in evicted.iter().enumerate() {
            let kv = i / going;
            let at = kv * staying + wanted_places[i] as usize;
            let (going, target) = (row(kv, slot), row(kv, kept[at]));
            for d in 0..dim {
                sums[at * dim + d] += f64::from(parts[i]) * (going[d] - target[d]);
            }
        }
        agree(&of("merged"), merged, &sums);
    }
}

/// Slots that no cache has count as the last one, and places that do not exist add nothing: nothing outside the tensors
/// is read or written.
pub fn wrong_slots(name: &str, device: &Device) {
    let (entries, dim) = (40, 64);
    let keys = || cached(&vectors(entries, dim, 71, DType::F32), DType::F32, device);
    let slots = |values: [i64; 3]| {
        let all: Vec<i64> = (0..ALL).flat_map(|_| values).collect();
        Tensor::<3, Int>::from_data(TensorData::new(all, [BATCH, KV_HEADS, 3]), device)
    };
    let numbers = |tensor: Tensor<4>| tensor.try_into_vec_as::<f32>().unwrap();
    let last = entries as i64 - 1;
    let (wrong, meant, kept) = ([-5, 7, 90_000], [last, 7, last], [1, 2, 3]);
    let closest = |evicted: [i64; 3], kept: [i64; 3]| {
        let (cosines, places) = ops::closest(keys(), slots(evicted), slots(kept));
        let cosines: Vec<f32> = cosines.try_into_vec_as().unwrap();
        (cosines, places.try_into_vec_as::<i64>().unwrap())
    };
    assert_eq!(closest(wrong, kept), closest(meant, kept), "{name}");
    assert_eq!(closest(kept, wrong), closest(kept, meant), "{name}");
    let parts = || Tensor::<3>::ones([BATCH, KV_HEADS, 3], device) * 0.5;
    let merged = |evicted, kept, places| {
        numbers(ops::merge_into(
            keys(),
            slots(evicted),
            slots(kept),
            slots(places),
            parts(),
        ))
    };
    let places = [2, 0, 1];
    assert_eq!(merged(wrong, kept, places), merged(meant, kept, places));
    assert_eq!(merged(kept, wrong, places), merged(kept, meant, places));
    let nothing = merged(kept, meant, [-1, 3, 90_000]);
    assert!(nothing.iter().all(|x| *x == 0.0), "{name}");
    let positions = || {
        let all: Vec<i64> = (0..ALL).flat_map(|_| 0..entries as i64).collect();
        let dims = [BATCH, KV_HEADS, entries];
        Tensor::<3, Int>::from_data(TensorData::new(all, dims), device)
    };
    let spread = |evicted, kept| {
        let (gone, stay) = (slots(evicted), slots(kept));
        numbers(ops::spread_into(
            keys(),
            positions(),
            gone,
            stay,
            parts(),
            2,
        ))
    };
    assert_eq!(spread([4, 5, 90_000], kept), spread([4, 5, last], kept));
    assert_eq!(spread(kept, [4, 5, -9]), spread(kept, [4, 5, last]));
    let moved = |which| {
        let (keys, values, positions) =
            ops::compact((keys(), keys(), positions()), slots(which), 4);
        let positions: Vec<i64> = positions.try_into_vec_as().unwrap();
        (numbers(keys), numbers(values), positions)
    };
    assert_eq!(moved(wrong), moved(meant), "{name}");
    let one = |slot: i64| {
        let all = TensorData::new(vec![slot; ALL], [BATCH, KV_HEADS, 1]);
        Tensor::<3, Int>::from_data(all, device)
    };
    let replaced = |slot| {
        let new = Tensor::<4>::ones([BATCH, KV_HEADS, 1, dim], device);
        let all = (keys(), keys(), positions());
        let (keys, _, positions) = ops::replace(all, one(slot), new.clone(), new, 77);
        (numbers(keys), positions.try_into_vec_as::<i64>().unwrap())
    };
    assert_eq!(replaced(-2), replaced(last), "{name}");
    assert_eq!(replaced(90_000), replaced(last), "{name}");
    let left = ops::drop_from_order(positions(), one(90_000), true);
    assert_eq!(left.dims(), [BATCH, KV_HEADS, entries - 1]);
    let left: Vec<i64> = left.try_into_vec_as().unwrap();
    let wanted: Vec<i64> = (0..ALL).flat_map(|_| 0..last).collect();
    assert_eq!(left, wanted, "{name}");
}

/// Few go between two that stay, or almost all; at slots in any order.
pub fn spread(name: &str, device: &Device) {
    for (entries, going, dim, dtype) in CASES {
        if !device.supports_dtype(dtype) {
            continue;
        }
        let values = vectors(entries, dim, 61, dtype);
        let places = shuffled(ALL, entries, entries);
        let slot_at = |kv: usize, position: usize| {
            let places = &places[kv * entries..(kv + 1) * entries];
            places.iter().position(|&x| x == position as i64).unwrap()
        };
        let parts = numbers(ALL * going, 63, 1.0);
        // As streaming-llm evicts: all behind two sinks; and spread over all positions.
        for (stride, shift) in [(1, 2), (11, 0)] {
            let goes = |position: usize| {
                let at = (position + entries - shift) % entries;
                (0..going).any(|i| i * stride % entries == at)
            };
            let (gone, stay): (Vec<usize>, Vec<usize>) = (0..entries).partition(|&p| goes(p));
            let tensor = |positions: &[usize]| {
                let of_head = |kv| positions.iter().map(move |&p| slot_at(kv, p) as i64);
                let slots: Vec<i64> = (0..ALL).flat_map(of_head).collect();
                let dims = [BATCH, KV_HEADS, positions.len()];
                Tensor::<3, Int>::from_data(TensorData::new(slots, dims), device)
            };
            for window in [1, 4, 32, entries] {
                let of = |what: &str| {
                    format!("{name:5} {what} {window}, {entries} of {dim}, {going} go, {dtype:?}")
                };
                let dims = [BATCH, KV_HEADS, entries];
                let found = ops::spread_into(
                    cached(&values, dtype, device),
                    Tensor::from_data(TensorData::new(places.clone(), dims), device),
                    tensor(&gone),
                    tensor(&stay),
                    Tensor::from_data(
                        TensorData::new(parts.clone(), [BATCH, KV_HEADS, going]),
                        device,
                    ),
                    window,
                );
                let mut sums = vec![0.0; ALL * stay.len() * dim];
                for kv in 0..ALL {
                    for (i, &position) in gone.iter().enumerate() {
                        let row = values.row(kv / KV_HEADS, kv % KV_HEADS, slot_at(kv, position));
                        let part = f64::from(parts[kv * going + i]);
                        let behind = (0..stay.len()).filter(|&rank| stay[rank] > position);
                        for rank in behind.take(window) {
                            let at = (kv * stay.len() + rank) * dim;
                            let sums = sums[at..at + dim].iter_mut().zip(row);
                            sums.for_each(|(sum, x)| *sum += part * f64::from(*x));
                        }
                    }
                }
                agree(&of("spread over"), found, &sums);
            }
        }
    }
}

/// Prompts of which a thread sums several tiles, after entries that were there before.
pub fn summed(name: &str, device: &Device) {
    for (heads, tokens, entries, dim) in [(4, 70, 131, 80), (2, 200, 200, 64), (6, 5, 77, 7)] {
        let what = format!("{name:5} column sums on the way, {tokens} of {entries}, d {dim}");
        let make = |heads, tokens, seed| Vectors {
            values: numbers(BATCH * heads * tokens * dim, seed, 2.0),
            heads,
            tokens,
            dim,
        };
        let q = make(heads, tokens, 51);
        let (k, v) = (make(KV_HEADS, entries, 52), make(KV_HEADS, entries, 53));
        let causal = |_: usize, _: usize, i: usize, j: usize| j <= entries - tokens + i;
        let wanted = host::attention(BATCH, &q, &k, &v, None, &causal);
        let tensor = |x: &Vectors| {
            let dims = [BATCH, x.heads, x.tokens, dim];
            Tensor::<4>::from_data(TensorData::new(x.values.clone(), dims), device)
        };
        let mut sums = Tensor::<3>::zeros([BATCH, KV_HEADS, entries], device);
        let mut observe = |block: &AttentionBlock| {
            let part = block.column_sums();
            let seen = part.dims()[2];
            let old = sums.clone().slice(s![.., .., 0..seen]);
            sums = sums.clone().slice_assign(s![.., .., 0..seen], old + part);
            Ok(())
        };
        let output = ops::attend_summed(
            tensor(&q),
            tensor(&k),
            tensor(&v),
            &Mask::default(),
            &mut observe,
        );
        agree(&format!("{what}: output"), output.unwrap(), &wanted.output);
        agree(&what, sums, &wanted.column_sums);
    }
}
