//! How kernels read the block types: chunks of 256 numbers as scales and bytes, whatever the size of a block.

use super::activations::CHUNK;
use crate::ops::flex::simd::{Bytes, LANES, Vector};
use crate::ops::weight::six_bits;

/// A block type. A number is `scale * q + offset` with an unsigned integer q.
pub trait Layout {
    /// Numbers of a block.
    const ELEMENTS: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// Whether q reaches 128 and more.
    const WIDE: bool = false;
    /// Whether there is a scale for each 16 numbers, and an offset that is this multiple of it, instead of a scale and an
    /// offset for each 32.
    const HALVES: Option<f32> = None;

    /// Of each of the eight runs of a chunk the scale and the offset, zeros beyond the first `runs`; or the sixteen scales of
    /// the half runs.
    fn scales<B: Bytes>(chunk: &[u8], runs: usize) -> B::Floats;

    /// The integers of the runs `2 * pair` and `2 * pair + 1`; zeros where a run is beyond `runs`.
    fn numbers<B: Bytes>(chunk: &[u8], pair: usize, runs: usize) -> B;
}

/// Bytes of as many blocks as a chunk has.
pub const fn chunk_bytes<T: Layout>() -> usize {
    CHUNK / T::ELEMENTS * T::BYTES
}

#[inline(always)]
fn at<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    &bytes[at..at + N].as_chunks().0[0]
}

#[inline(always)]
fn half(bytes: &[u8], start: usize) -> u16 {
    u16::from_le_bytes(*at(bytes, start))
}

/// A pair of halves that are the same.
#[inline(always)]
fn twice(half: u16) -> u32 {
    u32::from(half) << 16 | u32::from(half)
}

#[inline(always)]
fn product<V: Vector>(a: V, b: V) -> V {
    a.mul_add(b, V::splat(0.0))
}

/// The scales of blocks of 32 with one half each; the offsets are `factor` times them.
#[inline(always)]
fn scales_alone<T: Layout, B: Bytes>(chunk: &[u8], runs: usize, factor: f32) -> B::Floats {
    let mut all = [0; LANES / 2];
    for (i, pair) in all.iter_mut().enumerate() {
        if i < runs {
            *pair = twice(half(chunk, i * T::BYTES));
        }
    }
    let mut factors = [1.0; LANES];
    for factors in factors.as_chunks_mut::<2>().0 {
        factors[1] = factor;
    }
    product(B::halves(all), B::Floats::load(&factors))
}

/// The scales and the offsets of blocks of 32 that begin with a half of either.
#[inline(always)]
fn scales_and_offsets<T: Layout, B: Bytes>(chunk: &[u8], runs: usize) -> B::Floats {
    let mut all = [0; LANES / 2];
    for (i, pair) in all.iter_mut().enumerate() {
        if i < runs {
            *pair = u32::from_le_bytes(*at(chunk, i * T::BYTES));
        }
    }
    B::halves(all)
}

/// The part of N bytes from `from` on of both blocks of 32 of a pair.
#[inline(always)]
fn of_pair<T: Layout, const N: usize>(
    chunk: &[u8],
    pair: usize,
    runs: usize,
    from: usize,
) -> [&[u8; N]; 2] {
    let first = at(chunk, 2 * pair * T::BYTES + from);
    match 2 * pair + 1 < runs {
        true => [first, at(chunk, (2 * pair + 1) * T::BYTES + from)],
        false => [first, &[0; N]],
    }
}

/// Numbers of four bits, then their fifth bits in four bytes before them.
#[inline(always)]
fn five_bits<T: Layout, B: Bytes>(chunk: &[u8], pair: usize, runs: usize, from: usize) -> B {
    let [a, b] = of_pair::<T, 16>(chunk, pair, runs, from + 4);
    let [low, high] = of_pair::<T, 4>(chunk, pair, runs, from);
    let (low, high) = (u32::from_le_bytes(*low), u32::from_le_bytes(*high));
    B::nibbles(a, b).with_fifth_bits(u64::from(high) << 32 | u64::from(low))
}

pub struct Q4_0;

impl Layout for Q4_0 {
    const ELEMENTS: usize = 32;
    const BYTES: usize = 18;

    #[inline(always)]
    fn scales<B: Bytes>(chunk: &[u8], runs: usize) -> B::Floats {
        scales_alone::<Self, B>(chunk, runs, -8.0)
    }

    #[inline(always)]
    fn numbers<B: Bytes>(chunk: &[u8], pair: usize, runs: usize) -> B {
        let [a, b] = of_pair::<Self, 16>(chunk, pair, runs, 2);
        B::nibbles(a, b)
    }
}

pub struct Q4_1;

impl Layout for Q4_1 {
    const ELEMENTS: usize = 32;
    const BYTES: usize = 20;

    #[inline(always)]
    fn scales<B: Bytes>(chunk: &[u8], runs: usize) -> B::Floats {
        scales_and_offsets::<Self, B>(chunk, runs)
    }

    #[inline(always)]
    fn numbers<B: Bytes>(chunk: &[u8], pair: usize, runs: usize) -> B {
        let [a, b] = of_pair::<Self, 16>(chunk, pair, runs, 4);
        B::nibbles(a, b)
    }
}

pub struct Q5_0;

impl Layout for Q5_0 {
    const ELEMENTS: usize = 32;
    const BYTES: usize = 22;

    #[inline(always)]
    fn scales<B: Bytes>(chunk: &[u8], runs: usize) -> B::Floats {
        scales_alone::<Self, B>(chunk, runs, -16.0)
    }

    #[inline(always)]
    fn numbers<B: Bytes>(chunk: &[u8], pair: usize, runs: usize) -> B {
        five_bits::<Self, B>(chunk, pair, runs, 2)
    }
}

pub struct Q5_1;

impl Layout for Q5_1 {
    const ELEMENTS: usize = 32;
    const BYTES: usize = 24;

    #[inline(always)]
    fn scales<B: Bytes>(chunk: &[u8], runs: usize) -> B::Floats {
        scales_and_offsets::<Self, B>(chunk, runs)
    }

    #[inline(always)]
    fn numbers<B: Bytes>(chunk: &[u8], pair: usize, runs: usize) -> B {
        five_bits::<Self, B>(chunk, pair, runs, 4)
    }
}

pub struct Q8_0;

impl Layout for Q8_0 {
    const ELEMENTS: usize = 32;
    const BYTES: usize = 34;
    const WIDE: bool = true;

    #[inline(always)]
    fn scales<B: Bytes>(chunk: &[u8], runs: usize) -> B::Floats {
        scales_alone::<Self, B>(chunk, runs, -128.0)
    }

    #[inline(always)]
    fn numbers<B: Bytes>(chunk: &[u8], pair: usize, runs: usize) -> B {
        let [a, b] = of_pair::<Self, 32>(chunk, pair, runs, 2);
        B::offset_by_128(a, b)
    }
}

/// Scales and minima of the eight runs of a block with two halves and six-bit integers, for Q4_K and Q5_K.
#[inline(always)]
fn scales_and_minima<B: Bytes>(block: &[u8]) -> B::Floats {
    // The minimum is subtracted: the sign bit of its factor.
    let factors = u32::from_le_bytes(*at(block, 0)) ^ 0x8000_0000;
    let all = six_bits(&block[4..16]);
    let mut pairs = [0; LANES];
    for i in 0..8 {
        pairs[2 * i] = all[i] as i8;
        pairs[2 * i + 1] = all[i + 8] as i8;
    }
    product(B::halves([factors; LANES / 2]), B::Floats::load_i8(&pairs))
}

pub struct Q4K;

impl Layout for Q4K {
    const ELEMENTS: usize = 256;
    const BYTES: usize = 144;

    #[inline(always)]
    fn scales<B: Bytes>(block: &[u8], _: usize) -> B::Floats {
        scales_and_minima::<B>(block)
    }

    #[inline(always)]
    fn numbers<B: Bytes>(block: &[u8], pair: usize, _: usize) -> B {
        B::nibbles_of_32(at(block, 16 + 32 * pair))
    }
}

pub struct Q5K;

impl Layout for Q5K {
    const ELEMENTS: usize = 256;
    const BYTES: usize = 176;

    #[inline(always)]
    fn scales<B: Bytes>(block: &[u8], _: usize) -> B::Floats {
        scales_and_minima::<B>(block)
    }

    #[inline(always)]
    fn numbers<B: Bytes>(block: &[u8], pair: usize, _: usize) -> B {
        let nibbles = B::nibbles_of_32(at(block, 48 + 32 * pair));
        nibbles.with_fifth_bits_of(at(block, 16), 2 * pair as u32)
    }
}

pub struct Q6K;

impl Layout for Q6K {
    const ELEMENTS: usize = 256;
    const BYTES: usize = 210;
    const HALVES: Option<f32> = Some(-32.0);

    #[inline(always)]
    fn scales<B: Bytes>(block: &[u8], _: usize) -> B::Floats {
        let d = B::halves([twice(half(block, 208)); LANES / 2]);
        product(
            d,
            B::Floats::load_i8(bytemuck::cast_ref(at::<LANES>(block, 192))),
        )
    }

    #[inline(always)]
    fn numbers<B: Bytes>(block: &[u8], pair: usize, _: usize) -> B {
        let side = pair as u32 % 2;
        let nibbles = B::nibbles_of_64(at(block, pair / 2 * 64), side);
        nibbles.with_two_bits_of(at(block, 128 + pair / 2 * 32), 4 * side)
    }
}
