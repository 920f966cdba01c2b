//! Products of a few rows of activations with weights in blocks: integer dot products, block by block as they lie in the
//! file.

use super::activations::{Activations, Chunk};
use super::layout::{self, Layout, chunk_bytes};
use crate::ops::flex::simd::{Bytes, Dots, Level, Vector, dispatch_dots, fetch_ahead};
use crate::ops::weight::BlockType;

/// Calls a function over the [`Layout`] of a block type.
macro_rules! dispatch_layout {
    ($kind:expr, $name:ident($($arg:expr),* $(,)?)) => {
        match $kind {
            BlockType::Q4_0 => $name::<layout::Q4_0>($($arg),*),
            BlockType::Q4_1 => $name::<layout::Q4_1>($($arg),*),
            BlockType::Q5_0 => $name::<layout::Q5_0>($($arg),*),
            BlockType::Q5_1 => $name::<layout::Q5_1>($($arg),*),
            BlockType::Q8_0 => $name::<layout::Q8_0>($($arg),*),
            BlockType::Q4K => $name::<layout::Q4K>($($arg),*),
            BlockType::Q5K => $name::<layout::Q5K>($($arg),*),
            BlockType::Q6K => $name::<layout::Q6K>($($arg),*),
        }
    };
}
pub(super) use dispatch_layout;

/// `output[i][j] = x[j] · row i`, for rows of `row_bytes` bytes of blocks of one type, `output [rows, x.rows()]`.
pub fn multiply(
    level: Level,
    kind: BlockType,
    x: &Activations,
    rows: &[u8],
    row_bytes: usize,
    output: &mut [f32],
) {
    let level = Dots::up_to(level);
    dispatch_layout!(kind, at_level(level, output, x, rows, row_bytes));
}

fn at_level<T: Layout>(
    level: Dots,
    output: &mut [f32],
    x: &Activations,
    rows: &[u8],
    row_bytes: usize,
) {
    dispatch_dots!(level, fn block_rows<T: Layout>(
        output: &mut [f32], x: &Activations, rows: &[u8], row_bytes: usize,
    ));
}

#[inline(always)]
fn block_rows<B: Bytes, T: Layout>(
    output: &mut [f32],
    x: &Activations,
    rows: &[u8],
    row_bytes: usize,
) {
    let count = x.rows();
    for (row, output) in rows
        .chunks_exact(row_bytes)
        .zip(output.chunks_exact_mut(count))
    {
        let (fours, rest) = output.as_chunks_mut::<4>();
        for (i, four) in fours.iter_mut().enumerate() {
            let i = 4 * i;
            let x = [x.row(i), x.row(i + 1), x.row(i + 2), x.row(i + 3)];
            *four = dots::<B, T, 4>(row, x);
        }
        for (i, one) in rest.iter_mut().enumerate() {
            [*one] = dots::<B, T, 1>(row, [x.row(count / 4 * 4 + i)]);
        }
    }
}

/// The products of one row of the weight with several of activations.
#[inline(always)]
fn dots<B: Bytes, T: Layout, const N: usize>(row: &[u8], x: [&[Chunk]; N]) -> [f32; N] {
    let mut sums = [Sums::<B::Floats>::zero(); N];
    let chunks = row.chunks_exact(chunk_bytes::<T>());
    let rest = chunks.remainder();
    let whole = chunks.len();
    for (i, chunk) in chunks.enumerate() {
        fetch_ahead(chunk);
        add::<B, T, N>(&mut sums, chunk, x, i, 8);
    }
    if !rest.is_empty() {
        fetch_ahead(rest);
        // What is left of common widths is compiled as whole chunks are: of 576 columns 64, of 640 and 896 columns 128.
        match rest.len() / T::BYTES * (T::ELEMENTS / 32) {
            2 => add::<B, T, N>(&mut sums, rest, x, whole, 2),
            4 => add::<B, T, N>(&mut sums, rest, x, whole, 4),
            runs => add::<B, T, N>(&mut sums, rest, x, whole, runs),
        }
    }
    let mut totals = [0.0; N];
    for n in 0..N {
        totals[n] = sums[n].total();
    }
    totals
}

/// Adds the products of chunk `index` of a row, of which the first `runs` runs are there.
#[inline(always)]
fn add<B: Bytes, T: Layout, const N: usize>(
    sums: &mut [Sums<B::Floats>; N],
    chunk: &[u8],
    x: [&[Chunk]; N],
    index: usize,
    runs: usize,
) {
    let scales = T::scales::<B>(chunk, runs);
    let mut scaled = [scales; N];
    for n in 0..N {
        scaled[n] = sums[n].add_offsets::<T>(scales, &x[n][index]);
    }
    for pair in 0..runs.div_ceil(2) {
        let numbers = T::numbers::<B>(chunk, pair, runs);
        for n in 0..N {
            let x = &x[n][index];
            let products = if T::WIDE {
                numbers.dot::<true>(&x.high[pair], &x.low[pair])
            } else {
                numbers.dot::<false>(&x.high[pair], &x.low[pair])
            };
            let scale = match T::HALVES {
                Some(_) => B::spread_four(scaled[n], 4 * pair),
                None => B::spread_two(scaled[n], 4 * pair),
            };
            sums[n].products = products.mul_add(scale, sums[n].products);
        }
    }
}

/// The parts of a dot product.
#[derive(Clone, Copy)]
struct Sums<V> {
    products: V,
    /// What the offsets of the weight add, in the odd lanes; anything in the others.
    offsets: V,
}

impl<V: Vector> Sums<V> {
    #[inline(always)]
    fn zero() -> Self {
        Self {
            products: V::splat(0.0),
            offsets: V::splat(0.0),
        }
    }

    /// Returns the scales of the weight times those of the activations.
    #[inline(always)]
    fn add_offsets<T: Layout>(&mut self, scales: V, x: &Chunk) -> V {
        let zero = V::splat(0.0);
        let Some(factor) = T::HALVES else {
            let scaled = scales.mul_add(V::load(&x.scales_and_sums), zero);
            self.offsets = self.offsets.add(scaled);
            return scaled;
        };
        let offsets = scales.mul_add(V::splat(factor), zero);
        self.products = offsets.mul_add(V::load(&x.half_sums), self.products);
        scales.mul_add(V::load(&x.half_scales), zero)
    }

    #[inline(always)]
    fn total(self) -> f32 {
        const ODD: [f32; 16] = [
            0., 1., 0., 1., 0., 1., 0., 1., 0., 1., 0., 1., 0., 1., 0., 1.,
        ];
        self.offsets.mul_add(V::load(&ODD), self.products).sum()
    }
}
