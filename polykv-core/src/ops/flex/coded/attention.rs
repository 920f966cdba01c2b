//! Attention of one token per sequence over entries in codes: a tile of vectors is decoded for all queries of a group.

use super::Words;
use super::rows::DecodeLanes;
use crate::ops::coded::Format;
use crate::ops::flex::mask::Mask;
use crate::ops::flex::simd::{LANES, Vector, dot, dots, fetch_ahead, fma};
use crate::ops::flex::token::{Part, Partial};
use crate::ops::flex::view::Heads;

/// Vectors that are decoded at a time: few enough to stay in the first-level cache.
const TILE: usize = 32;

/// Keys and values in codes, and the scale of the keys' channels.
#[derive(Clone, Copy)]
pub struct Entries<'a> {
    pub format: Format,
    pub keys: Words<'a>,
    pub values: Words<'a>,
    /// Mean and scale, `[batch * kv_heads][dim]`.
    pub channels: Option<[&'a [f32]; 2]>,
    pub exact: Option<Exact<'a>>,
}

/// Entries that are kept in floats as well, `count` of each head.
#[derive(Clone, Copy)]
pub struct Exact<'a> {
    /// `[batch * kv_heads][count][dim]`
    pub keys: &'a [f32],
    pub values: &'a [f32],
    /// `[batch * kv_heads][count]`, −1 for none.
    pub slots: &'a [i64],
    pub count: usize,
}

impl<'a> Exact<'a> {
    /// Those of a head in the `len` slots from `first` on: which of its rows, and how far from the first slot.
    #[inline(always)]
    fn within(self, head: usize, first: usize, len: usize) -> impl Iterator<Item = (usize, usize)> {
        let range = head * self.count..(head + 1) * self.count;
        let slots = self.slots[range.clone()].iter().zip(range);
        slots.filter_map(move |(&slot, row)| {
            let place = usize::try_from(slot).ok()?.checked_sub(first)?;
            (place < len).then_some((row, place))
        })
    }
}

#[inline(always)]
pub fn part_attention<V: Vector>(
    at: Part,
    q: &Heads<'_>,
    entries: Entries<'_>,
    mask: &Mask,
) -> Partial {
    let (n, dim) = (at.count, q.dim);
    let head = at.batch * entries.keys.heads + at.kv_head;
    let mut part = Partial::new(at, dim);
    let mut tile = vec![0.0; TILE * dim];
    scores::<V>(at, q, entries, &mut tile, &mut part.row);
    part.exponentiate::<V>(at, head, mask);
    for start in (0..n).step_by(TILE) {
        let count = TILE.min(n - start);
        let tile = &mut tile[..count * dim];
        decode::<V>(at, entries.format, entries.values, start, tile);
        if let Some(exact) = entries.exact {
            for (row, place) in exact.within(head, at.first + start, count) {
                let value = &exact.values[row * dim..(row + 1) * dim];
                tile[place * dim..(place + 1) * dim].copy_from_slice(value);
            }
        }
        for g in 0..at.group {
            let weights = &part.row[g * n + start..][..count];
            add_weighted::<V>(weights, tile, &mut part.output[g * dim..(g + 1) * dim]);
        }
    }
    part
}

/// The vectors from `start` of a part on.
#[inline(always)]
fn decode<V: Vector>(at: Part, format: Format, words: Words<'_>, start: usize, tile: &mut [f32]) {
    for (i, vector) in tile.chunks_exact_mut(format.dim).enumerate() {
        let row = words.row(at.batch, at.kv_head, at.first + start + i);
        fetch_ahead(row);
        format.decode_lanes::<V>(row, vector);
    }
}

/// Scaled products of the group's queries with the part's keys, `row [group][count]`.
#[inline(always)]
fn scores<V: Vector>(
    at: Part,
    q: &Heads<'_>,
    entries: Entries<'_>,
    tile: &mut [f32],
    row: &mut [f32],
) {
    let (n, dim) = (at.count, q.dim);
    let scale = 1.0 / (dim as f32).sqrt();
    let head = at.batch * entries.keys.heads + at.kv_head;
    let of_head = head * dim;
    let mut queries = vec![0.0; at.group * dim];
    // What a query has of the mean, which all keys share.
    let mut shared = vec![0.0; at.group];
    for (g, query) in queries.chunks_exact_mut(dim).enumerate() {
        let row = q.row(at.batch, at.kv_head * at.group + g, 0);
        for (x, y) in query.iter_mut().zip(row) {
            *x = y * scale;
        }
        if let Some([means, scales]) = entries.channels {
            shared[g] = dot::<V, f32>(query, &means[of_head..of_head + dim]);
            for (x, scale) in query.iter_mut().zip(&scales[of_head..of_head + dim]) {
                *x *= scale;
            }
        }
    }
    for start in (0..n).step_by(TILE) {
        let count = TILE.min(n - start);
        let tile = &mut tile[..count * dim];
        decode::<V>(at, entries.format, entries.keys, start, tile);
        if let Some(exact) = entries.exact {
            for (row, place) in exact.within(head, at.first + start, count) {
                let key = &exact.keys[row * dim..(row + 1) * dim];
                let tile = &mut tile[place * dim..(place + 1) * dim];
                match entries.channels {
                    None => tile.copy_from_slice(key),
                    Some([means, scales]) => {
                        let (means, scales) = (&means[of_head..], &scales[of_head..]);
                        for i in 0..dim {
                            tile[i] = (key[i] - means[i]) / scales[i];
                        }
                    }
                }
            }
        }
        for g in 0..at.group {
            let query = &queries[g * dim..(g + 1) * dim];
            let row = &mut row[g * n + start..][..count];
            let (fours, rest) = row.as_chunks_mut::<4>();
            for (four, keys) in fours.iter_mut().zip(tile.chunks_exact(4 * dim)) {
                let key = |i: usize| &keys[i * dim..(i + 1) * dim];
                let products = dots::<V, f32, f32>(query, [key(0), key(1), key(2), key(3)]);
                for i in 0..4 {
                    four[i] = products[i] + shared[g];
                }
            }
            let done = count - rest.len();
            for (x, key) in rest.iter_mut().zip(tile[done * dim..].chunks_exact(dim)) {
                *x = dot::<V, f32>(query, key) + shared[g];
            }
        }
    }
}

/// Adds the vectors of a tile, weighted, to `output [dim]`.
#[inline(always)]
fn add_weighted<V: Vector>(weights: &[f32], tile: &[f32], output: &mut [f32]) {
    let dim = output.len();
    let wide = 4 * LANES;
    let mut first = 0;
    while first + wide <= dim {
        add_lanes::<V, 4>(weights, tile, dim, first, output);
        first += wide;
    }
    while first + LANES <= dim {
        add_lanes::<V, 1>(weights, tile, dim, first, output);
        first += LANES;
    }
    for (weight, value) in weights.iter().zip(tile.chunks_exact(dim)) {
        for d in first..dim {
            output[d] = fma::<V>(*weight, value[d], output[d]);
        }
    }
}

#[inline(always)]
fn add_lanes<V: Vector, const P: usize>(
    weights: &[f32],
    tile: &[f32],
    dim: usize,
    first: usize,
    output: &mut [f32],
) {
    let output = &mut output[first..first + P * LANES].as_chunks_mut::<LANES>().0;
    let mut sums = [V::splat(0.0); P];
    for part in 0..P {
        sums[part] = V::load(&output[part]);
    }
    for (weight, value) in weights.iter().zip(tile.chunks_exact(dim)) {
        let weight = V::splat(*weight);
        let value = value[first..first + P * LANES].as_chunks::<LANES>().0;
        for part in 0..P {
            sums[part] = V::load(&value[part]).mul_add(weight, sums[part]);
        }
    }
    for part in 0..P {
        output[part] = sums[part].lanes();
    }
}
