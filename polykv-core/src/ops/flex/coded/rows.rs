//! Decoding whole runs in vectors.

use crate::codes::Codes;
use crate::ops::coded::Format;
use crate::ops::flex::simd::{LANES, Vector, fma};

const RUN: usize = Codes::RUN;

/// [`Format::decode`] in vectors.
pub trait DecodeLanes {
    fn decode_lanes<V: Vector>(self, words: &[i32], vector: &mut [f32]);
}

impl DecodeLanes for Format {
    #[inline(always)]
    fn decode_lanes<V: Vector>(self, words: &[i32], vector: &mut [f32]) {
        let (codes, runs) = words.split_at(self.words() - self.runs());
        let bytes: &[i8] = bytemuck::cast_slice(codes);
        let (whole, rest) = vector.as_chunks_mut::<RUN>();
        let whole_runs = whole.len();
        match self.codes {
            Codes::Q8 => {
                let (codes, _) = bytes.as_chunks::<RUN>();
                for ((x, codes), word) in whole.iter_mut().zip(codes).zip(runs) {
                    let (least, step) = self.start_and_step(*word);
                    let (least, step) = (V::splat(least), V::splat(step));
                    let (x, codes) = (x.as_chunks_mut::<LANES>().0, codes.as_chunks::<LANES>().0);
                    for i in 0..RUN / LANES {
                        x[i] = V::load_i8(&codes[i]).mul_add(step, least).lanes();
                    }
                }
            }
            Codes::Q4 => {
                let (codes, _) = bytes.as_chunks::<LANES>();
                for ((x, codes), word) in whole.iter_mut().zip(codes).zip(runs) {
                    let (least, step) = self.start_and_step(*word);
                    let (least, step) = (V::splat(least), V::splat(step));
                    let (mut low, mut high) = ([0; LANES], [0; LANES]);
                    for i in 0..LANES {
                        low[i] = codes[i] & 15;
                        high[i] = ((codes[i] as u8) >> 4) as i8;
                    }
                    let x = x.as_chunks_mut::<LANES>().0;
                    x[0] = V::load_i8(&low).mul_add(step, least).lanes();
                    x[1] = V::load_i8(&high).mul_add(step, least).lanes();
                }
            }
        }
        if !rest.is_empty() {
            self.decode_run(words, whole_runs, rest, fma::<V>);
        }
    }
}
