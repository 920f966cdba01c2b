//! One vector in codes: the words of its codes, then a word per run. It holds the step between codes, an f32 with 11 bits of
//! mantissa, and in its last 12 bits the code of 0, a whole number with a sign. The numbers that a run is decoded to have the same
//! codes again.

use crate::codes::Codes;

const RUN: usize = Codes::RUN;

/// The most that 12 bits with a sign hold: how many steps a run may lie from 0.
const ZEROS: f32 = 2047.0;

/// How vectors of `dim` numbers lie in words.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    pub codes: Codes,
    pub dim: usize,
}

impl Format {
    pub fn words(self) -> usize {
        self.codes.words(self.dim)
    }

    pub fn runs(self) -> usize {
        self.dim.div_ceil(RUN)
    }

    /// Bytes of the codes of a whole run.
    pub fn run_bytes(self) -> usize {
        RUN * self.codes.bits() / 8
    }

    /// Codes a vector, which is less `mean` and divided by `scale` first if these are given.
    pub fn encode(self, vector: &[f32], channels: Option<[&[f32]; 2]>, words: &mut [i32]) {
        let (codes, runs) = words.split_at_mut(self.words() - self.runs());
        codes.fill(0);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(codes);
        let most = (1u32 << self.codes.bits()) - 1;
        for (run, word) in runs.iter_mut().enumerate() {
            let first = run * RUN;
            let count = RUN.min(self.dim - first);
            let mut x = [0.0; RUN];
            let x = &mut x[..count];
            x.copy_from_slice(&vector[first..first + count]);
            if let Some([mean, scale]) = channels {
                for (i, x) in x.iter_mut().enumerate() {
                    *x = (*x - mean[first + i]) / scale[first + i];
                }
            }
            let (mut least, mut largest) = (f32::MAX, f32::MIN);
            for &x in x.iter() {
                // A number that is not finite makes the whole run so, and is found where it is looked for.
                least = if x < least || x.is_nan() { x } else { least };
                largest = if x > largest || x.is_nan() {
                    x
                } else {
                    largest
                };
            }
            let step = step_of(least, largest, most);
            let inverse = match step {
                0.0 => 0.0,
                step => 1.0 / step,
            };
            // Casting clamps, and makes 0 of NaN.
            let zero = (-least * inverse).round().clamp(-ZEROS, ZEROS) as i32;
            *word = step.to_bits() as i32 | zero & 0xfff;
            let bytes = &mut bytes[run * self.run_bytes()..];
            for (i, x) in x.iter().enumerate() {
                let code = (x * inverse).round() as i32;
                let code = code.saturating_add(zero).clamp(0, most as i32) as u8;
                match self.codes {
                    // As a byte with a sign, which vectors are widened from.
                    Codes::Q8 => bytes[i] = code ^ 128,
                    Codes::Q4 => {
                        let half = count.div_ceil(2);
                        bytes[i % half] |= code << (i / half * 4);
                    }
                }
            }
        }
    }

    /// The numbers that [`Format::encode`] was given, rounded; less the mean and divided by the scale still.
    pub fn decode(self, words: &[i32], vector: &mut [f32]) {
        for (run, x) in vector.chunks_mut(RUN).enumerate() {
            self.decode_run(words, run, x, |step, code, least| step * code + least);
        }
    }

    /// Those of one run; `scaled` gives a code times the step plus what code 0 stands for.
    #[inline(always)]
    pub fn decode_run(
        self,
        words: &[i32],
        run: usize,
        x: &mut [f32],
        scaled: impl Fn(f32, f32, f32) -> f32,
    ) {
        let (codes, runs) = words.split_at(self.words() - self.runs());
        let (least, step) = self.start_and_step(runs[run]);
        let bytes: &[i8] = &bytemuck::cast_slice(codes)[run * self.run_bytes()..];
        let half = x.len().div_ceil(2);
        for (i, x) in x.iter_mut().enumerate() {
            let code = match self.codes {
                Codes::Q8 => bytes[i],
                Codes::Q4 => ((bytes[i % half] as u8) >> (i / half * 4) & 15) as i8,
            };
            *x = scaled(step, f32::from(code), least);
        }
    }

    /// The number that code 0 stands for, as a byte with a sign, and the step between codes.
    #[inline(always)]
    pub fn start_and_step(self, word: i32) -> (f32, f32) {
        let step = f32::from_bits(word as u32 & !0xfff);
        let zero = word << 20 >> 20;
        let signed = match self.codes {
            Codes::Q8 => 128 - zero,
            Codes::Q4 => -zero,
        };
        (signed as f32 * step, step)
    }
}

/// A step under which numbers from `least` to `largest` have codes from 0 to `most`, with 11 bits of mantissa.
fn step_of(least: f32, largest: f32, most: u32) -> f32 {
    let size = least.abs().max(largest.abs());
    let step = ((largest - least) / most as f32).max(size / ZEROS);
    match (largest - least).is_finite() && step.is_finite() {
        // Rounded down, so that the largest number always has the last code: then what is decoded has the same step again, but
        // for what it was rounded by since.
        true => f32::from_bits((step * (1.0 + 1.0 / 32768.0)).to_bits() & !0xfff),
        false => f32::from_bits(0x7fc0_0000),
    }
}
