//! Products of many rows of activations with weights of few bits or in bf16: by tiles of bf16 (AMX) where the processor has
//! them, else by dot products of AVX-512, of bf16 or of integers (VNNI).

mod amx;
mod bf16;
mod tile;
mod vnni;

use super::activations::RUN;
use super::gemv::dispatch_layout;
use super::layout::{self, Layout};
use crate::ops::flex::shared::Shared;
use crate::ops::flex::simd::LANES;
use crate::ops::flex::view::Matrix;
use crate::ops::weight::{BlockRows, BlockType, Blocks};
#[cfg(test)]
pub use amx::multiply_rightly;
pub use amx::{Amx, Hardware, Tiles};
pub use bf16::Bf16;
use bf16::Packed;
use rayon::prelude::*;
use std::arch::x86_64::*;
use tile::Tile;
pub use vnni::Vnni;

/// Rows of activations that stay in the processor's second cache.
const ROWS: usize = 128;

/// A way to multiply tiles of weights with rows of activations.
pub trait Kernel {
    /// At most [`ROWS`] rows of activations.
    type Rows: Send + Sync;
    /// 16 rows of a weight.
    type Packed;

    /// Whether this processor has the instructions, and those that make a [`Tile`].
    fn is_there() -> bool;

    /// `x [n, columns]` as blocks of [`ROWS`] rows. The kernel must be there.
    fn rows(x: &[f32], columns: usize) -> Vec<Self::Rows>;

    /// # Safety
    /// The kernel must be there.
    unsafe fn pack(tile: Tile) -> Self::Packed;

    /// Adds the products of all columns to `output [rows, 16]`.
    ///
    /// # Safety
    /// The kernel must be there.
    unsafe fn add(output: &mut [[f32; LANES]], rows: &Self::Rows, packed: &Self::Packed);
}

/// A weight `[rows, columns]` that a kernel can multiply with.
pub trait Stored<K: Kernel>: Sync {
    fn rows(&self) -> usize;

    /// Which stored row each row is, if they are in another order.
    fn order(&self) -> Option<&[u32]> {
        None
    }

    /// The stored rows `16 * index` and following.
    ///
    /// # Safety
    /// The kernel must be there.
    unsafe fn packed(&self, index: usize) -> K::Packed;
}

/// The rows of tile `index`.
fn rows_of(index: usize, rows: usize) -> std::ops::Range<usize> {
    index * LANES..rows.min((index + 1) * LANES)
}

impl<K: Kernel> Stored<K> for BlockRows<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn order(&self) -> Option<&[u32]> {
        self.order
    }

    unsafe fn packed(&self, index: usize) -> K::Packed {
        fn of<T: Layout>(rows: &[u8], row_bytes: usize, runs: usize) -> Tile {
            // SAFETY: a kernel is there, says the caller of `packed`, and with it these features.
            unsafe { Tile::of::<T>(rows, row_bytes, runs) }
        }
        let rows = self.stored(rows_of(index, self.rows));
        let (row_bytes, runs) = (self.row_bytes(), self.columns / RUN);
        let tile = dispatch_layout!(self.kind, of(rows, row_bytes, runs));
        // SAFETY: the kernel is there, says the caller.
        unsafe { K::pack(tile) }
    }
}

impl<K: Kernel> Stored<K> for Blocks<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    unsafe fn packed(&self, index: usize) -> K::Packed {
        let rows = rows_of(index, self.rows);
        let blocks = &self.blocks[rows.start * self.width..rows.end * self.width];
        // SAFETY: the kernel is there, says the caller.
        unsafe { K::pack(Tile::of_q8(blocks, self.width)) }
    }
}

impl<K: Kernel<Packed = Packed>> Stored<K> for Matrix<'_, burn::tensor::bf16> {
    fn rows(&self) -> usize {
        self.rows
    }

    unsafe fn packed(&self, index: usize) -> Packed {
        let rows = rows_of(index, self.rows).map(|row| self.row(row));
        Packed::of_rows(rows, self.columns / RUN)
    }
}

/// `x [n, columns]` times the transposes of weights of as many columns: `[n, rows]` each. `None` where the processor has
/// none of the instructions.
pub fn multiply(x: &[f32], columns: usize, weights: &[BlockRows<'_>]) -> Option<Vec<Vec<f32>>> {
    multiply_in_bf16(x, columns, weights).or_else(|| multiply_by::<Vnni, _>(x, columns, weights))
}

/// The same with activations in bf16; `None` where the processor has no products of them. `columns` must be a multiple of 32.
pub fn multiply_in_bf16<S: Stored<Amx<Hardware>> + Stored<Bf16>>(
    x: &[f32],
    columns: usize,
    weights: &[S],
) -> Option<Vec<Vec<f32>>> {
    multiply_by::<Amx<Hardware>, _>(x, columns, weights)
        .or_else(|| multiply_by::<Bf16, _>(x, columns, weights))
}

/// The same by one kernel; `None` where it is not there.
pub fn multiply_by<K: Kernel, S: Stored<K>>(
    x: &[f32],
    columns: usize,
    weights: &[S],
) -> Option<Vec<Vec<f32>>> {
    K::is_there().then(|| {
        let count = x.len() / columns;
        let blocks = K::rows(x, columns);
        let product = |weight: &S| product::<K, S>(&blocks, count, weight);
        weights.iter().map(product).collect()
    })
}

/// The kernel must be there.
fn product<K: Kernel, S: Stored<K>>(blocks: &[K::Rows], count: usize, weight: &S) -> Vec<f32> {
    let outputs = weight.rows();
    let mut output = Vec::with_capacity(count * outputs);
    let all = Shared::of_uninit(&mut output.spare_capacity_mut()[..count * outputs]);
    // Where each stored row goes.
    let places = weight.order().map(|order| {
        let mut places = vec![0; order.len()];
        for (place, &stored) in order.iter().enumerate() {
            places[stored as usize] = place;
        }
        places
    });
    let tile = |index: usize| {
        // SAFETY: the kernel is there, says the caller.
        let packed = unsafe { weight.packed(index) };
        let columns = rows_of(index, outputs);
        for (block, first) in blocks.iter().zip((0..count).step_by(ROWS)) {
            let mut sums = [[0.0; LANES]; ROWS];
            let sums = &mut sums[..ROWS.min(count - first)];
            // SAFETY: the kernel is there, says the caller.
            unsafe { K::add(sums, block, &packed) };
            for (row, sums) in sums.iter().enumerate() {
                let start = (first + row) * outputs;
                match &places {
                    // SAFETY: a tile's columns of a row lie within `count * outputs` numbers, and each tile has its own.
                    None => unsafe { all.write(start + columns.start, &sums[..columns.len()]) },
                    Some(places) => {
                        for (place, sum) in places[columns.clone()].iter().zip(sums) {
                            // SAFETY: `order` holds each row once, so that every place is one tile's, below `outputs`.
                            unsafe { all.write(start + place, std::slice::from_ref(sum)) };
                        }
                    }
                }
            }
        }
    };
    (0..outputs.div_ceil(LANES)).into_par_iter().for_each(tile);
    // SAFETY: the tiles have written every column of every row.
    unsafe { output.set_len(count * outputs) };
    output
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32; LANES]) -> __m512 {
    // SAFETY: 16 f32 are read from an array of 16, of any alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}
