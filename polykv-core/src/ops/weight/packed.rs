//! 8-bit weights in the layout of the CPU kernels: blocks along the rows, each with its scale before its values, so that a
//! row is one stream.

use super::q8::Q8_BLOCK;
use crate::machine;
use crate::ops::flex::bridge::quantized;
use burn::tensor::Tensor;
use std::sync::Arc;

/// A weight `[rows, columns]` in 8 bits.
#[derive(Clone)]
pub struct Q8Weight {
    /// Row after row.
    blocks: Arc<Vec<Block>>,
    rows: usize,
}

/// Values of a row that share a scale; a value is `scale · values[i]`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Block {
    pub scale: f32,
    pub values: [i8; Q8_BLOCK],
}

impl Q8Weight {
    /// Of a tensor of burn's on the CPU in the format of [`q8_scheme`](super::q8::q8_scheme), which has values and scales
    /// apart: products with it would copy all scales.
    pub(crate) fn from_burn(weight: Tensor<2>) -> Self {
        let [rows, columns] = weight.dims();
        let weight = quantized(weight);
        let values = weight.tensor().storage::<i8>().as_chunks::<Q8_BLOCK>().0;
        let blocks = values.iter().zip(weight.scales());
        let blocks: Vec<Block> = blocks
            .map(|(&values, &scale)| Block { scale, values })
            .collect();
        debug_assert_eq!(blocks.len() * Q8_BLOCK, rows * columns);
        machine::use_huge_pages(&blocks);
        Self {
            blocks: Arc::new(blocks),
            rows,
        }
    }

    /// `[rows, columns]`
    pub fn shape(&self) -> [usize; 2] {
        let blocks = self.blocks();
        [blocks.rows, blocks.columns()]
    }

    /// Bytes of values and scales.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.blocks[..])
    }

    pub(crate) fn blocks(&self) -> Blocks<'_> {
        Blocks {
            blocks: &self.blocks,
            rows: self.rows,
            width: self.blocks.len() / self.rows.max(1),
        }
    }
}

impl std::fmt::Debug for Q8Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [rows, columns] = self.shape();
        write!(f, "Q8Weight[{rows}, {columns}]")
    }
}

/// A view of the blocks for kernels.
#[derive(Clone, Copy)]
pub struct Blocks<'a> {
    pub blocks: &'a [Block],
    pub rows: usize,
    /// Blocks per row.
    pub width: usize,
}

impl<'a> Blocks<'a> {
    pub fn columns(&self) -> usize {
        self.width * Q8_BLOCK
    }

    #[inline(always)]
    pub fn row(&self, row: usize) -> &'a [Block] {
        &self.blocks[row * self.width..][..self.width]
    }
}
