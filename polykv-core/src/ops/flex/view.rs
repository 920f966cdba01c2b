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

/// Keys or values of the tokens of some heads.
pub trait Tokens: Copy + Sync {
    type Element: Element;

    fn row(&self, batch: usize, head: usize, token: usize) -> &[Self::Element];
    fn heads(&self) -> usize;
    /// Per head.
    fn tokens(&self) -> usize;
    fn dim(&self) -> usize;
}

impl<E: Element> Tokens for Heads<'_, E> {
    type Element = E;

    #[inline(always)]
    fn row(&self, batch: usize, head: usize, token: usize) -> &[E] {
        Heads::row(self, batch, head, token)
    }

    fn heads(&self) -> usize {
        self.heads
    }

    fn tokens(&self) -> usize {
        self.tokens
    }

    #[inline(always)]
    fn dim(&self) -> usize {
        self.dim
    }
}

/// Those of the first behind which those of the second stand.
impl<E: Element> Tokens for [Heads<'_, E>; 2] {
    type Element = E;

    #[inline(always)]
    fn row(&self, batch: usize, head: usize, token: usize) -> &[E] {
        let [before, own] = self;
        match token < before.tokens {
            true => before.row(batch, head, token),
            false => own.row(batch, head, token - before.tokens),
        }
    }

    fn heads(&self) -> usize {
        self[0].heads
    }

    fn tokens(&self) -> usize {
        self[0].tokens + self[1].tokens
    }

    #[inline(always)]
    fn dim(&self) -> usize {
        self[0].dim
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
