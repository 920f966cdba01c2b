//! A model of the tiles of AMX, for processors without them, after the description of TDPBF16PS in Intel's manual.

use super::{Case, assert_close};
use crate::ops::flex::blocks::gemm::{Hardware, Tiles, multiply_rightly};
use crate::ops::flex::mask::Mask;
use crate::ops::flex::prefill_tiles;
use crate::ops::flex::view::Heads;
use burn::tensor::bf16;

pub struct Model {
    pairs: usize,
    sums: [[[f32; 16]; 16]; 4],
    weights: Vec<[[u16; 2]; 16]>,
}

impl Tiles for Model {
    fn are_there() -> bool {
        true
    }

    unsafe fn configured(pairs: usize) -> Self {
        assert!((1..=16).contains(&pairs), "{pairs} pairs do not fit");
        Self {
            pairs,
            sums: [[[f32::NAN; 16]; 16]; 4],
            weights: Vec::new(),
        }
    }

    unsafe fn zero(&mut self) {
        self.sums = Default::default();
    }

    unsafe fn load_weights(&mut self, from: *const u8, stride: usize) {
        // SAFETY: as many rows of 64 bytes are there, says the caller.
        let row = |pair: usize| unsafe { from.add(pair * stride).cast::<[[u16; 2]; 16]>().read() };
        self.weights = (0..self.pairs).map(row).collect();
    }

    unsafe fn add_products(&mut self, count: usize, from: *const u8, stride: usize) {
        for row in 0..16 * count {
            let sums = &mut self.sums[row / 16][row % 16];
            for (pair, weights) in self.weights.iter().enumerate() {
                // SAFETY: as many rows of as many pairs are there, says the caller.
                let x = unsafe { from.add(row * stride).cast::<[u16; 2]>().add(pair).read() };
                for (sum, w) in sums.iter_mut().zip(weights) {
                    for (x, w) in x.into_iter().zip(*w) {
                        *sum += bf16::from_bits(x).to_f32() * bf16::from_bits(w).to_f32();
                    }
                }
            }
        }
    }

    unsafe fn store(&self, count: usize, to: *mut u8, stride: usize) {
        for row in 0..16 * count {
            let sums = self.sums[row / 16][row % 16];
            // SAFETY: there is room for as many rows, says the caller.
            unsafe { to.add(row * stride).cast::<[f32; 16]>().write(sums) };
        }
    }
}

/// What is asked of a processor before its tiles are used.
#[test]
fn the_model_multiplies_rightly() {
    // SAFETY: a model needs no instructions.
    assert!(unsafe { multiply_rightly::<Model>() });
}

/// A prompt's attention by a model of the tiles, and by tiles if the processor has them.
pub fn attend(case: &Case, heads: [&Heads<'_>; 3], mask: &Mask, wanted: &[f32]) {
    let what = format!("dim {}, cap {:?}", case.dim, mask.softcap);
    let found = [
        (
            "the model",
            prefill_tiles::attend::<Model>(heads, [false; 2], mask),
        ),
        (
            "the processor",
            prefill_tiles::attend::<Hardware>(heads, [false; 2], mask),
        ),
    ];
    for (by, found) in found {
        // Heads that tiles do not divide, few queries, and processors without AVX-512 take another way.
        if let Some((found, _)) = found {
            assert_close(&found, wanted, 1e-4, &format!("by {by}, {what}"));
        }
    }
}
