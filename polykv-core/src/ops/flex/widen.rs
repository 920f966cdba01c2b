//! Elements of half precision as f32.

use super::CHUNK;
use super::simd::{Element, LANES, Level, Vector, dispatch};
use rayon::prelude::*;

/// Elements as f32.
pub fn widen<E: Element>(level: Level, elements: &[E]) -> Vec<f32> {
    let mut output = vec![0.0; elements.len()];
    let block = |(output, elements): (&mut [f32], &[E])| {
        dispatch!(level, fn widened<E: Element>(output: &mut [f32], elements: &[E]));
    };
    output
        .par_chunks_mut(CHUNK)
        .zip(elements.par_chunks(CHUNK))
        .for_each(block);
    output
}

#[inline(always)]
fn widened<V: Vector, E: Element>(output: &mut [f32], elements: &[E]) {
    let (chunks, rest) = output.as_chunks_mut::<LANES>();
    let (from, from_rest) = elements.as_chunks::<LANES>();
    for (output, elements) in chunks.iter_mut().zip(from) {
        *output = E::load::<V>(elements).lanes();
    }
    for (output, element) in rest.iter_mut().zip(from_rest) {
        *output = element.widen();
    }
}
