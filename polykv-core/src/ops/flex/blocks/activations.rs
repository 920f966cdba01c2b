//! Activations in 16 bits: a scale for each run of 32 numbers along a row. Each number is 256 times a byte and another
//! byte, since the processors' dot products take bytes; the first byte alone is the number in 8 bits.

use crate::ops::flex::simd::{LANES, Level, Vector, dispatch};
use crate::ops::route::MOST_GEMV_ROWS;
use rayon::prelude::*;

/// Numbers of a run, which share a scale.
pub const RUN: usize = 32;

/// Numbers of a chunk: what the kernels take in one step.
pub const CHUNK: usize = 256;

/// The largest magnitude in 16 bits: 127 times 256, so that the first byte does not overflow where it is rounded.
const MOST: f32 = 32_512.0;

/// 256 numbers of a row in 16 bits, and what the scales of weights are multiplied with.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Chunk {
    pub high: [[i8; 64]; 4],
    pub low: [[i8; 64]; 4],
    /// Of each of the eight runs the scale and the sum: the scale times the sum of the values.
    pub scales_and_sums: [f32; LANES],
    /// The scales of the sixteen half runs.
    pub half_scales: [f32; LANES],
    /// The sums of the sixteen half runs.
    pub half_sums: [f32; LANES],
}

/// Rows of activations `[rows, columns]` in 16 bits, filled up with zeros to whole chunks.
pub struct Activations {
    chunks: Vec<Chunk>,
    /// Chunks per row.
    width: usize,
    /// Runs per row.
    runs: usize,
}

impl Activations {
    /// Rounds each run to 16 bits, at most half a step of its largest magnitude / 32,512 off.
    pub fn of(level: Level, x: &[f32], columns: usize) -> Self {
        let width = columns.div_ceil(CHUNK);
        let rows = x.len() / columns.max(1);
        let mut chunks = vec![Chunk::ZERO; rows * width];
        let round = |(row, chunks): (&[f32], &mut [Chunk])| {
            dispatch!(level, fn round(row: &[f32], chunks: &mut [Chunk]));
        };
        let (columns, chunks_of_row) = (columns.max(1), width.max(1));
        match rows <= MOST_GEMV_ROWS {
            true => x
                .chunks_exact(columns)
                .zip(chunks.chunks_exact_mut(chunks_of_row))
                .for_each(round),
            false => x
                .par_chunks_exact(columns)
                .zip(chunks.par_chunks_exact_mut(chunks_of_row))
                .for_each(round),
        }
        let runs = columns / RUN;
        Self {
            chunks,
            width,
            runs,
        }
    }

    pub fn rows(&self) -> usize {
        self.chunks.len() / self.width.max(1)
    }

    pub fn runs(&self) -> usize {
        self.runs
    }

    #[inline(always)]
    pub fn row(&self, row: usize) -> &[Chunk] {
        &self.chunks[row * self.width..][..self.width]
    }
}

impl Chunk {
    const ZERO: Self = Self {
        high: [[0; 64]; 4],
        low: [[0; 64]; 4],
        scales_and_sums: [0.0; LANES],
        half_scales: [0.0; LANES],
        half_sums: [0.0; LANES],
    };
}

#[inline(always)]
fn round<V: Vector>(x: &[f32], chunks: &mut [Chunk]) {
    for (x, chunk) in x.chunks(CHUNK).zip(chunks) {
        let (runs, _) = x.as_chunks::<RUN>();
        let high = chunk.high.as_flattened_mut().as_chunks_mut::<RUN>().0;
        let low = chunk.low.as_flattened_mut().as_chunks_mut::<RUN>().0;
        for (run, (x, (high, low))) in runs.iter().zip(high.iter_mut().zip(low)).enumerate() {
            let (scale, sums) = round_run(x, high, low);
            chunk.scales_and_sums[2 * run] = scale;
            chunk.scales_and_sums[2 * run + 1] = scale * (sums[0] + sums[1]) as f32;
            chunk.half_scales[2 * run] = scale;
            chunk.half_scales[2 * run + 1] = scale;
            chunk.half_sums[2 * run] = scale * sums[0] as f32;
            chunk.half_sums[2 * run + 1] = scale * sums[1] as f32;
        }
    }
}

/// Writes the numbers of a run in 16 bits and returns their scale and the sums of both halves.
#[inline(always)]
fn round_run(x: &[f32; RUN], high: &mut [i8; RUN], low: &mut [i8; RUN]) -> (f32, [i32; 2]) {
    // As bits, so that NaN is above all numbers and makes the scale one.
    let mut most = 0;
    for x in x {
        most = x.abs().to_bits().max(most);
    }
    let scale = f32::from_bits(most) / MOST;
    // The inverse of a scale below the normal numbers would be infinite.
    let inverse = if scale < f32::MIN_POSITIVE {
        0.0
    } else {
        1.0 / scale
    };
    let mut sums = [0; 2];
    for (half, sum) in sums.iter_mut().enumerate() {
        for i in half * RUN / 2..(half + 1) * RUN / 2 {
            // Adding 1.5 · 2²³ rounds to the nearest integer, which the sum's last bits hold.
            let rounded = (x[i] * inverse + 12_582_912.0).to_bits() as i16;
            // The byte below is signed: the one above is rounded to the nearest.
            low[i] = rounded as i8;
            high[i] = (rounded.wrapping_add(128) >> 8) as i8;
            *sum += i32::from(rounded);
        }
    }
    (scale, sums)
}
