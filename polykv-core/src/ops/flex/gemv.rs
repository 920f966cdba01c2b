//! GEMV: products of a few rows with weights in any storage format. They are bound by memory: each weight is read once
//! for all rows, in its own format, and widened on the way into the registers.

use super::PARALLEL_BYTES;
use super::blocks;
use super::blocks::activations::Activations;
use super::simd::{Element, Level, Vector, dispatch, dot, dots, fetch_ahead, grid};
use super::view::Matrix;
use crate::ops::weight::{Block, BlockRows, Blocks, Q8_BLOCK};
use burn::tensor::DType;
use rayon::prelude::*;

/// A weight `[rows, columns]` that vectors `x [n, columns]` are multiplied with.
pub trait Rows: Copy + Sync {
    /// The vectors, as they are multiplied.
    type Input<'x>: Sync;

    fn input(level: Level, x: &[f32], columns: usize) -> Self::Input<'_>;
    fn rows(&self) -> usize;
    fn columns(&self) -> usize;
    fn bytes(&self) -> usize;
    /// `output[i][j] = x[j] · row (first + i)`, of rows as they are stored.
    fn multiply(&self, level: Level, x: &Self::Input<'_>, first: usize, output: &mut [f32]);
    /// Which stored row each row is, if they are in another order.
    fn order(&self) -> Option<&[u32]> {
        None
    }
}

impl<E: Element> Rows for Matrix<'_, E> {
    type Input<'x> = &'x [f32];

    fn input(_: Level, x: &[f32], _: usize) -> &[f32] {
        x
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn bytes(&self) -> usize {
        self.rows * self.columns * size_of::<E>()
    }

    fn multiply(&self, level: Level, x: &&[f32], first: usize, output: &mut [f32]) {
        let (weight, x) = (self, *x);
        // Loads of 64 bytes stream f32 more slowly than those of 32: 26 against 34 GB/s on Zen 4.
        let level = match E::dtype() {
            DType::F32 if x.len() == weight.columns => level.min(Level::Avx2),
            _ => level,
        };
        dispatch!(level, fn rows<E: Element>(
            output: &mut [f32], x: &[f32], weight: &Matrix<'_, E>, first: usize,
        ));
    }
}

impl Rows for Blocks<'_> {
    type Input<'x> = &'x [f32];

    fn input(_: Level, x: &[f32], _: usize) -> &[f32] {
        x
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        Blocks::columns(self)
    }

    fn bytes(&self) -> usize {
        size_of_val(self.blocks)
    }

    fn multiply(&self, level: Level, x: &&[f32], first: usize, output: &mut [f32]) {
        let (weight, x) = (self, *x);
        dispatch!(level, fn block_rows(
            output: &mut [f32], x: &[f32], weight: &Blocks<'_>, first: usize,
        ));
    }
}

impl Rows for BlockRows<'_> {
    type Input<'x> = Activations;

    fn input(level: Level, x: &[f32], columns: usize) -> Activations {
        Activations::of(level, x, columns)
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }

    fn multiply(&self, level: Level, x: &Activations, first: usize, output: &mut [f32]) {
        let rows = self.stored(first..first + output.len() / x.rows().max(1));
        blocks::gemv::multiply(level, self.kind, x, rows, self.row_bytes(), output);
    }

    fn order(&self) -> Option<&[u32]> {
        self.order
    }
}

/// `x [n, columns]` times the transposes of the weights, side by side: `[n, Σ rows]`. One hand-over to the threads
/// serves all weights.
pub fn multiply<W: Rows>(level: Level, x: &[f32], weights: &[W]) -> Vec<f32> {
    let columns = weights.first().map_or(1, W::columns);
    let count = x.len() / columns;
    let width: usize = weights.iter().map(W::rows).sum();
    let bytes: usize = weights.iter().map(W::bytes).sum();
    let threads = match bytes < PARALLEL_BYTES {
        true => 1,
        false => rayon::current_num_threads(),
    };
    // Several parts per thread even out threads that are late; too many would cost more than they even out.
    let parts = threads * if bytes > 8 << 20 { 8 } else { 2 };
    let step = width.div_ceil(parts).max(1);
    let mut output = vec![0.0; count * width];
    let mut tasks = Vec::with_capacity(parts + weights.len());
    let mut rest = &mut output[..];
    for weight in weights {
        for first in (0..weight.rows()).step_by(step) {
            let rows = step.min(weight.rows() - first);
            let (part, more) = rest.split_at_mut(rows * count);
            tasks.push((weight, first, part));
            rest = more;
        }
    }
    let x = W::input(level, x, columns);
    let run = |(weight, first, part): (&W, usize, &mut [f32])| {
        weight.multiply(level, &x, first, part);
    };
    match threads {
        1 => tasks.into_iter().for_each(run),
        _ => tasks.into_par_iter().for_each(run),
    }
    let mut rest = &mut output[..];
    for weight in weights {
        let (part, more) = rest.split_at_mut(weight.rows() * count);
        if let Some(order) = weight.order() {
            reorder(part, count, order);
        }
        rest = more;
    }
    match count {
        1 => output,
        _ => transposed(&output, count),
    }
}

/// Puts rows of `count` numbers into an order: row i is what row `order[i]` was.
fn reorder(rows: &mut [f32], count: usize, order: &[u32]) {
    let stored = rows.to_vec();
    for (row, &from) in rows.chunks_exact_mut(count).zip(order) {
        row.copy_from_slice(&stored[from as usize * count..][..count]);
    }
}

/// `[…][count]` as `[count][…]`
fn transposed(columns: &[f32], count: usize) -> Vec<f32> {
    let mut rows = vec![0.0; columns.len()];
    let width = columns.len() / count;
    for (i, row) in rows.chunks_exact_mut(width.max(1)).enumerate() {
        for (x, column) in row.iter_mut().zip(columns.chunks_exact(count)) {
            *x = column[i];
        }
    }
    rows
}

#[inline(always)]
fn rows<V: Vector, E: Element>(
    output: &mut [f32],
    x: &[f32],
    weight: &Matrix<'_, E>,
    first: usize,
) {
    let columns = weight.columns;
    let count = x.len() / columns;
    let (mut at, mut output) = (first, output);
    // So many sums fit into the registers of AVX-512 only.
    while V::WIDE && count >= EIGHT && output.len() >= PAIR * count {
        let (own, rest) = output.split_at_mut(PAIR * count);
        pair::<V, E>(own, x, [weight.row(at), weight.row(at + 1)]);
        (at, output) = (at + PAIR, rest);
    }
    for (i, output) in output.chunks_exact_mut(count).enumerate() {
        let row = weight.row(at + i);
        fetch_ahead(row);
        few::<V, E>(output, x, row);
    }
}

/// Rows of weights and vectors that meet each other at a time.
const PAIR: usize = 2;
const EIGHT: usize = 8;

/// The products of two rows of weights with vectors, `output [2][vectors]`: what is read of either serves several.
#[inline(always)]
fn pair<V: Vector, E: Element>(output: &mut [f32], x: &[f32], rows: [&[E]; PAIR]) {
    let columns = rows[0].len();
    let (first, second) = output.split_at_mut(output.len() / PAIR);
    let (eights, rest) = first.as_chunks_mut::<EIGHT>();
    let (more_eights, more_rest) = second.as_chunks_mut::<EIGHT>();
    let (x, x_rest) = x.split_at(EIGHT * eights.len() * columns);
    let x = x.chunks_exact(EIGHT * columns);
    for ((a, b), x) in eights.iter_mut().zip(more_eights).zip(x) {
        let mut vectors = [x; EIGHT];
        for (vector, x) in vectors.iter_mut().zip(x.chunks_exact(columns)) {
            *vector = x;
        }
        [*a, *b] = grid::<V, E, PAIR, EIGHT>(rows, vectors);
    }
    few::<V, E>(rest, x_rest, rows[0]);
    few::<V, E>(more_rest, x_rest, rows[1]);
}

/// The products of one row of weights with vectors.
#[inline(always)]
fn few<V: Vector, E: Element>(output: &mut [f32], x: &[f32], row: &[E]) {
    let columns = row.len();
    let (fours, rest) = output.as_chunks_mut::<4>();
    let (x, x_rest) = x.split_at(4 * fours.len() * columns);
    for (four, x) in fours.iter_mut().zip(x.chunks_exact(4 * columns)) {
        let (x, y) = x.split_at(2 * columns);
        let ((a, b), (c, d)) = (x.split_at(columns), y.split_at(columns));
        *four = dots::<V, E, f32>(row, [a, b, c, d]);
    }
    for (y, x) in rest.iter_mut().zip(x_rest.chunks_exact(columns)) {
        *y = dot::<V, E>(x, row);
    }
}

#[inline(always)]
fn block_rows<V: Vector>(output: &mut [f32], x: &[f32], weight: &Blocks<'_>, first: usize) {
    let x = x.as_chunks::<Q8_BLOCK>().0;
    let count = x.len() / weight.width;
    for (i, output) in output.chunks_exact_mut(count).enumerate() {
        let row = weight.row(first + i);
        fetch_ahead(row);
        for (y, x) in output.iter_mut().zip(x.chunks_exact(weight.width)) {
            *y = block_dot::<V>(x, row);
        }
    }
}

#[inline(always)]
fn block_dot<V: Vector>(x: &[[f32; Q8_BLOCK]], row: &[Block]) -> f32 {
    // Two sums hide the latency of the additions.
    let [mut a, mut b] = [V::splat(0.0); 2];
    let (x_pairs, x_rest) = x.as_chunks::<2>();
    let (pairs, rest) = row.as_chunks::<2>();
    for (x, blocks) in x_pairs.iter().zip(pairs) {
        a = add_block(&x[0], &blocks[0], a);
        b = add_block(&x[1], &blocks[1], b);
    }
    for (x, block) in x_rest.iter().zip(rest) {
        a = add_block(x, block, a);
    }
    a.add(b).sum()
}

/// `sums + scale · (x · values)`, the two halves of a block in the same lanes.
#[inline(always)]
fn add_block<V: Vector>(x: &[f32; Q8_BLOCK], block: &Block, sums: V) -> V {
    let x = x.as_chunks().0;
    let values = block.values.as_chunks().0;
    let products = V::load_i8(&values[0]).mul_add(V::load(&x[0]), V::splat(0.0));
    let products = V::load_i8(&values[1]).mul_add(V::load(&x[1]), products);
    products.mul_add(V::splat(block.scale), sums)
}
