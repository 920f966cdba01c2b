//! Weights in blocks of ggml's types, as a file holds them.

use super::block_type::BlockType;
use super::shared::SharedBytes;
use crate::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// A weight `[rows, columns]` in blocks of one of ggml's types. Products read the blocks as they are.
#[derive(Clone)]
pub struct BlockWeight {
    kind: BlockType,
    rows: usize,
    columns: usize,
    bytes: SharedBytes,
    order: Option<Arc<[u32]>>,
}

impl BlockWeight {
    /// A weight whose blocks lie row after row in `bytes`.
    ///
    /// # Errors
    /// Columns that are no whole number of blocks, and another number of bytes than the blocks have.
    pub fn new(kind: BlockType, shape: [usize; 2], bytes: SharedBytes) -> Result<Self> {
        let [rows, columns] = shape;
        if columns == 0 || !columns.is_multiple_of(kind.elements()) {
            let allowed = format!("a multiple of {}", kind.elements());
            return Err(Error::invalid(kind, "columns", columns, allowed));
        }
        let row_bytes = columns / kind.elements() * kind.bytes();
        let found = bytes.len();
        if rows.checked_mul(row_bytes) != Some(found) {
            let allowed = format!("{rows} rows of {row_bytes}");
            return Err(Error::invalid(kind, "bytes", found, allowed));
        }
        Ok(Self {
            kind,
            rows,
            columns,
            bytes,
            order: None,
        })
    }

    /// The weight whose row i is row `order[i]` of the bytes.
    ///
    /// # Errors
    /// An order that does not name every row once.
    pub fn with_order(mut self, order: Vec<u32>) -> Result<Self> {
        let mut seen = vec![false; self.rows];
        for &row in &order {
            match seen.get_mut(row as usize) {
                Some(seen) if !*seen => *seen = true,
                _ => break,
            }
        }
        if order.len() != self.rows || seen.contains(&false) {
            let allowed = format!("each of {} rows once", self.rows);
            let found = format!("{} rows, some of them missing", order.len());
            return Err(Error::invalid(self.kind, "order of rows", found, allowed));
        }
        self.order = Some(order.into());
        Ok(self)
    }

    /// The type of the blocks.
    pub fn kind(&self) -> BlockType {
        self.kind
    }

    /// `[rows, columns]`
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// Bytes of the blocks.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The first row with a scale or a minimum that is not finite, and that number; see
    /// [`BlockType::first_not_finite`].
    pub fn first_not_finite(&self) -> Option<(usize, f32)> {
        let blocks = self.blocks();
        let (block, value) = self.kind.first_not_finite(blocks.bytes)?;
        let stored = block / (self.columns / self.kind.elements());
        let row = match &self.order {
            Some(order) => order.iter().position(|&row| row as usize == stored),
            None => Some(stored),
        };
        Some((row.unwrap_or(stored), value))
    }

    pub(crate) fn blocks(&self) -> BlockRows<'_> {
        BlockRows {
            kind: self.kind,
            rows: self.rows,
            columns: self.columns,
            bytes: self.bytes.get(),
            order: self.order.as_deref(),
        }
    }
}

impl std::fmt::Debug for BlockWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            kind,
            rows,
            columns,
            ..
        } = self;
        write!(f, "BlockWeight[{rows}, {columns}] in {kind}")
    }
}

/// A view of the blocks for kernels.
#[derive(Clone, Copy)]
pub struct BlockRows<'a> {
    pub kind: BlockType,
    #[cfg_attr(
        not(feature = "flex"),
        expect(dead_code, reason = "for kernels of the CPU")
    )]
    pub rows: usize,
    pub columns: usize,
    bytes: &'a [u8],
    /// Row i of the weight is this row of the bytes.
    pub order: Option<&'a [u32]>,
}

impl<'a> BlockRows<'a> {
    pub fn row_bytes(&self) -> usize {
        self.columns / self.kind.elements() * self.kind.bytes()
    }

    /// Rows as they lie in the bytes, whatever the order.
    pub fn stored(&self, rows: Range<usize>) -> &'a [u8] {
        let width = self.row_bytes();
        &self.bytes[rows.start * width..rows.end * width]
    }

    /// Row `row` of the weight.
    pub fn row(&self, row: usize) -> &'a [u8] {
        let stored = self.order.map_or(row, |order| order[row] as usize);
        self.stored(stored..stored + 1)
    }
}
