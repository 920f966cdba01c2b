//! Strided f32 tensors whose last axis is dense, as slices.

use burn::backend::flex::FlexTensor;

/// `[batch, heads, tokens, dim]`
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    data: &'a [f32],
    start: usize,
    strides: [usize; 3],
    pub batch: usize,
    pub heads: usize,
    pub tokens: usize,
    pub dim: usize,
}

impl<'a> Heads<'a> {
    pub fn of(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let [batch, heads, tokens, dim] = layout.shape().dims::<4>();
        let stride = |axis: usize| layout.strides()[axis] as usize;
        Self {
            data: tensor.storage::<f32>(),
            start: layout.start_offset(),
            strides: [stride(0), stride(1), stride(2)],
            batch,
            heads,
            tokens,
            dim,
        }
    }

    /// The vector of one token in one head.
    #[inline(always)]
    pub fn row(&self, batch: usize, head: usize, token: usize) -> &'a [f32] {
        let [b, h, t] = self.strides;
        let at = self.start + batch * b + head * h + token * t;
        &self.data[at..at + self.dim]
    }
}

/// `[rows, columns]`
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    start: usize,
    stride: usize,
    pub rows: usize,
    pub columns: usize,
}

impl<'a> Matrix<'a> {
    pub fn of(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let [rows, columns] = layout.shape().dims::<2>();
        Self {
            data: tensor.storage::<f32>(),
            start: layout.start_offset(),
            stride: layout.strides()[0] as usize,
            rows,
            columns,
        }
    }

    #[inline(always)]
    pub fn row(&self, row: usize) -> &'a [f32] {
        let at = self.start + row * self.stride;
        &self.data[at..at + self.columns]
    }
}
