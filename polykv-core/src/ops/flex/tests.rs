//! Every kernel at every level that this processor has, on odd shapes and strided views, against plain tensors.

use super::*;
use crate::ops::oracle;
use burn::backend::DispatchTensorKind;
use burn::tensor::{Device, Distribution, Tensor};

/// Queries, keys and values `[batch, heads, tokens, dim]`, as models make them: views with tokens before heads.
struct Case {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    tokens: usize,
    entries: usize,
    dim: usize,
}

/// Head sizes 64 to 128, groups of 1 to 8, sizes that no tile divides.
const CASES: [Case; 6] = [
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
];

fn random(batch: usize, heads: usize, tokens: usize, dim: usize) -> Tensor<4> {
    let distribution = Distribution::Normal(0.0, 1.5);
    Tensor::random([batch, tokens, heads, dim], distribution, &Device::flex()).swap_dims(1, 2)
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

fn flex<const D: usize>(tensor: &Tensor<D>) -> FlexTensor {
    match tensor.clone().into_dispatch().kind {
        DispatchTensorKind::Flex(tensor) => tensor.float(),
        other => panic!("not a CPU tensor: {other:?}"),
    }
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
        let mut sums =
            Tensor::<3>::zeros([case.batch, case.kv_heads, case.entries], &Device::flex());
        let mut add = |block: &crate::ops::AttentionBlock| {
            let part = block.column_sums();
            let seen = part.dims()[2];
            let missing = case.entries - seen;
            let [batch, kv_heads, _] = part.dims();
            let padded = match missing {
                0 => part,
                _ => Tensor::cat(
                    vec![
                        part,
                        Tensor::zeros([batch, kv_heads, missing], &Device::flex()),
                    ],
                    2,
                ),
            };
            sums = sums.clone() + padded;
            Ok(())
        };
        let wanted = oracle::attend(q.clone(), k.clone(), v.clone(), Some(&mut add)).unwrap();
        let wanted = values(wanted.swap_dims(1, 2));
        let sums = values(sums);
        let (q, k, v) = (flex(&q), flex(&k), flex(&v));
        let (q, k, v) = (Heads::of(&q), Heads::of(&k), Heads::of(&v));
        for level in Level::available() {
            let what = format!("{level:?}, group {group}, dim {}", case.dim);
            let (found, log_sums) = prefill::attend(level, &q, &k, &v);
            assert_close(&found, &wanted, 2e-5, &what);
            let found = prefill::column_sums(level, &q, &k, &log_sums);
            assert_close(&found, &sums, 2e-5, &what);
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
            let mut row = None;
            let mut keep = |block: &crate::ops::AttentionBlock| {
                row = Some(block.last_row());
                Ok(())
            };
            let wanted =
                values(oracle::attend(q.clone(), k.clone(), v.clone(), Some(&mut keep)).unwrap());
            let row = values(row.unwrap());
            let (q, k, v) = (flex(&q), flex(&k), flex(&v));
            let (q, k, v) = (Heads::of(&q), Heads::of(&k), Heads::of(&v));
            for level in Level::available() {
                let what = format!("{level:?}, {entries} entries, dim {}", case.dim);
                let (output, probabilities) = decode::attend(level, &q, &k, &v);
                assert_close(&output, &wanted, 2e-5, &what);
                assert_close(&probabilities, &row, 2e-5, &what);
            }
        }
    }
}

#[test]
fn linear_equals_the_oracle() {
    for (rows, columns, outputs) in [(1, 576, 1536), (3, 65, 7), (4, 64, 1), (2, 200, 333)] {
        let distribution = Distribution::Normal(0.0, 1.0);
        let x = Tensor::<2>::random([rows, columns], distribution, &Device::flex());
        let weight = Tensor::<2>::random([outputs, columns], distribution, &Device::flex());
        let wanted = values(x.clone().matmul(weight.clone().transpose()));
        let (x, weight) = (flex(&x), flex(&weight));
        for level in Level::available() {
            let found = decode::linear(level, x.storage_from_offset(), &Matrix::of(&weight));
            assert_close(
                &found,
                &wanted,
                1e-4,
                &format!("{level:?}, {rows} x {columns} x {outputs}"),
            );
        }
    }
}

#[test]
fn silu_mul_equals_the_oracle() {
    let distribution = Distribution::Uniform(-100.0, 100.0);
    let gate = Tensor::<2>::random([3, 5501], distribution, &Device::flex());
    let up = Tensor::<2>::random([3, 5501], distribution, &Device::flex());
    let wanted = values(burn::tensor::activation::silu(gate.clone()) * up.clone());
    let (gate, up) = (flex(&gate), flex(&up));
    for level in Level::available() {
        let found =
            pointwise::silu_mul(level, gate.storage_from_offset(), up.storage_from_offset());
        assert_close(&found, &wanted, 1e-5, &format!("{level:?}"));
    }
}

#[test]
fn exp_is_accurate_over_its_range() {
    for i in -8600..8700 {
        let x = i as f32 / 100.0;
        let wanted = f64::from(x).exp();
        for found in [simd::exp::<true>(x), simd::exp::<false>(x)] {
            assert!(
                (f64::from(found) / wanted - 1.0).abs() < 3e-7,
                "e^{x}: {found} for {wanted}"
            );
        }
    }
    assert!(simd::exp::<true>(-1e30) < 1e-37);
}
