//! The same products in bf16 with the tiles of AMX: 16 rows of activations by 16 rows of a weight in one instruction. Rust has
//! no stable intrinsics for them, so each is a line of assembly. What is computed equals the dot products of AVX-512 BF16 but for
//! the order of sums.

mod tiles;

use super::bf16::{Bf16, PAIRS, Packed, RowBlock, Scaling};
use super::tile::Tile;
use super::{Kernel, load};
use crate::ops::flex::simd::LANES;
use std::arch::x86_64::*;
use std::marker::PhantomData;
#[cfg(test)]
pub use tiles::multiply_rightly;
pub use tiles::{Hardware, Tiles};

/// Rows of a tile.
const HEIGHT: usize = 16;

/// Tiles of sums that run side by side; two more hold activations and weights.
const TOGETHER: usize = 4;

/// Bytes from one row of a tile to the next, in memory.
const STRIDE: usize = 64;

/// Multiplies with the tile instructions `T`, which tests replace by a model of them.
pub struct Amx<T>(PhantomData<T>);

impl<T: Tiles> Kernel for Amx<T> {
    type Rows = RowBlock;
    type Packed = Packed;

    fn is_there() -> bool {
        Bf16::is_there() && T::are_there()
    }

    fn rows(x: &[f32], columns: usize) -> Vec<RowBlock> {
        // SAFETY: `is_there` has found all features.
        unsafe { RowBlock::all(x, columns, HEIGHT) }
    }

    unsafe fn pack(tile: Tile) -> Packed {
        // SAFETY: the features are there, says the caller.
        unsafe { Bf16::pack(tile) }
    }

    unsafe fn add(output: &mut [[f32; LANES]], rows: &RowBlock, tile: &Packed) {
        // SAFETY: the features are there, says the caller.
        unsafe {
            match tile.scaling {
                Scaling::None => add_plain::<T>(output, rows, tile),
                Scaling::Runs => add::<T, false>(output, rows, tile),
                Scaling::Halves => add::<T, true>(output, rows, tile),
            }
        }
    }
}

/// Adds the products of numbers without scales to `output [rows, 16]`: the sums stay in tiles until their last run.
///
/// # Safety
/// The tiles must be there.
unsafe fn add_plain<T: Tiles>(output: &mut [[f32; LANES]], block: &RowBlock, tile: &Packed) {
    let mut sums = [[0.0; LANES]; TOGETHER * HEIGHT];
    // SAFETY: the tiles are there, says the caller. Activations are read from whole tiles of 16 rows, since blocks are filled
    // up; weights from the 16 pairs of a run; sums are written to an array of four tiles.
    unsafe {
        let mut tiles = T::configured(PAIRS);
        for (group, output) in output.chunks_mut(TOGETHER * HEIGHT).enumerate() {
            let count = output.len().div_ceil(HEIGHT);
            tiles.zero();
            let runs = block.values.chunks_exact(block.rows);
            for (numbers, values) in tile.numbers.as_chunks::<PAIRS>().0.iter().zip(runs) {
                let values = &values[group * TOGETHER * HEIGHT..][..count * HEIGHT];
                tiles.load_weights(numbers.as_ptr().cast(), STRIDE);
                tiles.add_products(count, values.as_ptr().cast(), STRIDE);
            }
            tiles.store(count, sums.as_mut_ptr().cast(), STRIDE);
            for (output, sums) in output.iter_mut().zip(&sums) {
                for (output, sum) in output.iter_mut().zip(sums) {
                    *output += sum;
                }
            }
        }
    }
}

/// Adds the products of all runs to `output [rows, 16]`.
///
/// # Safety
/// The tiles and the features must be there.
#[target_feature(enable = "avx512f")]
unsafe fn add<T: Tiles, const HALVES: bool>(
    output: &mut [[f32; LANES]],
    block: &RowBlock,
    tile: &Packed,
) {
    let mut dots = [[0.0; LANES]; TOGETHER * HEIGHT];
    let scales = tile.scales.as_chunks::<2>().0;
    // A step is what has one scale.
    let (steps, pairs) = if HALVES { (2, PAIRS / 2) } else { (1, PAIRS) };
    // SAFETY: as in `add_plain`; a half run of activations lies in the columns of its half, which end within their rows.
    unsafe {
        let mut tiles = T::configured(pairs);
        for (group, output) in output.chunks_mut(TOGETHER * HEIGHT).enumerate() {
            let count = output.len().div_ceil(HEIGHT);
            let rows = group * TOGETHER * HEIGHT;
            let values = block.values.chunks_exact(block.rows);
            let sums = block.sums.chunks_exact(block.rows);
            let runs = tile.numbers.as_chunks::<PAIRS>().0.iter().zip(scales);
            for ((numbers, scales), (values, sums)) in runs.zip(values.zip(sums)) {
                let values = &values[rows..][..count * HEIGHT];
                for step in 0..steps {
                    tiles.zero();
                    tiles.load_weights(numbers[step * pairs..].as_ptr().cast(), STRIDE);
                    let from = values.as_ptr().cast::<[u16; 2]>().add(step * pairs);
                    tiles.add_products(count, from.cast(), STRIDE);
                    tiles.store(count, dots.as_mut_ptr().cast(), STRIDE);
                    let [scale, offset] = &scales[step];
                    let [scale, offset] = [load(scale), load(offset)];
                    let rows = dots.iter().zip(&sums[rows..]);
                    for (output, (dots, sums)) in output.iter_mut().zip(rows) {
                        let sum = match HALVES {
                            true => sums[step],
                            false => sums[0] + sums[1],
                        };
                        let so_far = _mm512_fmadd_ps(offset, _mm512_set1_ps(sum), load(output));
                        let so_far = _mm512_fmadd_ps(scale, load(dots), so_far);
                        _mm512_storeu_ps(output.as_mut_ptr(), so_far);
                    }
                }
            }
        }
    }
}
