//! ggml's K formats: blocks of 256 numbers with scales of their own for each 16 or 32 of them.

use half::f16;

/// `d: f16, dmin: f16, scales: [u8; 12], q: [u8; 128]`; 32 bytes of q hold two runs of 32 numbers, the low nibbles
/// first. A number is `d * scale * q - dmin * min`, scale and min being those of its run.
pub(super) fn q4_k_block(raw: &[u8], out: &mut [f32]) {
    let scales = Scales::new(raw);
    for (i, (out, q)) in out
        .chunks_exact_mut(64)
        .zip(raw[16..].chunks_exact(32))
        .enumerate()
    {
        let (low, high) = out.split_at_mut(32);
        let (low_scale, high_scale) = (scales.run(2 * i), scales.run(2 * i + 1));
        for ((x, y), q) in low.iter_mut().zip(high).zip(q) {
            *x = low_scale.number(q & 15);
            *y = high_scale.number(q >> 4);
        }
    }
}

/// `d: f16, dmin: f16, scales: [u8; 12], h: [u8; 32], q: [u8; 128]`; as Q4_K, with bit r of h[j] as the fifth bit of
/// number j of run r.
pub(super) fn q5_k_block(raw: &[u8], out: &mut [f32]) {
    let scales = Scales::new(raw);
    let (high_bits, q) = raw[16..].split_at(32);
    for (i, (out, q)) in out.chunks_exact_mut(64).zip(q.chunks_exact(32)).enumerate() {
        let (low, high) = out.split_at_mut(32);
        let (low_scale, high_scale) = (scales.run(2 * i), scales.run(2 * i + 1));
        for (((x, y), q), h) in low.iter_mut().zip(high).zip(q).zip(high_bits) {
            let h = h >> (2 * i);
            *x = low_scale.number(q & 15 | (h & 1) << 4);
            *y = high_scale.number(q >> 4 | (h >> 1 & 1) << 4);
        }
    }
}

/// `l: [u8; 128], h: [u8; 64], scales: [i8; 16], d: f16`; each half of the block holds four runs of 32 numbers with
/// six bits: four of l, two of h. A number is `d * scale * (q - 32)`, one scale for 16 numbers.
pub(super) fn q6_k_block(raw: &[u8], out: &mut [f32]) {
    let (low_bits, rest) = raw.split_at(128);
    let (high_bits, rest) = rest.split_at(64);
    let d = half_at(rest, 16);
    for (half, out) in out.chunks_exact_mut(128).enumerate() {
        let low_bits = &low_bits[half * 64..][..64];
        let high_bits = &high_bits[half * 32..][..32];
        for (i, x) in out.iter_mut().enumerate() {
            let (run, j) = (i / 32, i % 32);
            // Runs 0 and 1 are the low nibbles of the 64 bytes, runs 2 and 3 the high ones.
            let low = low_bits[i % 64] >> (run / 2 * 4) & 15;
            let high = high_bits[j] >> (run * 2) & 3;
            let q = (low | high << 4) as i8 - 32;
            let scale = rest[half * 8 + i / 16] as i8;
            *x = d * f32::from(scale) * f32::from(q);
        }
    }
}

/// The start of a Q4_K or Q5_K block: `d: f16, dmin: f16` and eight pairs of six-bit scales and minima in 12 bytes.
struct Scales<'a> {
    d: f32,
    dmin: f32,
    packed: &'a [u8],
}

/// Scale and minimum of a run of 32 numbers.
struct Run {
    scale: f32,
    min: f32,
}

impl<'a> Scales<'a> {
    fn new(raw: &'a [u8]) -> Self {
        Self {
            d: half_at(raw, 0),
            dmin: half_at(raw, 2),
            packed: &raw[4..16],
        }
    }

    /// Bytes 0 to 3 hold the scales of runs 0 to 3 in their low six bits, bytes 4 to 7 the minima. Runs 4 to 7 have
    /// their low four bits in bytes 8 to 11, scale below minimum, and their high two above those of runs 0 to 3.
    fn run(&self, r: usize) -> Run {
        let p = self.packed;
        let (scale, min) = match r {
            0..4 => (p[r] & 63, p[r + 4] & 63),
            _ => (
                p[r + 4] & 15 | p[r - 4] >> 6 << 4,
                p[r + 4] >> 4 | p[r] >> 6 << 4,
            ),
        };
        Run {
            scale: self.d * f32::from(scale),
            min: self.dmin * f32::from(min),
        }
    }
}

impl Run {
    fn number(&self, q: u8) -> f32 {
        self.scale * f32::from(q) - self.min
    }
}

/// The half-precision number at a byte offset.
pub(super) fn half_at(raw: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([raw[at], raw[at + 1]]).to_f32()
}
