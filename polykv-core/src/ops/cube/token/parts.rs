//! What the parts of a token's attention have in common, of entries in floats and in codes: exponentials, and how parts are joined.

use super::CHUNK;
use crate::ops::cube::HIDDEN;
use crate::ops::cube::ranges::{first_of, held_of, wanted_of};
use cubecl::prelude::*;

/// Makes exponentials relative to the largest of a cube's `scores [part][CHUNK]`, of which a unit has seen `best [part]` at the
/// most: of `count` keys, of which the first `wanted` also in rows of `n` keys from `first` of `row` on. `stats` get the largest and the sum from `place` on. All
/// units call it together.
#[cube]
pub fn exponentiate(
    best: &Array<f32>,
    scores: &mut Shared<[f32]>,
    most: &mut Shared<[f32]>,
    gathered: &mut Shared<[f32]>,
    row: &mut Tensor<f32>,
    first: usize,
    stats: &mut Tensor<f32>,
    place: usize,
    n: usize,
    count: usize,
    wanted: usize,
    #[comptime] part: usize,
    #[comptime] units: usize,
) {
    let unit = UNIT_POS_X as usize;
    #[unroll]
    for g in 0..part {
        gathered[g * units + unit] = best[g];
    }
    sync_cube();
    if unit < part {
        let mut largest = f32::new(HIDDEN);
        for u in 0..units {
            largest = max(largest, gathered[unit * units + u]);
        }
        most[unit] = largest;
    }
    sync_cube();
    let mut totals = Array::<f32>::new(part);
    #[unroll]
    for g in 0..part {
        totals[g] = 0.0f32;
    }
    let mut j = unit;
    while j < count {
        #[unroll]
        for g in 0..part {
            let p = (scores[g * CHUNK + j] - most[g]).exp();
            scores[g * CHUNK + j] = p;
            if j < wanted {
                row[first + g * n + j] = p;
            }
            totals[g] += p;
        }
        j += units;
    }
    #[unroll]
    for g in 0..part {
        gathered[g * units + unit] = totals[g];
    }
    sync_cube();
    if unit < part {
        let mut total = 0.0f32;
        for u in 0..units {
            total += gathered[unit * units + u];
        }
        stats[(place + unit) * 2] = most[unit];
        stats[(place + unit) * 2 + 1] = total;
    }
}

/// How many of its `n` keys a head sees, 1 to n.
#[cube]
pub fn visible<I: Int>(lengths: ComptimeOption<&[I]>, head: usize, n: usize) -> usize {
    let length: ComptimeOption<usize> =
        lengths.map(|all| usize::cast_from(max(all[head], I::cast_from(1u32))));
    min(length.unwrap_or(n), n)
}

/// One cube per query head: puts its splits together, up to the one where its length ends, and scales its row to
/// probabilities.
#[cube(launch_unchecked)]
pub fn join_kernel<I: Int, T: Int, N: Size>(
    parts: &Tensor<Vector<f32, N>>,
    stats: &Tensor<f32>,
    lengths: ComptimeOption<&[I]>,
    table: ComptimeOption<&[T]>,
    row: &mut Tensor<f32>,
    output: &mut Tensor<Vector<f32, N>>,
    splits: usize,
    n: usize,
    table_steps: usize,
    capacity: usize,
    #[comptime] group: usize,
    #[comptime] part: usize,
    #[comptime] words: usize,
    #[comptime] units: usize,
    #[define(I, T)] _dtypes: [ElemType; 2],
) {
    let unit = UNIT_POS_X as usize;
    let head = CUBE_POS_X as usize;
    let place = head / part * splits * part + head % part;
    let ragged = lengths.is_some();
    let ranged = table.is_some();
    let kv = head / group;
    let seen = visible(lengths, kv, n);
    let seen = held_of(table, kv, table_steps, capacity, seen);
    let mut row_start = head * n;
    let mut wanted = seen;
    if comptime!(ranged) {
        wanted = wanted_of(table, kv, seen);
        row_start = head % group * capacity + first_of(table, kv, capacity);
    }
    let splits = (seen + CHUNK - 1) / CHUNK;
    let mut most = f32::new(HIDDEN);
    for s in 0..splits {
        most = max(most, stats[(place + s * part) * 2]);
    }
    let mut total = 0.0f32;
    for s in 0..splits {
        let at = (place + s * part) * 2;
        total += stats[at + 1] * (stats[at] - most).exp();
    }
    let mut w = unit;
    while w < words {
        let mut sum = Vector::<f32, N>::new(0.0f32);
        for s in 0..splits {
            let at = place + s * part;
            let weight = (stats[at * 2] - most).exp() / total;
            sum += parts[at * words + w] * Vector::new(weight);
        }
        output[head * words + w] = sum;
        w += units;
    }
    let mut j = unit;
    while j < wanted {
        let weight = (stats[(place + j / CHUNK * part) * 2] - most).exp() / total;
        row[row_start + j] = row[row_start + j] * weight;
        j += units;
    }
    if comptime!(ragged) {
        while j < n {
            row[head * n + j] = 0.0f32;
            j += units;
        }
    }
}
