//! Integers by activations in bf16, with the dot products of AVX-512 BF16. The integers are exact in bf16, so what is rounded
//! are the activations, to 8 bits each: less than in integers of 8 bits, where the largest number of a run decides.

use super::super::activations::RUN;
use super::tile::{FOURS, Tile};
use super::{Kernel, ROWS, load};
use crate::ops::flex::simd::{Dots, LANES, Level};
use burn::tensor::bf16;
use rayon::prelude::*;
use std::arch::x86_64::*;

/// Registers of 16 rows with 2 numbers each per run.
pub const PAIRS: usize = RUN / 2;

/// Rows of activations whose sums run side by side: more than a dot product takes cycles.
const TOGETHER: usize = 8;

pub struct Bf16;

impl Kernel for Bf16 {
    type Rows = RowBlock;
    type Packed = Packed;

    fn is_there() -> bool {
        Dots::up_to(Level::best()) == Dots::Vnni && is_x86_feature_detected!("avx512bf16")
    }

    fn rows(x: &[f32], columns: usize) -> Vec<RowBlock> {
        // SAFETY: `is_there` has found all features.
        unsafe { RowBlock::all(x, columns, 1) }
    }

    unsafe fn pack(tile: Tile) -> Packed {
        // SAFETY: the features are there, says the caller.
        unsafe { Packed::of(tile) }
    }

    unsafe fn add(output: &mut [[f32; LANES]], rows: &RowBlock, tile: &Packed) {
        // SAFETY: the features are there, says the caller.
        unsafe {
            match tile.scaling {
                Scaling::None => add_plain(output, rows, tile),
                Scaling::Runs => add::<false>(output, rows, tile),
                Scaling::Halves => add::<true>(output, rows, tile),
            }
        }
    }
}

/// Rows of activations, run by run.
pub struct RowBlock {
    /// With the rows of zeros that fill them up.
    pub rows: usize,
    /// Bits of bf16, `[runs, rows]`.
    pub values: Vec<[[u16; 2]; PAIRS]>,
    /// The sums of both halves, `[runs, rows]`.
    pub sums: Vec<[f32; 2]>,
}

impl RowBlock {
    /// Of `x [n, columns]`, each filled up to a multiple of `fill` rows.
    ///
    /// # Safety
    /// [`Bf16`] must be there.
    pub unsafe fn all(x: &[f32], columns: usize, fill: usize) -> Vec<Self> {
        x.par_chunks(ROWS * columns)
            // SAFETY: the features are there, says the caller.
            .map(|x| unsafe { Self::of(x, columns, fill) })
            .collect()
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    fn of(x: &[f32], columns: usize, fill: usize) -> Self {
        let (rows, runs) = ((x.len() / columns).next_multiple_of(fill), columns / RUN);
        let mut values = vec![[[0; 2]; PAIRS]; runs * rows];
        let mut sums = vec![[0.0; 2]; runs * rows];
        for (row, x) in x.chunks_exact(columns).enumerate() {
            for (run, x) in x
                .as_chunks::<LANES>()
                .0
                .as_chunks::<2>()
                .0
                .iter()
                .enumerate()
            {
                let rounded = _mm512_cvtne2ps_pbh(load(&x[1]), load(&x[0]));
                // SAFETY: both are 512 bits of any content.
                let bits: __m512i = unsafe { std::mem::transmute(rounded) };
                let place = run * rows + row;
                // SAFETY: 64 bytes are written to an array of 64, of any alignment.
                unsafe { _mm512_storeu_si512(values[place].as_mut_ptr().cast(), bits) };
                let halves = [
                    _mm512_castsi512_si256(bits),
                    _mm512_extracti64x4_epi64::<1>(bits),
                ];
                for (sum, half) in sums[place].iter_mut().zip(halves) {
                    let wide = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half));
                    *sum = _mm512_reduce_add_ps(_mm512_castsi512_ps(wide));
                }
            }
        }
        Self { rows, values, sums }
    }
}

/// What the products of a tile's numbers are multiplied with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scaling {
    /// Nothing: the numbers are the weight's own.
    None,
    /// A scale per run and row.
    Runs,
    /// A scale per half run and row.
    Halves,
}

/// 16 rows of a weight in bf16.
pub struct Packed {
    /// Of each run and each 2 numbers of it the bits of those of 16 rows, `[runs, 16]`.
    pub numbers: Vec<[[u16; 2]; LANES]>,
    /// See [`Tile::scales`]; empty without scaling.
    pub scales: Vec<[[f32; LANES]; 2]>,
    pub scaling: Scaling,
}

impl Packed {
    /// Of up to 16 rows `[columns]` each.
    pub fn of_rows<'a>(rows: impl Iterator<Item = &'a [bf16]>, runs: usize) -> Self {
        let mut numbers = vec![[[0; 2]; LANES]; runs * PAIRS];
        for (lane, row) in rows.enumerate() {
            for (place, pair) in numbers.iter_mut().zip(row.as_chunks::<2>().0) {
                place[lane] = pair.map(bf16::to_bits);
            }
        }
        Self {
            numbers,
            scales: Vec::new(),
            scaling: Scaling::None,
        }
    }

    #[target_feature(enable = "avx512f")]
    fn of(tile: Tile) -> Self {
        let mut numbers = vec![[[0; 2]; LANES]; 2 * tile.numbers.len()];
        for (pairs, fours) in numbers.as_chunks_mut::<2>().0.iter_mut().zip(&tile.numbers) {
            // SAFETY: 64 bytes are read from an array of 64, of any alignment.
            let fours = unsafe { _mm512_loadu_si512(fours.as_ptr().cast()) };
            for (pair, first) in pairs.iter_mut().zip([0, 2]) {
                let low = _mm512_srli_epi32::<16>(widened(fours, first));
                let both = _mm512_or_si512(low, widened(fours, first + 1));
                // SAFETY: 64 bytes are written to an array of 64, of any alignment.
                unsafe { _mm512_storeu_si512(pair.as_mut_ptr().cast(), both) };
            }
        }
        Self {
            numbers,
            scales: tile.scales,
            scaling: match tile.halves {
                true => Scaling::Halves,
                false => Scaling::Runs,
            },
        }
    }
}

/// Byte `byte` of each lane as an f32, whose upper half is its bf16: of integers of 8 bits the lower half is zero.
#[inline]
#[target_feature(enable = "avx512f")]
fn widened(lanes: __m512i, byte: u32) -> __m512i {
    let numbers = _mm512_srlv_epi32(lanes, _mm512_set1_epi32(8 * byte as i32));
    let numbers = _mm512_and_si512(numbers, _mm512_set1_epi32(255));
    _mm512_castps_si512(_mm512_cvtepi32_ps(numbers))
}

/// Adds the products of all runs to `output [rows, 16]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn add<const HALVES: bool>(output: &mut [[f32; LANES]], block: &RowBlock, tile: &Packed) {
    let numbers = tile.numbers.as_chunks::<{ 2 * FOURS }>().0.iter();
    let scales = tile.scales.as_chunks::<2>().0;
    let values = block.values.chunks_exact(block.rows);
    let sums = block.sums.chunks_exact(block.rows);
    for (((numbers, scales), values), sums) in numbers.zip(scales).zip(values).zip(sums) {
        let (many, rest) = output.as_chunks_mut::<TOGETHER>();
        let (values, last_values) = values.as_chunks::<TOGETHER>();
        let (sums, last_sums) = sums.as_chunks::<TOGETHER>();
        for ((output, values), sums) in many.iter_mut().zip(values).zip(sums) {
            add_rows::<HALVES, TOGETHER>(output, numbers, scales, values, sums);
        }
        let rest = rest.as_chunks_mut::<1>().0.iter_mut();
        let last_values = last_values.as_chunks::<1>().0;
        for ((output, values), sums) in rest.zip(last_values).zip(last_sums.as_chunks::<1>().0) {
            add_rows::<HALVES, 1>(output, numbers, scales, values, sums);
        }
    }
}

/// Adds the products of one run to rows of `output`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn add_rows<const HALVES: bool, const N: usize>(
    output: &mut [[f32; LANES]; N],
    numbers: &[[[u16; 2]; LANES]; PAIRS],
    scales: &[[[f32; LANES]; 2]; 2],
    values: &[[[u16; 2]; PAIRS]; N],
    sums: &[[f32; 2]; N],
) {
    let mut dots = [_mm512_setzero_ps(); N];
    for half in 0..2 {
        for pair in half * PAIRS / 2..(half + 1) * PAIRS / 2 {
            let w = pairs(&numbers[pair]);
            for n in 0..N {
                dots[n] = _mm512_dpbf16_ps(dots[n], w, everywhere(values[n][pair]));
            }
        }
        if HALVES || half == 1 {
            let [scale, offset] = [load(&scales[half][0]), load(&scales[half][1])];
            for n in 0..N {
                let sum = if HALVES {
                    sums[n][half]
                } else {
                    sums[n][0] + sums[n][1]
                };
                let so_far = _mm512_fmadd_ps(offset, _mm512_set1_ps(sum), load(&output[n]));
                let so_far = _mm512_fmadd_ps(scale, dots[n], so_far);
                // SAFETY: 16 f32 are written to an array of 16, of any alignment.
                unsafe { _mm512_storeu_ps(output[n].as_mut_ptr(), so_far) };
                dots[n] = _mm512_setzero_ps();
            }
        }
    }
}

/// Adds the products of numbers without scales to `output [rows, 16]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn add_plain(output: &mut [[f32; LANES]], block: &RowBlock, tile: &Packed) {
    let count = output.len();
    let (many, rest) = output.as_chunks_mut::<TOGETHER>();
    for (i, output) in many.iter_mut().enumerate() {
        add_plain_rows(output, TOGETHER * i, block, tile);
    }
    let first = count - rest.len();
    for (i, output) in rest.as_chunks_mut::<1>().0.iter_mut().enumerate() {
        add_plain_rows(output, first + i, block, tile);
    }
}

/// The sums of a row stay in a register until its last run.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn add_plain_rows<const N: usize>(
    output: &mut [[f32; LANES]; N],
    first: usize,
    block: &RowBlock,
    tile: &Packed,
) {
    let mut sums = [_mm512_setzero_ps(); N];
    for (sum, output) in sums.iter_mut().zip(output.iter()) {
        *sum = load(output);
    }
    let runs = block.values.chunks_exact(block.rows);
    for (numbers, values) in tile.numbers.as_chunks::<PAIRS>().0.iter().zip(runs) {
        let Some(values) = values[first..].first_chunk::<N>() else {
            return;
        };
        for pair in 0..PAIRS {
            let w = pairs(&numbers[pair]);
            for n in 0..N {
                sums[n] = _mm512_dpbf16_ps(sums[n], w, everywhere(values[n][pair]));
            }
        }
    }
    for (sum, output) in sums.iter().zip(output) {
        // SAFETY: 16 f32 are written to an array of 16, of any alignment.
        unsafe { _mm512_storeu_ps(output.as_mut_ptr(), *sum) };
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn pairs(bits: &[[u16; 2]; LANES]) -> __m512bh {
    // SAFETY: 64 bytes are read from an array of 64, of any alignment, and are a register of any content.
    unsafe { std::mem::transmute(_mm512_loadu_si512(bits.as_ptr().cast())) }
}

/// One pair in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn everywhere([low, high]: [u16; 2]) -> __m512bh {
    let lanes = _mm512_set1_epi32((u32::from(high) << 16 | u32::from(low)) as i32);
    // SAFETY: both are 512 bits of any content.
    unsafe { std::mem::transmute(lanes) }
}
