//! Choosing entries and moving them.

use super::PARALLEL_BYTES;
use super::simd::Element;
use super::view::Heads;
use crate::ops::kernels::Guard;
use rayon::prelude::*;

/// `scores`, `positions [heads * entries]` → the slots that stay, `[heads * budget]`, and the number of NaN per head; as
/// [`KvOps::select_top`](crate::ops::kernels::KvOps::select_top).
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
