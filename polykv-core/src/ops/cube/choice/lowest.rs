//! The entry with the lowest score.

use super::{UNITS, is_nan_bits, rank};
use cubecl::prelude::*;

/// One cube per sequence and KV head.
#[cube(launch_unchecked)]
pub fn lowest_kernel<I: Int>(
    scores: &Tensor<f32>,
    positions: &Tensor<I>,
    spans: &[i32],
    before: ComptimeOption<&[f32]>,
    victim: &mut Tensor<I>,
    nans: &mut Tensor<f32>,
    n: usize,
    sinks: i32,
    recent: i32,
    span_count: usize,
    #[define(I)] _dtype: ElemType,
) {
    find_lowest::<I>(
        scores, 1, 0, false, positions, spans, before, victim, nans, n, sinks, recent, span_count,
    );
}

/// The slot of the lowest of a head's `n` scores: means over `rows` rows that are `apart` apart, of the head or of all heads, or
/// positions if there are no rows. `victim` gets it as well, and `nans` how many are NaN beside those `before`.
/// All units of the cube of a head call it together.
#[cube]
pub fn find_lowest<I: Int>(
    scores: &Tensor<f32>,
    rows: usize,
    apart: usize,
    #[comptime] of_heads: bool,
    positions: &Tensor<I>,
    spans: &[i32],
    before: ComptimeOption<&[f32]>,
    victim: &mut Tensor<I>,
    nans: &mut Tensor<f32>,
    n: usize,
    sinks: i32,
    recent: i32,
    span_count: usize,
) -> usize {
    let head = CUBE_POS_X as usize;
    let unit = UNIT_POS_X as usize;
    let kv_heads = scores.shape(1);
    let (batch, kv_head) = (head / kv_heads, head % kv_heads);
    let mut from = batch * scores.stride(0);
    if !of_heads {
        from += kv_head * scores.stride(1);
    }
    let start = batch * positions.stride(0) + kv_head * positions.stride(1);
    let mut least = 0xFFFF_FFFFu32;
    let mut place = 0xFFFF_FFFFu32;
    let mut slot = 0u32;
    let mut count = 0u32;
    let mut j = unit;
    while j < n {
        let position = i32::cast_from(positions[start + j]);
        let mut score = f32::cast_from(position);
        if rows > 0 {
            score = scores[from + j];
            for row in 1..rows {
                score += scores[from + row * apart + j];
            }
            score /= f32::cast_from(rows as u32);
        }
        let key = rank(score, position, spans, sinks, recent, span_count);
        let at = u32::cast_from(position);
        if key < least || key == least && at < place {
            least = key;
            place = at;
            slot = j as u32;
        }
        if is_nan_bits(score) {
            count += 1u32;
        }
        j += UNITS;
    }
    let mut found = Shared::<[u32]>::new_slice(2usize);
    lowest_of_units(least, place, slot, count, &mut found);
    if unit == 0 {
        victim[head] = I::cast_from(found[0]);
        let earlier: ComptimeOption<f32> = before.map(|all| all[head]);
        nans[head] = f32::cast_from(found[1]) + earlier.unwrap_or(0.0f32);
    }
    found[0] as usize
}

/// The slot of the lowest rank that the units of a cube have found, of equal ranks of the lowest place, and the sum of their
/// counts: `found [2]`. All units call it together.
#[cube]
pub fn lowest_of_units(least: u32, place: u32, slot: u32, count: u32, found: &mut Shared<[u32]>) {
    let unit = UNIT_POS_X as usize;
    let mut ranks = Shared::<[u32]>::new_slice(UNITS);
    let mut places = Shared::<[u32]>::new_slice(UNITS);
    let mut slots = Shared::<[u32]>::new_slice(UNITS);
    let mut counts = Shared::<[u32]>::new_slice(UNITS);
    ranks[unit] = least;
    places[unit] = place;
    slots[unit] = slot;
    counts[unit] = count;
    sync_cube();
    if unit == 0 {
        let mut least = least;
        let mut place = place;
        let mut slot = slot;
        let mut count = count;
        for u in 1..UNITS {
            if ranks[u] < least || ranks[u] == least && places[u] < place {
                least = ranks[u];
                place = places[u];
                slot = slots[u];
            }
            count += counts[u];
        }
        found[0] = slot;
        found[1] = count;
    }
    sync_cube();
}
