//! The block types of ggml: how many numbers and bytes a block has, and what the numbers are in f32.

use half::f16;
use std::fmt;

/// A format of quantised numbers that GGUF files hold: blocks of 32 or 256 numbers along a row, each with its scales.
/// A number of a block is `scale * q` or `scale * q - minimum`, for an integer q of a few bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlockType {
    /// 4 bits with a scale per 32 numbers.
    Q4_0,
    /// 4 bits with a scale and a minimum per 32 numbers.
    Q4_1,
    /// 5 bits with a scale per 32 numbers.
    Q5_0,
    /// 5 bits with a scale and a minimum per 32 numbers.
    Q5_1,
    /// 8 bits with a scale per 32 numbers.
    Q8_0,
    /// 4 bits in blocks of 256 numbers, with 6-bit scales and minima per 32.
    Q4K,
    /// 5 bits in blocks of 256 numbers, with 6-bit scales and minima per 32.
    Q5K,
    /// 6 bits in blocks of 256 numbers, with 8-bit scales per 16.
    Q6K,
}

impl BlockType {
    /// All types.
    pub const ALL: [Self; 8] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// ggml's name, such as `Q4_1` or `Q4_K`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// The numbers of a block.
    pub fn elements(self) -> usize {
        match self {
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
            _ => 32,
        }
    }

    /// The bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// The words of 32 bits of a block on GPUs: its bytes, filled up.
    #[cfg(feature = "cube")]
    pub(crate) fn words(self) -> usize {
        self.bytes().div_ceil(4)
    }

    /// The numbers of whole blocks as f32, into a slice of their length: what is left over on either side stays as it is.
    #[inline(always)]
    pub fn decode(self, blocks: &[u8], output: &mut [f32]) {
        // One instance of the loop per type, so that each conversion is inlined.
        match self {
            Self::Q4_0 => each_block::<18, 32>(blocks, output, q4_0),
            Self::Q4_1 => each_block::<20, 32>(blocks, output, q4_1),
            Self::Q5_0 => each_block::<22, 32>(blocks, output, q5_0),
            Self::Q5_1 => each_block::<24, 32>(blocks, output, q5_1),
            Self::Q8_0 => each_block::<34, 32>(blocks, output, q8_0),
            Self::Q4K => each_block::<144, 256>(blocks, output, q4_k),
            Self::Q5K => each_block::<176, 256>(blocks, output, q5_k),
            Self::Q6K => each_block::<210, 256>(blocks, output, q6_k),
        }
    }

    /// The first block with a scale or a minimum that is not finite, and that number. All others of a block are integers:
    /// without one, all numbers are finite.
    pub fn first_not_finite(self, blocks: &[u8]) -> Option<(usize, f32)> {
        let at: &[usize] = match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => &[0],
            Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => &[0, 2],
            Self::Q6K => &[208],
        };
        let bad = |block: &[u8]| {
            at.iter()
                .map(|&at| half_at(block, at))
                .find(|x| !x.is_finite())
        };
        let mut blocks = blocks.chunks_exact(self.bytes()).enumerate();
        blocks.find_map(|(index, block)| Some((index, bad(block)?)))
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[inline(always)]
fn each_block<const BYTES: usize, const NUMBERS: usize>(
    blocks: &[u8],
    output: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; NUMBERS]),
) {
    let output = output.as_chunks_mut().0;
    for (block, output) in blocks.as_chunks().0.iter().zip(output) {
        decode(block, output);
    }
}

/// `d: f16, q: [i8; 32]`; a number is `d * q`.
#[inline(always)]
fn q8_0(block: &[u8; 34], output: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (x, q) in output.iter_mut().zip(&block[2..]) {
        *x = d * f32::from(*q as i8);
    }
}

/// `d: f16, q: [u8; 16]`; number i is `d * (low nibble of q[i] - 8)`, number i + 16 the same of the high nibble.
#[inline(always)]
fn q4_0(block: &[u8; 18], output: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let (low, high) = output.split_at_mut(16);
    for ((x, y), q) in low.iter_mut().zip(high).zip(&block[2..]) {
        *x = d * f32::from((q & 15) as i8 - 8);
        *y = d * f32::from((q >> 4) as i8 - 8);
    }
}

/// `d: f16, m: f16, q: [u8; 16]`; number i is `d * low nibble of q[i] + m`, number i + 16 the same of the high nibble.
#[inline(always)]
fn q4_1(block: &[u8; 20], output: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let (low, high) = output.split_at_mut(16);
    for ((x, y), q) in low.iter_mut().zip(high).zip(&block[4..]) {
        *x = d * f32::from(q & 15) + m;
        *y = d * f32::from(q >> 4) + m;
    }
}

/// `d: f16, h: u32, q: [u8; 16]`; as Q4_0, with bit i of h as the fifth bit of number i, less 16.
#[inline(always)]
fn q5_0(block: &[u8; 22], output: &mut [f32; 32]) {
    let d = half_at(block, 0);
    five_bits(&block[2..], output, |q| d * (f32::from(q) - 16.0));
}

/// `d: f16, m: f16, h: u32, q: [u8; 16]`; as Q4_1, with bit i of h as the fifth bit of number i.
#[inline(always)]
fn q5_1(block: &[u8; 24], output: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    five_bits(&block[4..], output, |q| d * f32::from(q) + m);
}

/// `h: u32, q: [u8; 16]`: low nibbles of q first, then its high ones, each with its bit of h above.
#[inline(always)]
fn five_bits(block: &[u8], output: &mut [f32; 32], number: impl Fn(u8) -> f32) {
    let (high_bits, nibbles) = block.split_at(4);
    let fifth = |i: usize| (high_bits[i / 8] >> (i % 8) & 1) << 4;
    for (i, q) in nibbles.iter().enumerate() {
        output[i] = number(q & 15 | fifth(i));
        output[i + 16] = number(q >> 4 | fifth(i + 16));
    }
}

/// `d: f16, dmin: f16, scales: [u8; 12], q: [u8; 128]`; 32 bytes of q hold two runs of 32 numbers, the low nibbles
/// first. A number is `d * scale * q - dmin * min`, scale and min being those of its run.
#[inline(always)]
fn q4_k(block: &[u8; 144], output: &mut [f32; 256]) {
    let runs = Runs::of(block);
    let pairs = output.as_chunks_mut::<64>().0.iter_mut();
    for (i, (output, q)) in pairs.zip(block[16..].as_chunks::<32>().0).enumerate() {
        let (low, high) = output.split_at_mut(32);
        for ((x, y), q) in low.iter_mut().zip(high).zip(q) {
            *x = runs.number(2 * i, q & 15);
            *y = runs.number(2 * i + 1, q >> 4);
        }
    }
}

/// `d: f16, dmin: f16, scales: [u8; 12], h: [u8; 32], q: [u8; 128]`; as Q4_K, with bit r of h[j] as the fifth bit of
/// number j of run r.
#[inline(always)]
fn q5_k(block: &[u8; 176], output: &mut [f32; 256]) {
    let runs = Runs::of(block);
    let high_bits = &block[16..48];
    let pairs = output.as_chunks_mut::<64>().0.iter_mut();
    for (i, (output, q)) in pairs.zip(block[48..].as_chunks::<32>().0).enumerate() {
        let (low, high) = output.split_at_mut(32);
        for (((x, y), q), h) in low.iter_mut().zip(high).zip(q).zip(high_bits) {
            let h = h >> (2 * i);
            *x = runs.number(2 * i, q & 15 | (h & 1) << 4);
            *y = runs.number(2 * i + 1, q >> 4 | (h >> 1 & 1) << 4);
        }
    }
}

/// `l: [u8; 128], h: [u8; 64], scales: [i8; 16], d: f16`; each half of the block holds four runs of 32 numbers with
/// six bits: four of l, two of h. A number is `d * scale * (q - 32)`, one scale for 16 numbers.
#[inline(always)]
fn q6_k(block: &[u8; 210], output: &mut [f32; 256]) {
    let d = half_at(block, 208);
    for (half, output) in output.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let low_bits = &block[half * 64..][..64];
        let high_bits = &block[128 + half * 32..][..32];
        let scales = &block[192 + half * 8..][..8];
        for (i, x) in output.iter_mut().enumerate() {
            let (run, j) = (i / 32, i % 32);
            // Runs 0 and 1 are the low nibbles of the 64 bytes, runs 2 and 3 the high ones.
            let low = low_bits[i % 64] >> (run / 2 * 4) & 15;
            let high = high_bits[j] >> (run * 2) & 3;
            let q = (low | high << 4) as i8 - 32;
            *x = d * f32::from(scales[i / 16] as i8) * f32::from(q);
        }
    }
}

/// Scales and minima of the eight runs of a Q4_K or Q5_K block, which begins with `d: f16, dmin: f16` and eight pairs of
/// six-bit scales and minima in 12 bytes.
struct Runs {
    scales: [f32; 8],
    minima: [f32; 8],
}

impl Runs {
    #[inline(always)]
    fn of(block: &[u8]) -> Self {
        let (d, dmin) = (half_at(block, 0), half_at(block, 2));
        let packed = six_bits(&block[4..16]);
        Self {
            scales: std::array::from_fn(|run| d * f32::from(packed[run])),
            minima: std::array::from_fn(|run| dmin * f32::from(packed[run + 8])),
        }
    }

    #[inline(always)]
    fn number(&self, run: usize, q: u8) -> f32 {
        self.scales[run] * f32::from(q) - self.minima[run]
    }
}

/// Eight scales, then eight minima, of six bits each in 12 bytes: bytes 0 to 3 hold the scales of runs 0 to 3 in their low
/// six bits, bytes 4 to 7 the minima. Runs 4 to 7 have their low four bits in bytes 8 to 11, scale below minimum, and
/// their high two above those of runs 0 to 3.
#[inline(always)]
pub fn six_bits(packed: &[u8]) -> [u8; 16] {
    let word = |at: usize| {
        u32::from_le_bytes([packed[at], packed[at + 1], packed[at + 2], packed[at + 3]])
    };
    // Four numbers at a time.
    let (scales, minima, rest) = (word(0), word(4), word(8));
    let words = [
        scales & 0x3f3f_3f3f,
        rest & 0x0f0f_0f0f | scales >> 2 & 0x3030_3030,
        minima & 0x3f3f_3f3f,
        rest >> 4 & 0x0f0f_0f0f | minima >> 2 & 0x3030_3030,
    ];
    let mut bytes = [0; 16];
    for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    bytes
}

/// The half-precision number at a byte offset.
#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}
