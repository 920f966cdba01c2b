//! One vector in codes, as [`Format`](crate::ops::coded::Format) has it. Codes are numbered as they lie in words: of 4 bits the
//! two of a byte are half a run apart.

use crate::codes::Codes;
use cubecl::prelude::*;

/// Bits of a byte that make a number with a sign one that is 128 more.
const SIGNS: u32 = 0x8080_8080;

/// The most that a code for 0 may be.
const ZEROS: f32 = 2047.0;

/// How many words the codes of a vector fill; a word for each run follows.
pub fn code_words(codes: Codes, dim: usize) -> usize {
    codes.words(dim) - dim.div_ceil(Codes::RUN)
}

/// Codes of a word.
pub fn per_word(codes: Codes) -> usize {
    32 / codes.bits()
}

/// Which number of a vector a code stands for; `dim` or more if none.
#[cube]
pub fn number_of(code: usize, #[comptime] codes: Codes, #[comptime] dim: usize) -> usize {
    let mut number = dim.runtime();
    if comptime!(codes == Codes::Q8) {
        number = code;
    } else {
        let byte = code / 2;
        let (run, place) = (byte / 16, byte % 16);
        let mut half = 16usize;
        if run == comptime!(dim / Codes::RUN) {
            half = comptime!((dim % Codes::RUN).div_ceil(2)).runtime();
        }
        if place < half {
            number = run * comptime!(Codes::RUN) + place + code % 2 * half;
        }
    }
    number
}

/// A word of codes without signs.
#[cube]
fn unsigned(word: u32, #[comptime] codes: Codes) -> u32 {
    let mut result = word;
    if comptime!(codes == Codes::Q8) {
        result = word ^ SIGNS;
    }
    result
}

/// Code `i` of a word without signs, less the code of 0.
#[cube]
fn steps(word: u32, zero: i32, i: usize, #[comptime] codes: Codes) -> f32 {
    let bits = comptime!(codes.bits() as u32);
    let code = (word >> (u32::cast_from(i) * bits)) & comptime!((1u32 << codes.bits()) - 1);
    f32::cast_from(i32::cast_from(code) - zero)
}

/// The step between codes and the code of 0, from the word of a run.
#[cube]
fn step_and_zero(word: u32) -> (f32, i32) {
    let low = i32::cast_from(word & 0xfffu32);
    let mut zero = low;
    if low >= 2048i32 {
        zero = low - 4096i32;
    }
    (f32::reinterpret(word & 0xffff_f000u32), zero)
}

/// The numbers of word `w` of the vector whose words begin at `at`, less the mean and divided by the scale still.
#[cube]
pub fn decode_word(
    words: &Tensor<u32>,
    at: usize,
    w: usize,
    x: &mut Array<f32>,
    #[comptime] codes: Codes,
    #[comptime] dim: usize,
) {
    let per = comptime!(per_word(codes));
    let runs = at + comptime!(code_words(codes, dim));
    let (step, zero) = step_and_zero(words[runs + w / comptime!(Codes::RUN / per)]);
    let word = unsigned(words[at + w], codes);
    #[unroll]
    for c in 0..per {
        x[c] = steps(word, zero, c, codes) * step;
    }
}

/// Rounded to a whole number, halves away from 0.
#[cube]
fn rounded(x: f32) -> i32 {
    let whole = i32::cast_from((x.abs() + 0.5f32).floor());
    let mut result = whole;
    if x < 0.0f32 {
        result = -whole;
    }
    result
}

/// Codes one run of the vector that begins at `start`, into the words of a vector that begin at `at`; relative to the channels
/// from `channel` on.
#[cube]
pub fn encode_run<E: Float>(
    vectors: &Tensor<E>,
    start: usize,
    mean: &[f32],
    scale: &[f32],
    channel: usize,
    words: &mut Tensor<u32>,
    at: usize,
    run: usize,
    #[comptime] relative: bool,
    #[comptime] codes: Codes,
    #[comptime] dim: usize,
) {
    let per = comptime!(per_word(codes));
    let in_vector = comptime!(code_words(codes, dim));
    let in_run = comptime!(Codes::RUN / per);
    let most = comptime!(((1u32 << codes.bits()) - 1) as f32);
    let from = run * comptime!(Codes::RUN);
    let end = min(from + comptime!(Codes::RUN), dim);
    let mut x = Array::<f32>::new(comptime!(Codes::RUN));
    let mut least = f32::new(3.4e38);
    let mut largest = f32::new(-3.4e38);
    let mut bits = 0u32;
    for i in from..end {
        let mut number = f32::cast_from(vectors[start + i]);
        if comptime!(relative) {
            number = (number - mean[channel + i]) / scale[channel + i];
        }
        x[i - from] = number;
        least = min(least, number);
        largest = max(largest, number);
        bits = max(bits, u32::reinterpret(number) & 0x7fff_ffffu32);
    }
    let size = max(least.abs(), largest.abs());
    let step = max((largest - least) / most, size / f32::new(ZEROS));
    // Rounded down to 11 bits of mantissa, see the format.
    let mut word = u32::reinterpret(step * (1.0f32 + 1.0f32 / 32768.0f32)) & 0xffff_f000u32;
    // A number that is not finite makes the whole run so, and is found where it is looked for. By its bits: WGSL may take for
    // granted that there are none.
    let wrong = bits >= 0x7f80_0000u32 || (word & 0x7f80_0000u32) == 0x7f80_0000u32;
    let mut inverse = 0.0f32;
    let mut zero = 0i32;
    if wrong {
        word = 0x7fc0_0000u32;
    } else if word != 0u32 {
        inverse = 1.0f32 / f32::reinterpret(word);
        let limit = f32::new(ZEROS);
        zero = rounded(max(min(-least * inverse, limit), -limit));
    }
    words[at + in_vector + run] = word | (u32::reinterpret(zero) & 0xfffu32);
    for w in 0..in_run {
        let place = run * in_run + w;
        if place < in_vector {
            let mut coded = 0u32;
            for i in 0..per {
                let number = number_of(place * per + i, codes, dim);
                if number < dim {
                    let mut code = 0i32;
                    if !wrong {
                        code = rounded(x[number - from] * inverse) + zero;
                    }
                    let code = u32::cast_from(max(min(code, i32::cast_from(most)), 0i32));
                    let bits = comptime!(codes.bits() as u32);
                    let mut signed = code;
                    if comptime!(codes == Codes::Q8) {
                        signed = code ^ 128u32;
                    }
                    coded = coded | (signed << (u32::cast_from(i) * bits));
                }
            }
            words[at + place] = coded;
        }
    }
}
