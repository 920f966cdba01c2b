//! The numbers of a block, eight at a time: in all types a word of the block holds the low bits of four numbers that follow
//! each other and of four others a fixed distance behind them, or two words of Q8_0 hold four each.
//!
//! A type is written as in [`BlockType::decode`], the layout of words is that of
//! [`GpuBlocks`](crate::ops::weight::GpuBlocks). A number is `scale · q + offset` for an integer q that is not negative.

use crate::ops::weight::BlockType;
use cubecl::prelude::*;

/// Numbers at a time.
pub const EIGHT: usize = 8;

/// Bits of a byte that make a signed number one that is 128 more.
const SIGNS: u32 = 0x8080_8080;

/// How many fours the second four is behind the first. That many parts of a block lie side by side, then as many second
/// fours follow.
pub fn fours_apart(kind: BlockType) -> usize {
    match kind {
        BlockType::Q8_0 => 1,
        BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q5_0 | BlockType::Q5_1 => 4,
        BlockType::Q4K | BlockType::Q5K => 8,
        BlockType::Q6K => 16,
    }
}

/// The eight numbers of `part` of a row: four, and the four behind them.
#[cube]
pub fn eight<N: Size>(
    blocks: &Tensor<u32>,
    row: usize,
    part: usize,
    #[comptime] kind: BlockType,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let parts = comptime!(kind.elements() / EIGHT);
    let block = row * blocks.stride(0) + part / parts * comptime!(kind.words());
    let part = part % parts;
    let (q, q_behind) = integers::<N>(blocks, block, part, kind);
    let (scale, offset, scale_behind, offset_behind) = scales(blocks, block, part, kind);
    let four = Vector::<f32, N>::cast_from(q) * Vector::new(scale) + Vector::new(offset);
    let behind = Vector::<f32, N>::cast_from(q_behind) * Vector::new(scale_behind)
        + Vector::new(offset_behind);
    (four, behind)
}

/// The integers of a part of the block that begins at a word.
#[cube]
fn integers<N: Size>(
    blocks: &Tensor<u32>,
    block: usize,
    part: usize,
    #[comptime] kind: BlockType,
) -> (Vector<u32, N>, Vector<u32, N>) {
    match kind {
        BlockType::Q4_0 | BlockType::Q4_1 => {
            let q = blocks[block + 1 + part];
            (
                fields::<N>(q, 8u32, 15u32),
                fields::<N>(q >> 4, 8u32, 15u32),
            )
        }
        BlockType::Q5_0 | BlockType::Q5_1 => {
            let q = blocks[block + 2 + part];
            // Bit i belongs to number i of the block.
            let h = blocks[block + 1] >> u32::cast_from(part * 4);
            (
                joined::<N>(fields::<N>(q, 8u32, 15u32), fields::<N>(h, 1u32, 1u32)),
                joined::<N>(
                    fields::<N>(q >> 4, 8u32, 15u32),
                    fields::<N>(h >> 16, 1u32, 1u32),
                ),
            )
        }
        BlockType::Q8_0 => {
            let q = blocks[block + 1 + 2 * part] ^ SIGNS;
            let behind = blocks[block + 2 + 2 * part] ^ SIGNS;
            (
                fields::<N>(q, 8u32, 255u32),
                fields::<N>(behind, 8u32, 255u32),
            )
        }
        BlockType::Q4K => {
            let q = blocks[block + 4 + part];
            (
                fields::<N>(q, 8u32, 15u32),
                fields::<N>(q >> 4, 8u32, 15u32),
            )
        }
        BlockType::Q5K => {
            let q = blocks[block + 12 + part];
            // A bit for each run of 32 numbers, two of which share the bytes of q.
            let h = blocks[block + 4 + part % 8] >> u32::cast_from(part / 8 * 2);
            (
                joined::<N>(fields::<N>(q, 8u32, 15u32), fields::<N>(h, 8u32, 1u32)),
                joined::<N>(
                    fields::<N>(q >> 4, 8u32, 15u32),
                    fields::<N>(h >> 1, 8u32, 1u32),
                ),
            )
        }
        BlockType::Q6K => {
            let q = blocks[block + part];
            // Half a block has four runs, of which a byte of h has two bits each.
            let (half, four) = (part / 16, part % 16);
            let h = blocks[block + 32 + half * 8 + four % 8] >> u32::cast_from(four / 8 * 2);
            (
                joined::<N>(fields::<N>(q, 8u32, 15u32), fields::<N>(h, 8u32, 3u32)),
                joined::<N>(
                    fields::<N>(q >> 4, 8u32, 15u32),
                    fields::<N>(h >> 4, 8u32, 3u32),
                ),
            )
        }
    }
}

/// Scale and offset of a part's first four numbers, then those of the four behind them.
#[cube]
fn scales(
    blocks: &Tensor<u32>,
    block: usize,
    part: usize,
    #[comptime] kind: BlockType,
) -> (f32, f32, f32, f32) {
    match kind {
        BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 => {
            let d = half(blocks[block]);
            let offset = d * comptime!(-zero(kind));
            (d, offset, d, offset)
        }
        BlockType::Q4_1 | BlockType::Q5_1 => {
            let word = blocks[block];
            let (d, m) = (half(word), half(word >> 16));
            (d, m, d, m)
        }
        BlockType::Q4K | BlockType::Q5K => {
            let word = blocks[block];
            let (d, dmin) = (half(word), half(word >> 16));
            // Six bits each, four runs to a word: see `six_bits`.
            let (low_scales, low_minima) = (blocks[block + 1], blocks[block + 2]);
            let rest = blocks[block + 3];
            let run = part / 8 * 2;
            let early = run < 4;
            let scales = select(
                early,
                low_scales,
                rest & 0x0f0f_0f0f | low_scales >> 2 & 0x3030_3030,
            );
            let minima = select(
                early,
                low_minima,
                rest >> 4 & 0x0f0f_0f0f | low_minima >> 2 & 0x3030_3030,
            );
            let shift = u32::cast_from(run % 4 * 8);
            (
                d * six_bits(scales >> shift),
                -dmin * six_bits(minima >> shift),
                d * six_bits(scales >> (shift + 8)),
                -dmin * six_bits(minima >> (shift + 8)),
            )
        }
        BlockType::Q6K => {
            let d = half(blocks[block + 52]);
            // Four scales of the runs' halves that come first, then four of those behind them.
            let at = block + 48 + part / 16 * 2;
            let shift = u32::cast_from(part % 16 / 4 * 8);
            let scale = d * signed(blocks[at] >> shift);
            let behind = d * signed(blocks[at + 1] >> shift);
            (scale, -32.0f32 * scale, behind, -32.0f32 * behind)
        }
    }
}

/// What stands for zero in types without a minimum.
fn zero(kind: BlockType) -> f32 {
    match kind {
        BlockType::Q4_0 => 8.0,
        BlockType::Q5_0 => 16.0,
        _ => 128.0,
    }
}

/// Four numbers of a word's bits, `step` bits from each other.
#[cube]
fn fields<N: Size>(word: u32, #[comptime] step: u32, #[comptime] mask: u32) -> Vector<u32, N> {
    let mut fields = Vector::<u32, N>::empty();
    #[unroll]
    for i in 0..4u32 {
        fields.insert(comptime!(i as usize), word >> comptime!(i * step) & mask);
    }
    fields
}

/// Four low bits and what stands above them.
#[cube]
fn joined<N: Size>(low: Vector<u32, N>, high: Vector<u32, N>) -> Vector<u32, N> {
    low | (high * Vector::new(16u32))
}

#[cube]
fn six_bits(word: u32) -> f32 {
    f32::cast_from(word & 63)
}

/// The signed number in the lowest byte.
#[cube]
fn signed(word: u32) -> f32 {
    f32::cast_from(word & 255 ^ 128) - 128.0f32
}

/// The half-precision number in the lower half of a word, by arithmetic that devices without the type have.
#[cube]
fn half(word: u32) -> f32 {
    let magnitude = word & 0x7fff;
    // Bits move to their places in an f32; the exponent's bias is 112 more, and 112 more again where all of its bits are
    // one.
    let bias = select(magnitude < 0x7c00, 0x3800_0000u32, 0x7000_0000u32);
    let normal = f32::reinterpret((magnitude << 13) + bias);
    let subnormal = f32::cast_from(magnitude) * 5.960_464_5e-8f32;
    let value = select(magnitude < 0x400, subnormal, normal);
    select(word & 0x8000 == 0, value, -value)
}
