//! Strided tensors whose last axis is dense, as slices.

use super::simd::Element;
use burn::backend::flex::FlexTensor;
use burn::tensor::Element as Number;
use bytemuck::Pod;
use std::borrow::Cow;

/// `[batch, heads, tokens, dim]`
#[derive(Clone, Copy)]
pub struct Heads<'a, E = f32> {
    data: &'a [E],
    start: usize,
    strides: [usize; 3],
    pub batch: usize,
    pub heads: usize,
    pub tokens: usize,
    pub dim: usize,
}

impl<'a, E: Number + Pod> Heads<'a, E> {
    pub fn of(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let [batch, heads, tokens, dim] = layout.shape().dims::<4>();
        let stride = |axis: usize| layout.strides()[axis] as usize;
        Self {
            data: tensor.storage::<E>(),
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
    pub fn row(&self, batch: usize, head: usize, token: usize) -> &'a [E] {
        let [b, h, t] = self.strides;
        let at = self.start + batch * b + head * h + token * t;
        &self.data[at..at + self.dim]
    }
}

impl<'a> Heads<'a> {
    /// One token per sequence, whose heads of `dim` numbers follow each other.
    pub fn of_tokens(data: &'a [f32], batch: usize, dim: usize) -> Self {
        let heads = data.len() / (batch * dim);
        Self {
            data,
            start: 0,
            strides: [heads * dim, dim, dim],
            batch,
            heads,
            tokens: 1,
            dim,
        }
    }

    /// All vectors of a head, one after the other.
    pub fn dense(&self, batch: usize, head: usize) -> Cow<'a, [f32]> {
        if self.tokens == 0 || self.strides[2] == self.dim {
            let start = self.start + batch * self.strides[0] + head * self.strides[1];
            return self.data[start..start + self.tokens * self.dim].into();
        }
        let rows = (0..self.tokens).map(|token| self.row(batch, head, token));
        rows.collect::<Vec<_>>().concat().into()
    }
}

/// `[rows, columns]`
#[derive(Clone, Copy)]
pub struct Matrix<'a, E> {
    data: &'a [E],
    start: usize,
    stride: usize,
    pub rows: usize,
    pub columns: usize,
}

impl<'a, E: Element> Matrix<'a, E> {
    pub fn of(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let [rows, columns] = layout.shape().dims::<2>();
        Self {
            data: tensor.storage::<E>(),
            start: layout.start_offset(),
            stride: layout.strides()[0] as usize,
            rows,
            columns,
        }
    }

    #[inline(always)]
    pub fn row(&self, row: usize) -> &'a [E] {
        let at = self.start + row * self.stride;
        &self.data[at..at + self.columns]
    }
}
