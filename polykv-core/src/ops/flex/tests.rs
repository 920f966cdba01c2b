//! Every kernel at every level that this processor has, on odd shapes and strided views, against plain tensors.

mod blocks;
#[cfg(target_os = "linux")]
mod guard;
mod layers;
mod scores;
mod slots;
#[cfg(target_arch = "x86_64")]
mod tiles;

use super::bridge::{elements, float};
use super::columns::{Fold, columns};
use super::simd::Level;
use super::view::Heads;
use super::{hits, keys, mask, merge, order, prefill, token, window};
use crate::ops::{self, Mask, Places, oracle};
use crate::random::splitmix;
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData, bf16, f16, s};
use std::cell::Cell;

/// Queries, keys and values `[batch, heads, tokens, dim]`, as models make them: views with tokens before heads.
struct Case {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    tokens: usize,
    entries: usize,
    dim: usize,
}

/// Head sizes 64 to 256, groups of 1 to 8, sizes that no tile divides.
const CASES: [Case; 7] = [
    Case {
        batch: 1,
        heads: 9,
        kv_heads: 3,
        tokens: 70,
        entries: 70,
        dim: 64,
    },
    Case {
        batch: 2,
        heads: 4,
        kv_heads: 4,
        tokens: 1,
        entries: 1,
        dim: 80,
    },
    Case {
        batch: 1,
        heads: 8,
        kv_heads: 1,
        tokens: 13,
        entries: 77,
        dim: 96,
    },
    Case {
        batch: 2,
        heads: 4,
        kv_heads: 2,
        tokens: 5,
        entries: 129,
        dim: 128,
    },
    Case {
        batch: 1,
        heads: 2,
        kv_heads: 1,
        tokens: 200,
        entries: 333,
        dim: 20,
    },
    Case {
        batch: 1,
        heads: 3,
        kv_heads: 3,
        tokens: 6,
        entries: 64,
        dim: 7,
    },
    Case {
        batch: 1,
        heads: 4,
        kv_heads: 1,
        tokens: 67,
        entries: 131,
        dim: 256,
    },
];

/// Normal numbers, the same in every run: counts of what lies above a threshold differ where a number lies on it.
fn random(batch: usize, heads: usize, tokens: usize, dim: usize) -> Tensor<4> {
    thread_local! {
        static CALLS: Cell<u64> = const { Cell::new(0) };
    }
    let mut state = CALLS.replace(CALLS.get() + 1) << 32;
    let mut uniform = || {
        state += 1;
        (splitmix(state) >> 40) as f32 / (1 << 24) as f32
    };
    let mut normal = || {
        let (size, angle) = (1.0 - uniform(), uniform());
        1.5 * (-2.0 * size.ln()).sqrt() * (std::f32::consts::TAU * angle).cos()
    };
    let dims = [batch, tokens, heads, dim];
    let numbers: Vec<f32> = (0..dims.iter().product()).map(|_| normal()).collect();
    Tensor::<4>::from_data(TensorData::new(numbers, dims), &Device::flex()).swap_dims(1, 2)
}

impl Case {
    fn tensors(&self) -> [Tensor<4>; 3] {
        [
            random(self.batch, self.heads, self.tokens, self.dim),
            random(self.batch, self.kv_heads, self.entries, self.dim),
            random(self.batch, self.kv_heads, self.entries, self.dim),
        ]
    }
}

/// Positions of entries of which the last `tokens` are the queries' own, the others in no order and with gaps; and the
/// position after the last query.
fn places(case: &Case) -> (Vec<i64>, usize) {
    let before = case.entries - case.tokens;
    let seen = before + 9 + case.tokens;
    let of_head = |head: usize| {
        let mut old: Vec<i64> = (0..before as i64 + 9).collect();
        old.sort_by_key(|&p| (p * 7919 + head as i64 * 31) % 1009);
        old.truncate(before);
        old.into_iter()
            .chain((seen - case.tokens) as i64..seen as i64)
    };
    (
        (0..case.batch * case.kv_heads).flat_map(of_head).collect(),
        seen,
    )
}

fn integers(values: &[i64], case: &Case) -> Tensor<3, Int> {
    let entries = values.len() / case.batch / case.kv_heads;
    let dims = [case.batch, case.kv_heads, entries];
    Tensor::from_data(TensorData::new(values.to_vec(), dims), &Device::flex())
}

/// No mask, a soft-cap, windows of several sizes, and both: as operators and as kernels take them.
fn masks(case: &Case) -> Vec<(Mask, mask::Mask)> {
    let (positions, seen) = places(case);
    let n = case.entries;
    let make = |window: Option<usize>, softcap: Option<f64>| {
        let of_operator = Mask {
            softcap,
            places: window.map(|_| Places {
                positions: integers(&positions, case),
                seen,
                window,
            }),
        };
        let first = seen - case.tokens;
        let of_kernel = mask::Mask {
            softcap: softcap.map(|cap| cap as f32),
            window: window.map(|size| mask::Window::new(positions.clone(), n, size, first)),
        };
        (of_operator, of_kernel)
    };
    vec![
        make(None, None),
        make(None, Some(2.0)),
        make(Some(1), None),
        make(Some(40), None),
        make(Some(100), Some(2.0)),
        make(Some(n + 20), None),
    ]
}

fn flex<const D: usize>(tensor: &Tensor<D>) -> FlexTensor {
    float(tensor.clone())
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as().unwrap()
}

fn assert_close(found: &[f32], wanted: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(wanted).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * (1.0 + b.abs()),
            "{what}: {a} for {b} at {i}"
        );
    }
}

#[test]
fn prompt_attention_and_column_sums_equal_the_oracle() {
    for case in &CASES {
        let [q, k, v] = case.tensors();
        let group = case.heads / case.kv_heads;
        let of_kernel = [flex(&q), flex(&k), flex(&v)];
        let [q2, k2, v2] = of_kernel.each_ref().map(Heads::of);
        for (plain, mask) in masks(case) {
            let dims = [case.batch, case.kv_heads, case.entries];
            let mut sums = Tensor::<3>::zeros(dims, &Device::flex());
            let mut most = Tensor::<3>::zeros(dims, &Device::flex());
            let mut add = |rows: Tensor<4>| {
                let part = oracle::column_max(rows.clone());
                let seen = part.dims()[2];
                let old = most.clone().slice(s![.., .., 0..seen]);
                most = most
                    .clone()
                    .slice_assign(s![.., .., 0..seen], old.max_pair(part));
                let part = oracle::column_sums(rows, group);
                let seen = part.dims()[2];
                let old = sums.clone().slice(s![.., .., 0..seen]);
                sums = sums.clone().slice_assign(s![.., .., 0..seen], old + part);
                Ok(())
            };
            let (q, k, v) = (q.clone(), k.clone(), v.clone());
            let wanted = oracle::attend(q, k, v, &plain, Some(&mut add)).unwrap();
            let (wanted, sums) = (values(wanted.swap_dims(1, 2)), values(sums));
            let most = values(most);
            let window = plain.places.and_then(|places| places.window);
            for level in Level::available() {
                let what = format!(
                    "{level:?}, group {group}, dim {}, window {window:?}, cap {:?}",
                    case.dim, mask.softcap
                );
                let (found, log_sums) = prefill::attend(level, &q2, &k2, &v2, &mask);
                assert_close(&found, &wanted, 2e-5, &what);
                for (fold, wanted) in [(Fold::Sum, &sums), (Fold::Max, &most)] {
                    let columns = columns(level, &q2, &k2, &log_sums, &mask, fold);
                    assert_close(&columns, wanted, 2e-5, &what);
                }
                let (summed, logs, columns) = prefill::attend_summed(level, &q2, &k2, &v2, &mask);
                assert_eq!((summed, logs), (found, log_sums), "{what}");
                assert_close(&columns, &sums, 2e-5, &what);
            }
            #[cfg(target_arch = "x86_64")]
            tiles::attend(case, [&q2, &k2, &v2], &mask, &wanted);
        }
    }
}

#[test]
fn token_attention_equals_the_oracle() {
    for case in &CASES {
        for entries in [case.entries, 1200] {
            let case = Case {
                tokens: 1,
                entries,
                ..*case
            };
            let [q, k, v] = case.tensors();
            let of_kernel = [flex(&q), flex(&k), flex(&v)];
            let [q2, k2, v2] = of_kernel.each_ref().map(Heads::<f32>::of);
            for (plain, mask) in masks(&case) {
                let (wanted, row) =
                    oracle::attend_token(q.clone(), k.clone(), v.clone(), None, &plain);
                let (wanted, row) = (values(wanted), values(row));
                for level in Level::available() {
                    let what = format!("{level:?}, {entries} entries, dim {}", case.dim);
                    let (output, probabilities) = token::attend(level, &q2, &k2, &v2, None, &mask);
                    assert_close(&output, &wanted, 2e-5, &what);
                    assert_close(&probabilities, &row, 2e-5, &what);
                }
            }
        }
    }
}

/// Lengths from 1 to all, another one for each head; 1200 entries are read in parts.
#[test]
fn token_attention_over_lengths_equals_the_oracle() {
    for case in &CASES {
        for entries in [case.entries, 1200] {
            let case = Case {
                tokens: 1,
                entries,
                ..*case
            };
            let [q, k, v] = case.tensors();
            let heads = case.batch * case.kv_heads;
            let lengths: Vec<i64> = (0..heads)
                .map(|head| 1 + (head * 401 + entries - 1) as i64 % entries as i64)
                .collect();
            let data = TensorData::new(lengths.clone(), [case.batch, case.kv_heads]);
            let on_device = Tensor::from_data(data, &Device::flex());
            let none = Mask::default();
            let (wanted, wanted_row) =
                oracle::attend_token(q.clone(), k.clone(), v.clone(), Some(on_device), &none);
            let (wanted, wanted_row) = (values(wanted), values(wanted_row));
            let mask = mask::Mask::default();
            let (q, k, v) = (flex(&q), flex(&k), flex(&v));
            let (q, k, v) = (Heads::of(&q), Heads::<f32>::of(&k), Heads::of(&v));
            for level in Level::available() {
                let what = format!("{level:?}, {lengths:?} of {entries}, dim {}", case.dim);
                let (output, row) = token::attend(level, &q, &k, &v, Some(&lengths), &mask);
                assert_close(&output, &wanted, 2e-5, &what);
                assert_close(&row, &wanted_row, 2e-5, &what);
            }
        }
    }
}

/// The values of keys and values in half precision are what is computed with: the same stored in f32 give the same, but for
/// what tiles of bf16 round.
#[test]
fn half_precision_caches_give_what_their_values_in_f32_give() {
    for case in &CASES {
        let [q, k, v] = case.tensors();
        for dtype in [DType::F16, DType::BF16] {
            let (k, v) = (k.clone().cast(dtype), v.clone().cast(dtype));
            let wide = |t: &Tensor<4>| t.clone().cast(DType::F32);
            for tokens in [1, case.tokens] {
                let q = q.clone().narrow(2, case.tokens - tokens, tokens);
                let run =
                    |k, v| values(ops::attend(q.clone(), k, v, &Mask::default(), None).unwrap());
                let (found, wanted) = (run(k.clone(), v.clone()), run(wide(&k), wide(&v)));
                assert_close(
                    &found,
                    &wanted,
                    if tokens < 16 { 1e-6 } else { 1e-4 },
                    &format!("{dtype:?}, {tokens} tokens"),
                );
                let window = |k| {
                    let positions =
                        Tensor::<1, Int>::arange(0..case.entries as i64, &Device::flex());
                    let positions = positions.reshape([1, 1, case.entries]).expand([
                        case.batch,
                        case.kv_heads,
                        case.entries,
                    ]);
                    let places = Places {
                        positions,
                        seen: case.entries,
                        window: None,
                    };
                    values(ops::window_attention(q.clone(), k, &places, None))
                };
                assert_close(&window(k.clone()), &window(wide(&k)), 1e-6, "window");
            }
        }
    }
}
