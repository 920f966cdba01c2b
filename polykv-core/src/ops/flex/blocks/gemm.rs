//! Products of many rows of activations with weights in blocks, by the dot products of AVX-512 VNNI: tiles of 16 rows of
//! the weight are laid out so that each lane of a register belongs to one of them. Activations have 8 bits: the first of the
//! two bytes that the GEMV takes.

use super::activations::{Activations, RUN};
use super::gemv::dispatch_layout;
use super::layout::{self, Layout, chunk_bytes};
use crate::ops::flex::simd::{Dots, LANES, Level, Vector, VnniBytes};
use crate::ops::weight::{BlockRows, BlockType};
use rayon::prelude::*;
use std::arch::x86_64::*;

/// Rows of activations that stay in the processor's second cache.
const ROWS: usize = 128;

/// Registers of 16 rows with 4 numbers each per run.
const FOURS: usize = RUN / 4;

/// `x [n, columns]` times the transposes of weights of as many columns: `[n, rows]` each. `None` where the processor has no
/// VNNI.
pub fn multiply(x: &[f32], columns: usize, weights: &[BlockRows<'_>]) -> Option<Vec<Vec<f32>>> {
    let level = Level::best();
    if Dots::up_to(level) != Dots::Vnni {
        return None;
    }
    let x = Activations::of(level, x, columns);
    let count = x.rows();
    let blocks: Vec<RowBlock> = (0..count.div_ceil(ROWS))
        .into_par_iter()
        .map(|i| RowBlock::of(&x, i * ROWS..count.min((i + 1) * ROWS)))
        .collect();
    let product = |weight: &BlockRows<'_>| product(&blocks, count, weight);
    Some(weights.iter().map(product).collect())
}

/// The processor must have what [`Dots::Vnni`] stands for.
fn product(blocks: &[RowBlock], count: usize, weight: &BlockRows<'_>) -> Vec<f32> {
    let outputs = weight.rows;
    let tiles = outputs.div_ceil(LANES);
    // Per tile `[n, 16]`.
    let mut tiled = vec![[0.0; LANES]; tiles * count];
    let tile = |(index, output): (usize, &mut [[f32; LANES]])| {
        dispatch_layout!(weight.kind, one(output, blocks, weight, index));
    };
    tiled.par_chunks_mut(count).enumerate().for_each(tile);
    let mut output = vec![0.0; count * outputs];
    let row = |(row, output): (usize, &mut [f32])| match weight.order {
        None => {
            for (tile, output) in output.chunks_mut(LANES).enumerate() {
                output.copy_from_slice(&tiled[tile * count + row][..output.len()]);
            }
        }
        Some(order) => {
            for (output, &stored) in output.iter_mut().zip(order) {
                let stored = stored as usize;
                *output = tiled[stored / LANES * count + row][stored % LANES];
            }
        }
    };
    output
        .par_chunks_mut(outputs.max(1))
        .enumerate()
        .for_each(row);
    output
}

fn one<T: Layout>(
    output: &mut [[f32; LANES]],
    blocks: &[RowBlock],
    weight: &BlockRows<'_>,
    index: usize,
) {
    let rows = index * LANES..weight.rows.min((index + 1) * LANES);
    // SAFETY: `multiply` has found all features.
    let tile = unsafe {
        Tile::of::<T>(
            weight.stored(rows),
            weight.row_bytes(),
            weight.columns / RUN,
        )
    };
    for (block, output) in blocks.iter().zip(output.chunks_mut(ROWS)) {
        // SAFETY: `multiply` has found all features.
        unsafe { add::<T>(output, block, &tile) };
    }
}

/// Rows of activations, run by run.
struct RowBlock {
    rows: usize,
    /// `[runs, rows]`
    values: Vec<[i8; RUN]>,
    /// The scale, the sum and the sums of both halves, `[runs, rows]`.
    scales: Vec<[f32; 4]>,
}

impl RowBlock {
    fn of(x: &Activations, rows: std::ops::Range<usize>) -> Self {
        let runs = x.runs();
        let count = rows.len();
        let mut values = vec![[0; RUN]; runs * count];
        let mut scales = vec![[0.0; 4]; runs * count];
        for (i, row) in rows.enumerate() {
            let chunks = x.row(row);
            for run in 0..runs {
                let (chunk, at) = (&chunks[run / 8], run % 8);
                let of_run = chunk.high.as_flattened().as_chunks::<RUN>().0[at];
                let scale = 256.0 * chunk.scales_and_sums[2 * at];
                let [low, high] = [0, RUN / 2].map(|half| {
                    let half = &of_run[half..][..RUN / 2];
                    half.iter().map(|&x| i32::from(x)).sum::<i32>()
                });
                values[run * count + i] = of_run;
                let [sum, low, high] = [low + high, low, high].map(|sum| scale * sum as f32);
                scales[run * count + i] = [scale, sum, low, high];
            }
        }
        Self {
            rows: count,
            values,
            scales,
        }
    }
}

/// 16 rows of a weight.
struct Tile {
    /// Of each run and each 4 numbers of it those of 16 rows, `[runs, 8]`.
    numbers: Vec<[[u8; 4]; LANES]>,
    /// Of each half run the scales and the offsets of 16 rows, `[runs, 2]`.
    scales: Vec<[[f32; LANES]; 2]>,
}

impl Tile {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    fn of<T: Layout>(rows: &[u8], row_bytes: usize, runs: usize) -> Self {
        let mut numbers = vec![[[0; 4]; LANES]; runs * FOURS];
        let mut scales = vec![[[0.0; LANES]; 2]; runs * 2];
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
                        let place = &mut scales[2 * (8 * i + run) + half];
                        (place[0][lane], place[1][lane]) = (scale, offset);
                    }
                }
                for pair in 0..there.div_ceil(2) {
                    let bytes = T::numbers::<VnniBytes>(chunk, pair, there).bytes();
                    let first = (8 * i + 2 * pair) * FOURS;
                    let places = numbers[first..].iter_mut();
                    for (place, four) in places.zip(bytes.as_chunks::<4>().0) {
                        place[lane] = *four;
                    }
                }
            }
        }
        Self { numbers, scales }
    }
}

/// Adds the products of all runs to `output [rows, 16]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn add<T: Layout>(output: &mut [[f32; LANES]], block: &RowBlock, tile: &Tile) {
    let numbers = tile.numbers.as_chunks::<FOURS>().0.iter();
    let scales = tile.scales.as_chunks::<2>().0;
    let values = block.values.chunks_exact(block.rows);
    let factors = block.scales.chunks_exact(block.rows);
    for (((numbers, scales), values), factors) in numbers.zip(scales).zip(values).zip(factors) {
        let mut w = [_mm512_setzero_si512(); FOURS];
        for (w, numbers) in w.iter_mut().zip(numbers) {
            // SAFETY: 64 bytes are read from an array of 64, of any alignment.
            *w = unsafe { _mm512_loadu_si512(numbers.as_ptr().cast()) };
        }
        let [[scale, offset], [scale_2, offset_2]] = [
            [load(&scales[0][0]), load(&scales[0][1])],
            [load(&scales[1][0]), load(&scales[1][1])],
        ];
        for ((values, factors), output) in values.iter().zip(factors).zip(output.iter_mut()) {
            let mut sum = load(output);
            let [factor, total, low, high] = *factors;
            let x = values.as_chunks::<4>().0;
            let mut dots = _mm512_setzero_si512();
            for i in 0..FOURS / 2 {
                dots = _mm512_dpbusd_epi32(dots, w[i], four(&x[i]));
            }
            if T::HALVES.is_some() {
                sum = added(sum, dots, _mm512_mul_ps(scale, _mm512_set1_ps(factor)));
                sum = _mm512_fmadd_ps(offset, _mm512_set1_ps(low), sum);
                sum = _mm512_fmadd_ps(offset_2, _mm512_set1_ps(high), sum);
                dots = _mm512_setzero_si512();
            } else {
                sum = _mm512_fmadd_ps(offset, _mm512_set1_ps(total), sum);
            }
            for i in FOURS / 2..FOURS {
                dots = _mm512_dpbusd_epi32(dots, w[i], four(&x[i]));
            }
            sum = added(sum, dots, _mm512_mul_ps(scale_2, _mm512_set1_ps(factor)));
            // SAFETY: 16 f32 are written to an array of 16, of any alignment.
            unsafe { _mm512_storeu_ps(output.as_mut_ptr(), sum) };
        }
    }
}

/// `sum + scale · dots`
#[inline]
#[target_feature(enable = "avx512f")]
fn added(sum: __m512, dots: __m512i, scale: __m512) -> __m512 {
    _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), scale, sum)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32; LANES]) -> __m512 {
    // SAFETY: 16 f32 are read from an array of 16, of any alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

/// Four numbers in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn four(x: &[i8; 4]) -> __m512i {
    _mm512_set1_epi32(i32::from_le_bytes([
        x[0] as u8, x[1] as u8, x[2] as u8, x[3] as u8,
    ]))
}
