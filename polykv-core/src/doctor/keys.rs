//! Expected norms and cosines of keys, and expected merges, in plain f64 loops.

use super::host::{Inputs, vector};

pub struct Compared {
    /// `[kv_heads][tokens]`
    pub norms: Vec<f64>,
    /// The cosine of each key with the first key of its head.
    pub cosines: Vec<f64>,
    /// The slots that [`Inputs::kept`] leaves out.
    pub evicted: Vec<i64>,
    /// For each evicted slot, the index of the closest kept key.
    pub places: Vec<i64>,
    /// What merging each evicted key into the closest kept one adds to the kept keys, weighted by the cosine.
    pub merged: Vec<f64>,
    /// What spreading each evicted key over the next [`Inputs::RECEIVERS`] kept ones adds to these, weighted by the cosine.
    pub spread: Vec<f64>,
}

impl Inputs {
    pub fn compared(&self) -> Compared {
        let key = |kv: usize, slot: usize| -> Vec<f64> {
            let key = &self.k[vector(kv, slot)..][..Self::DIM];
            key.iter().map(|&x| f64::from(x)).collect()
        };
        let mut found = Compared {
            norms: Vec::new(),
            cosines: Vec::new(),
            evicted: Vec::new(),
            places: Vec::new(),
            merged: vec![0.0; Self::KV_HEADS * Self::BUDGET * Self::DIM],
            spread: vec![0.0; Self::KV_HEADS * Self::BUDGET * Self::DIM],
        };
        for (kv, kept) in self.kept().chunks_exact(Self::BUDGET).enumerate() {
            for slot in 0..Self::TOKENS {
                let this = key(kv, slot);
                found.norms.push(product(&this, &this).sqrt());
                found.cosines.push(cosine(&this, &key(kv, 0)));
                if kept.contains(&(slot as i64)) {
                    continue;
                }
                let cosines = kept
                    .iter()
                    .map(|&other| cosine(&this, &key(kv, other as usize)));
                let best =
                    cosines.enumerate().fold(
                        (0, -2.0),
                        |best, next| {
                            if next.1 > best.1 { next } else { best }
                        },
                    );
                found.evicted.push(slot as i64);
                found.places.push(best.0 as i64);
                let other = key(kv, kept[best.0] as usize);
                let at = (kv * Self::BUDGET + best.0) * Self::DIM;
                for (d, sum) in found.merged[at..at + Self::DIM].iter_mut().enumerate() {
                    *sum += best.1 * (this[d] - other[d]);
                }
                let first = kept.partition_point(|&other| other < slot as i64);
                for receiver in first..Self::BUDGET.min(first + Self::RECEIVERS) {
                    let at = (kv * Self::BUDGET + receiver) * Self::DIM;
                    for (sum, x) in found.spread[at..at + Self::DIM].iter_mut().zip(&this) {
                        *sum += best.1 * x;
                    }
                }
            }
        }
        found
    }
}

fn product(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}
