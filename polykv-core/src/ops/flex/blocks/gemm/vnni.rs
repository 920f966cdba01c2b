//! Integers by integers, with the dot products of AVX-512 VNNI. Activations have 8 bits: the first of the two bytes that the
//! GEMV takes.

use super::super::activations::{Activations, RUN};
use super::tile::{FOURS, Tile};
use super::{Kernel, ROWS, load};
use crate::ops::flex::simd::{Dots, LANES, Level};
use rayon::prelude::*;
use std::arch::x86_64::*;

pub struct Vnni;

impl Kernel for Vnni {
    type Rows = RowBlock;
    type Packed = Tile;

    fn is_there() -> bool {
        Dots::up_to(Level::best()) == Dots::Vnni
    }

    fn rows(x: &[f32], columns: usize) -> Vec<RowBlock> {
        let x = Activations::of(Level::best(), x, columns);
        let count = x.rows();
        (0..count.div_ceil(ROWS))
            .into_par_iter()
            .map(|i| RowBlock::of(&x, i * ROWS..count.min((i + 1) * ROWS)))
            .collect()
    }

    unsafe fn pack(tile: Tile) -> Tile {
        tile
    }

    unsafe fn add(output: &mut [[f32; LANES]], rows: &RowBlock, tile: &Tile) {
        // SAFETY: the features are there, says the caller.
        unsafe {
            match tile.halves {
                true => add::<true>(output, rows, tile),
                false => add::<false>(output, rows, tile),
            }
        }
    }
}

/// Rows of activations, run by run.
pub struct RowBlock {
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

/// Adds the products of all runs to `output [rows, 16]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn add<const HALVES: bool>(output: &mut [[f32; LANES]], block: &RowBlock, tile: &Tile) {
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
            if HALVES {
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

/// Four numbers in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn four(x: &[i8; 4]) -> __m512i {
    _mm512_set1_epi32(i32::from_le_bytes([
        x[0] as u8, x[1] as u8, x[2] as u8, x[3] as u8,
    ]))
}
