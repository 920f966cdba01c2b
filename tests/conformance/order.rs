//! What goes along the order of entries by position, and what follows entries, against loops on the host.

use crate::host::numbers;
use burn::tensor::{Device, Int, Tensor, TensorData};
use polykv::ops::{self, Pool};

const BATCH: usize = 2;
const KV_HEADS: usize = 3;
const ALL: usize = BATCH * KV_HEADS;

/// A permutation of the slots for each head.
fn orders(entries: usize, seed: u64) -> Vec<i64> {
    (0..ALL)
        .flat_map(|head| {
            let keys = numbers(entries, seed + head as u64, 1.0);
            let mut slots: Vec<i64> = (0..entries as i64).collect();
            slots.sort_by(|&a, &b| keys[a as usize].total_cmp(&keys[b as usize]));
            slots
        })
        .collect()
}

fn integers(values: &[i64], count: usize, device: &Device) -> Tensor<3, Int> {
    let data = TensorData::new(values.to_vec(), [BATCH, KV_HEADS, count]);
    Tensor::from_data(data, device)
}

/// One head's scores, from the definition.
fn pooled(scores: &[f32], order: &[i64], tail: usize, width: usize, mode: Pool) -> Vec<f64> {
    let old = scores.len() - tail.min(scores.len());
    let mut found: Vec<f64> = scores.iter().map(|&x| f64::from(x)).collect();
    for (rank, &slot) in order.iter().enumerate().take(old) {
        let near = rank.saturating_sub(width / 2)..(rank + width / 2 + 1).min(old);
        let near = near.map(|rank| f64::from(scores[order[rank] as usize]));
        found[slot as usize] = match mode {
            Pool::Max => near.fold(f64::NEG_INFINITY, f64::max),
            Pool::Avg => near.sum::<f64>() / width as f64,
        };
    }
    found
}

pub fn pooling(name: &str, device: &Device) {
    let mut worst = 0.0f64;
    for (entries, tail, width) in [(77, 8, 5), (300, 32, 7), (40, 0, 3), (9, 4, 13), (5, 5, 3)] {
        let scores = numbers(ALL * entries, 11, 1.0);
        let shuffled = orders(entries, 20);
        let straight: Vec<i64> = (0..ALL).flat_map(|_| 0..entries as i64).collect();
        for (order, mode) in [
            (Some(&shuffled), Pool::Max),
            (Some(&shuffled), Pool::Avg),
            (None, Pool::Max),
            (None, Pool::Avg),
        ] {
            let what = format!("{name}: {mode:?} of {width} over {entries}, tail {tail}");
            let dims = [BATCH, KV_HEADS, entries];
            let on_device = Tensor::from_data(TensorData::new(scores.clone(), dims), device);
            let on_device_order = order.map(|order| integers(order, entries, device));
            let found = ops::pool(on_device, on_device_order.as_ref(), tail, width, mode);
            let found: Vec<f32> = found.try_into_vec_as().unwrap();
            let order = order.unwrap_or(&straight);
            let heads = scores.chunks(entries).zip(order.chunks(entries));
            let wanted: Vec<f64> = heads
                .flat_map(|(scores, order)| pooled(scores, order, tail, width, mode))
                .collect();
            assert_eq!(found.len(), wanted.len(), "{what}");
            for (i, (a, b)) in found.iter().zip(&wanted).enumerate() {
                let difference = (f64::from(*a) - b).abs();
                assert!(difference <= 1e-6, "{what}: {a} for {b} at {i}");
                worst = worst.max(difference);
            }
        }
    }
    println!("{name:5} {:48} {worst:.1e}", "pooling");
    for mode in [Pool::Max, Pool::Avg] {
        let mut scores = vec![1.0; ALL * 9];
        scores[4] = f32::NAN;
        let scores = Tensor::from_data(TensorData::new(scores, [BATCH, KV_HEADS, 9]), device);
        let found: Vec<f32> = ops::pool(scores, None, 0, 3, mode)
            .try_into_vec_as()
            .unwrap();
        let nans: Vec<usize> = (0..found.len()).filter(|&i| found[i].is_nan()).collect();
        assert_eq!(nans, [3, 4, 5], "{name}: {mode:?} of NaN");
    }
}

/// The order without an entry, and statistics when the last entry has taken its place.
pub fn followers(name: &str, device: &Device) {
    for (entries, width) in [(2, 1), (77, 5), (513, 1), (300, 50)] {
        let what = format!("{name}: {entries} entries, {width} numbers each");
        let last = entries - 1;
        let order = orders(entries, 30);
        // The first, some, and the last slot go.
        let victims: Vec<i64> = (0..ALL)
            .map(|head| match head {
                0 => 0,
                1 => last as i64,
                _ => (head * 31 % entries) as i64,
            })
            .collect();
        let gone = integers(&victims, 1, device);
        let found = ops::extend_order(integers(&order, entries, device), width);
        assert_eq!(found.dims(), [BATCH, KV_HEADS, entries + width], "{what}");
        let found: Vec<i64> = found.try_into_vec_as().unwrap();
        let new = entries as i64..(entries + width) as i64;
        let heads = order.chunks(entries);
        let wanted = heads.flat_map(|order| order.iter().copied().chain(new.clone()));
        assert_eq!(found, wanted.collect::<Vec<_>>(), "{what}");
        for moved in [false, true] {
            let found =
                ops::drop_from_order(integers(&order, entries, device), gone.clone(), moved);
            assert_eq!(found.dims(), [BATCH, KV_HEADS, last], "{what}");
            let found: Vec<i64> = found.try_into_vec_as().unwrap();
            let heads = order.chunks(entries).zip(&victims);
            let wanted: Vec<i64> = heads
                .flat_map(|(order, &victim)| {
                    let stay = order.iter().filter(move |&&slot| slot != victim);
                    stay.map(move |&slot| match moved && slot == last as i64 {
                        true => victim,
                        false => slot,
                    })
                })
                .collect();
            assert_eq!(found, wanted, "{what}, moved: {moved}");
        }
        let numbers = numbers(ALL * entries * width, 12, 1.0);
        let dims = [BATCH, KV_HEADS, entries, width];
        let statistics = Tensor::<4>::from_data(TensorData::new(numbers.clone(), dims), device);
        let found = ops::move_last(statistics, gone);
        assert_eq!(found.dims(), [BATCH, KV_HEADS, last, width], "{what}");
        let found: Vec<f32> = found.try_into_vec_as().unwrap();
        let heads = numbers.chunks(entries * width).zip(&victims);
        let wanted: Vec<f32> = heads
            .flat_map(|(rows, &victim)| {
                let slots = (0..last).map(move |slot| match slot as i64 == victim {
                    true => last,
                    false => slot,
                });
                slots.flat_map(move |slot| &rows[slot * width..(slot + 1) * width])
            })
            .copied()
            .collect();
        assert_eq!(found, wanted, "{what}");
    }
}
