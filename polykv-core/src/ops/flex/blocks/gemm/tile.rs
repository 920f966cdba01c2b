//! 16 rows of a weight, laid out so that each lane of a register belongs to one of them.

use super::super::activations::RUN;
use super::super::layout::{Layout, chunk_bytes};
use crate::ops::flex::simd::{LANES, Vector, VnniBytes};
use crate::ops::weight::Block;

/// Registers of 16 rows with 4 numbers each per run.
pub const FOURS: usize = RUN / 4;

/// 16 rows of a weight. A number is `scale * q + offset` with an unsigned integer q below 256.
pub struct Tile {
    /// Of each run and each 4 numbers of it the integers of 16 rows, `[runs, 8]`.
    pub numbers: Vec<[[u8; 4]; LANES]>,
    /// Of each half run the scales and the offsets of 16 rows, `[runs, 2]`.
    pub scales: Vec<[[f32; LANES]; 2]>,
    /// Whether the scales of two half runs differ.
    pub halves: bool,
}

impl Tile {
    fn zeros(runs: usize, halves: bool) -> Self {
        Self {
            numbers: vec![[[0; 4]; LANES]; runs * FOURS],
            scales: vec![[[0.0; LANES]; 2]; runs * 2],
            halves,
        }
    }

    /// Of up to 16 rows in blocks.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    pub fn of<T: Layout>(rows: &[u8], row_bytes: usize, runs: usize) -> Self {
        let mut tile = Self::zeros(runs, T::HALVES.is_some());
        for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
            for (i, chunk) in row.chunks(chunk_bytes::<T>()).enumerate() {
                let there = (runs - 8 * i).min(8);
                let of_chunk = T::scales::<VnniBytes>(chunk, there).lanes();
                for run in 0..there {
                    for half in 0..2 {
                        let (scale, offset) = match T::HALVES {
                            Some(factor) => {
                                let scale = of_chunk[2 * run + half];
                                (scale, factor * scale)
                            }
                            None => (of_chunk[2 * run], of_chunk[2 * run + 1]),
                        };
                        let place = &mut tile.scales[2 * (8 * i + run) + half];
                        (place[0][lane], place[1][lane]) = (scale, offset);
                    }
                }
                for pair in 0..there.div_ceil(2) {
                    let bytes = T::numbers::<VnniBytes>(chunk, pair, there).bytes();
                    let first = (8 * i + 2 * pair) * FOURS;
                    let places = tile.numbers[first..].iter_mut();
                    for (place, four) in places.zip(bytes.as_chunks::<4>().0) {
                        place[lane] = *four;
                    }
                }
            }
        }
        tile
    }

    /// Of up to 16 rows in 8 bits, `runs` blocks each.
    pub fn of_q8(rows: &[Block], runs: usize) -> Self {
        let mut tile = Self::zeros(runs, false);
        for (lane, row) in rows.chunks_exact(runs).enumerate() {
            for (run, block) in row.iter().enumerate() {
                for half in &mut tile.scales[2 * run..][..2] {
                    (half[0][lane], half[1][lane]) = (block.scale, -128.0 * block.scale);
                }
                let places = tile.numbers[run * FOURS..].iter_mut();
                for (place, four) in places.zip(block.values.as_chunks::<4>().0) {
                    place[lane] = four.map(|value| value as u8 ^ 128);
                }
            }
        }
        tile
    }
}
