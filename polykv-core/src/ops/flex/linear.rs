//! Products of a few rows with weights in any storage type. They are bound by memory: each weight is read once per row,
//! in its own type, and widened on the way into the registers.

use super::PARALLEL_BYTES;
use super::simd::{Element, Level, Vector, dispatch, dot};
use super::view::Matrix;
use burn::tensor::DType;
use rayon::prelude::*;

/// Values that share a scale in 8-bit weights.
pub const BLOCK: usize = 32;

/// 8-bit weights `[rows, columns]`, each block of [`BLOCK`] values along a row with a scale of its own.
#[derive(Clone, Copy)]
pub struct Blocks<'a> {
    pub values: &'a [i8],
    pub scales: &'a [f32],
    pub rows: usize,
    /// A multiple of [`BLOCK`].
    pub columns: usize,
}

impl<'a> Blocks<'a> {
    /// The blocks of a row with their scales.
    #[inline(always)]
    fn row(&self, row: usize) -> (&'a [[i8; BLOCK]], &'a [f32]) {
        let count = self.columns / BLOCK;
        let values = &self.values[row * self.columns..][..self.columns];
        let scales = &self.scales[row * count..][..count];
        (values.as_chunks().0, scales)
    }
}

/// A weight `[rows, columns]` that vectors are multiplied with.
pub trait Weight: Copy + Sync {
    fn rows(&self) -> usize;
    fn columns(&self) -> usize;
    fn bytes(&self) -> usize;
    /// `output[i] = x · row (first + i)`
    fn multiply(&self, level: Level, x: &[f32], first: usize, output: &mut [f32]);
}

impl<E: Element> Weight for Matrix<'_, E> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn bytes(&self) -> usize {
        self.rows * self.columns * size_of::<E>()
    }

    fn multiply(&self, level: Level, x: &[f32], first: usize, output: &mut [f32]) {
        let weight = self;
        // Loads of 64 bytes stream f32 more slowly than those of 32: 26 against 34 GB/s on Zen 4.
        let level = match E::dtype() {
            DType::F32 => level.min(Level::Avx2),
            _ => level,
        };
        dispatch!(level, fn rows<E: Element>(
            output: &mut [f32], x: &[f32], weight: &Matrix<'_, E>, first: usize,
        ));
    }
}

impl Weight for Blocks<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn bytes(&self) -> usize {
        self.values.len() + size_of_val(self.scales)
    }

    fn multiply(&self, level: Level, x: &[f32], first: usize, output: &mut [f32]) {
        let weight = self;
        dispatch!(level, fn block_rows(
            output: &mut [f32], x: &[f32], weight: &Blocks<'_>, first: usize,
        ));
    }
}

/// `x [n, columns]` times the transposes of the weights, side by side: `[n, Σ rows]`. One hand-over to the threads
/// serves all weights.
pub fn multiply<W: Weight>(level: Level, x: &[f32], weights: &[W]) -> Vec<f32> {
    let columns = weights.first().map_or(1, W::columns);
    let width: usize = weights.iter().map(W::rows).sum();
    let bytes: usize = weights.iter().map(W::bytes).sum();
    let threads = match bytes < PARALLEL_BYTES {
        true => 1,
        false => rayon::current_num_threads(),
    };
    // Several parts per thread even out threads that are late; too many would cost more than they even out.
    let parts = threads * if bytes > 8 << 20 { 8 } else { 2 };
    let step = width.div_ceil(parts).max(1);
    let mut output = vec![0.0; x.len() / columns * width];
    for (x, mut output) in x.chunks_exact(columns).zip(output.chunks_exact_mut(width)) {
        let mut tasks = Vec::with_capacity(parts + weights.len());
        for weight in weights {
            for first in (0..weight.rows()).step_by(step) {
                let (part, rest) = output.split_at_mut(step.min(weight.rows() - first));
                tasks.push((weight, first, part));
                output = rest;
            }
        }
        let run = |(weight, first, part): (&W, usize, &mut [f32])| {
            weight.multiply(level, x, first, part);
        };
        match threads {
            1 => tasks.into_iter().for_each(run),
            _ => tasks.into_par_iter().for_each(run),
        }
    }
    output
}

#[inline(always)]
fn rows<V: Vector, E: Element>(
    output: &mut [f32],
    x: &[f32],
    weight: &Matrix<'_, E>,
    first: usize,
) {
    for (i, y) in output.iter_mut().enumerate() {
        *y = dot::<V, E>(x, weight.row(first + i));
    }
}

#[inline(always)]
fn block_rows<V: Vector>(output: &mut [f32], x: &[f32], weight: &Blocks<'_>, first: usize) {
    let x = x.as_chunks::<BLOCK>().0;
    for (i, y) in output.iter_mut().enumerate() {
        let (values, scales) = weight.row(first + i);
        // Two sums hide the latency of the additions.
        let [mut a, mut b] = [V::splat(0.0); 2];
        let pairs = x.len() / 2 * 2;
        for block in (0..pairs).step_by(2) {
            a = add_block::<V>(&x[block], &values[block], scales[block], a);
            b = add_block::<V>(&x[block + 1], &values[block + 1], scales[block + 1], b);
        }
        if pairs < x.len() {
            a = add_block::<V>(&x[pairs], &values[pairs], scales[pairs], a);
        }
        *y = a.add(b).sum();
    }
}

/// `sums + scale · (x · values)`, the two halves of a block in the same lanes.
#[inline(always)]
fn add_block<V: Vector>(x: &[f32; BLOCK], values: &[i8; BLOCK], scale: f32, sums: V) -> V {
    let (x, values) = (x.as_chunks().0, values.as_chunks().0);
    let products = V::load_i8(&values[0]).mul_add(V::load(&x[0]), V::splat(0.0));
    let products = V::load_i8(&values[1]).mul_add(V::load(&x[1]), products);
    products.mul_add(V::splat(scale), sums)
}
