//! Choosing entries and moving them.

use super::PARALLEL_BYTES;
use super::simd::Element;
use super::view::Heads;
use crate::ops::kernels::Guard;
use rayon::prelude::*;

/// `scores`, `positions [heads * entries]` → the slots that stay, `[heads * budget]`, and the number of NaN per head; as
/// [`EntryOps::select_top`](crate::ops::kernels::EntryOps::select_top).
pub fn select(
    scores: &[f32],
    positions: &[i64],
    guard: &Guard,
    entries: usize,
    budget: usize,
) -> (Vec<i64>, Vec<f32>) {
    let heads = scores.len() / entries;
    let mut kept = vec![0; heads * budget];
    let mut nans = vec![0.0; heads];
    type Head<'a> = ((&'a mut [i64], &'a mut f32), (&'a [f32], &'a [i64]));
    let work = |((kept, nans), (scores, positions)): Head<'_>| {
        *nans = scores.iter().filter(|score| score.is_nan()).count() as f32;
        select_head(scores, positions, guard, kept);
    };
    match size_of_val(scores) < PARALLEL_BYTES {
        true => kept
            .chunks_exact_mut(budget)
            .zip(&mut nans)
            .zip(
                scores
                    .chunks_exact(entries)
                    .zip(positions.chunks_exact(entries)),
            )
            .for_each(work),
        false => kept
            .par_chunks_exact_mut(budget)
            .zip(&mut nans)
            .zip(
                scores
                    .par_chunks_exact(entries)
                    .zip(positions.par_chunks_exact(entries)),
            )
            .for_each(work),
    }
    (kept, nans)
}

/// Fills `kept` with the slots that stay.
fn select_head(scores: &[f32], positions: &[i64], guard: &Guard, kept: &mut [i64]) {
    let pairs = scores.iter().zip(positions);
    let keys: Vec<u64> = pairs
        .map(|(&score, &position)| key(score, position, guard))
        .collect();
    let mut order = keys.clone();
    let (_, &mut least, _) = order.select_nth_unstable(keys.len() - kept.len());
    let slots = (0..keys.len()).filter(|&slot| keys[slot] >= least);
    let mut in_order = true;
    let mut before = i64::MIN;
    for (kept, slot) in kept.iter_mut().zip(slots) {
        in_order &= before < positions[slot];
        before = positions[slot];
        *kept = slot as i64;
    }
    if !in_order {
        kept.sort_unstable_by_key(|&slot| positions[slot as usize]);
    }
}

/// Protected entries first, then by score as `f32::total_cmp`, then by position.
fn key(score: f32, position: i64, guard: &Guard) -> u64 {
    let bits = score.to_bits();
    let rank = match () {
        () if guard.contains(position) => u32::MAX,
        () if bits >> 31 == 1 => !bits,
        () => bits | 1 << 31,
    };
    u64::from(rank) << 32 | position as u64 & u64::from(u32::MAX)
}

/// The vectors at `slots [batch * kv_heads * count]`, in room for `capacity` of them; zeros follow.
pub fn gather<E: Element>(tensor: &Heads<'_, E>, slots: &[i64], capacity: usize) -> Vec<E> {
    let heads = tensor.batch * tensor.heads;
    let count = slots.len() / heads;
    let mut output = vec![E::zeroed(); heads * capacity * tensor.dim];
    let work = |(kv, output): (usize, &mut [E])| {
        let slots = &slots[kv * count..(kv + 1) * count];
        for (slot, output) in slots.iter().zip(output.chunks_exact_mut(tensor.dim)) {
            let row = tensor.row(kv / tensor.heads, kv % tensor.heads, *slot as usize);
            output.copy_from_slice(row);
        }
    };
    match size_of_val(&output[..]) < PARALLEL_BYTES {
        true => output
            .chunks_exact_mut(capacity * tensor.dim)
            .enumerate()
            .for_each(work),
        false => output
            .par_chunks_exact_mut(capacity * tensor.dim)
            .enumerate()
            .for_each(work),
    }
    output
}

/// The slot of the lowest score of each head, as
/// [`EntryOps::lowest`](crate::ops::kernels::EntryOps::lowest), and the number of NaN.
pub fn lowest(
    scores: &[f32],
    positions: &[i64],
    guard: &Guard,
    entries: usize,
) -> (Vec<i64>, Vec<f32>) {
    let heads = scores
        .chunks_exact(entries)
        .zip(positions.chunks_exact(entries));
    let of_head = |(scores, positions): (&[f32], &[i64])| {
        let (mut least, mut found, mut nans) = ((f32::INFINITY, i64::MAX), 0, 0);
        for (slot, (&score, &position)) in scores.iter().zip(positions).enumerate() {
            // Nearly all go here: this runs at every decoded token.
            if score > least.0 {
                continue;
            }
            nans += usize::from(score.is_nan());
            if !guard.contains(position) && (score, position) < least {
                (least, found) = ((score, position), slot);
            }
        }
        (found as i64, nans as f32)
    };
    heads.map(of_head).unzip()
}

/// `statistics [heads][n][width]` without the last entry, which moves to the slot `victims [heads]`.
pub fn move_last(statistics: &[f32], victims: &[i64], width: usize) -> Vec<f32> {
    let size = statistics.len() / victims.len();
    let mut moved = Vec::with_capacity(statistics.len() - victims.len() * width);
    for (statistics, &victim) in statistics.chunks_exact(size).zip(victims) {
        let (stay, last) = statistics.split_at(size - width);
        let at = moved.len() + victim as usize * width;
        moved.extend_from_slice(stay);
        // The last entry may be the one that goes.
        if at < moved.len() {
            moved[at..at + width].copy_from_slice(last);
        }
    }
    moved
}

/// `order [heads][n]` without `victims [heads]`; if `moved`, the last slot is called by the victim's name.
pub fn drop_from_order(order: &[i64], victims: &[i64], moved: bool) -> Vec<i64> {
    let entries = order.len() / victims.len();
    let mut kept = Vec::with_capacity(order.len() - victims.len());
    for (order, &victim) in order.chunks_exact(entries).zip(victims) {
        let first = kept.len();
        let rank = order.iter().position(|&slot| slot == victim);
        let (before, after) = order.split_at(rank.unwrap_or(entries - 1));
        kept.extend_from_slice(before);
        kept.extend_from_slice(&after[1..]);
        if moved {
            let last = entries as i64 - 1;
            let renamed = kept[first..].iter_mut().rev().find(|slot| **slot == last);
            renamed.into_iter().for_each(|slot| *slot = victim);
        }
    }
    kept
}
