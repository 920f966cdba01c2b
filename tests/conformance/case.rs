//! Shapes that operators are tried with, and seeded tensors of them.

use crate::host::{Vectors, numbers};
use burn::tensor::{DType, Device, Int, Tensor, TensorData, s};

/// Sizes that no tile divides; groups of 1 to 9, head sizes of 64 to 256.
#[derive(Clone, Copy)]
pub struct Case {
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub tokens: usize,
    pub entries: usize,
    pub dtype: DType,
}

pub const CASE: Case = Case {
    batch: 1,
    heads: 4,
    kv_heads: 4,
    dim: 64,
    tokens: 5,
    entries: 77,
    dtype: DType::F32,
};

pub const CASES: [Case; 8] = [
    CASE,
    Case {
        batch: 2,
        heads: 6,
        kv_heads: 2,
        dim: 80,
        tokens: 70,
        entries: 131,
        ..CASE
    },
    Case {
        heads: 8,
        kv_heads: 2,
        dim: 96,
        entries: 301,
        ..CASE
    },
    Case {
        batch: 2,
        heads: 8,
        kv_heads: 1,
        dim: 128,
        tokens: 1,
        entries: 261,
        ..CASE
    },
    // Gemma 3's heads.
    Case {
        heads: 4,
        kv_heads: 1,
        dim: 256,
        tokens: 67,
        entries: 140,
        ..CASE
    },
    // More queries than a cube takes, vectors of an odd size.
    Case {
        heads: 9,
        kv_heads: 1,
        dim: 7,
        tokens: 3,
        entries: 40,
        ..CASE
    },
    Case {
        heads: 8,
        kv_heads: 2,
        entries: 150,
        dtype: DType::F16,
        ..CASE
    },
    Case {
        heads: 8,
        kv_heads: 2,
        entries: 150,
        dtype: DType::BF16,
        ..CASE
    },
];

impl Case {
    pub fn name(&self) -> String {
        let group = self.heads / self.kv_heads;
        format!(
            "batch {} G {group} d {} t {} n {} {:?}",
            self.batch, self.dim, self.tokens, self.entries, self.dtype
        )
    }

    pub fn vectors(&self, heads: usize, tokens: usize, seed: u64, scale: f32) -> Vectors {
        let count = self.batch * heads * tokens * self.dim;
        let mut values = numbers(count, seed, scale);
        // What the storage type holds: kernels widen it and compute in f32.
        match self.dtype {
            DType::F16 => values
                .iter_mut()
                .for_each(|x| *x = half::f16::from_f32(*x).to_f32()),
            DType::BF16 => values
                .iter_mut()
                .for_each(|x| *x = half::bf16::from_f32(*x).to_f32()),
            _ => {}
        }
        Vectors {
            values,
            heads,
            tokens,
            dim: self.dim,
        }
    }

    pub fn tensor(&self, vectors: &Vectors, device: &Device) -> Tensor<4> {
        let dims = [self.batch, vectors.heads, vectors.tokens, self.dim];
        Tensor::from_data(TensorData::new(vectors.values.clone(), dims), device)
    }

    /// As caches hold it: a part of a longer tensor.
    pub fn cached(&self, vectors: &Vectors, device: &Device) -> Tensor<4> {
        let dims = [self.batch, vectors.heads, vectors.tokens + 3, self.dim];
        let stored = self.tensor(vectors, device).cast(self.dtype);
        Tensor::zeros(dims, (device, self.dtype))
            .slice_assign(s![.., .., 0..vectors.tokens, ..], stored)
            .slice(s![.., .., 0..vectors.tokens, ..])
    }

    pub fn positions(&self, values: &[i64], device: &Device) -> Tensor<3, Int> {
        let dims = [self.batch, self.kv_heads, self.entries];
        Tensor::from_data(TensorData::new(values.to_vec(), dims), device)
    }
}

/// Positions of which the last `tokens` are the latest before `seen`, the others earlier ones in no order.
pub fn behind(heads: usize, entries: usize, tokens: usize, seen: usize) -> Vec<i64> {
    let before = entries - tokens;
    let old = shuffled(heads, before, seen - tokens);
    let own = || (seen - tokens) as i64..seen as i64;
    (0..heads)
        .flat_map(|head| {
            let old = old[head * before..(head + 1) * before].iter().copied();
            old.chain(own()).collect::<Vec<_>>()
        })
        .collect()
}

/// Different positions below `seen` in no order, other ones for each head.
pub fn shuffled(heads: usize, entries: usize, seen: usize) -> Vec<i64> {
    (0..heads)
        .flat_map(|head| {
            let mut all: Vec<i64> = (0..seen as i64).collect();
            let keys = numbers(seen, 90 + head as u64, 1.0);
            all.sort_by(|&a, &b| keys[a as usize].total_cmp(&keys[b as usize]));
            all.into_iter().take(entries)
        })
        .collect()
}
