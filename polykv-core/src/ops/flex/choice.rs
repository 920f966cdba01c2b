//! Choosing entries.

use super::PARALLEL_BYTES;
use super::bridge::{elements, integer_tensor, integers, tensor};
use crate::ops::kernels::{ChoiceOps, Counts};
use crate::ops::protect::Guard;
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

impl ChoiceOps for Flex {
    fn select_top(
        scores: FlexTensor,
        positions: FlexTensor,
        guard: Guard,
        _seen: usize,
        budget: usize,
    ) -> (FlexTensor, FlexTensor) {
        let (scores, positions) = (scores.to_contiguous(), positions.to_contiguous());
        let [batch, heads, entries] = scores.layout().shape().dims::<3>();
        let (values, places) = (elements::<f32>(&scores), integers(&positions));
        let (kept, nans) = select(values, &places, &guard, entries, budget);
        let kept = integer_tensor(kept, [batch, heads, budget], positions.dtype());
        (kept, tensor(nans, [batch, heads]))
    }

    fn lowest(
        scores: FlexTensor,
        positions: FlexTensor,
        guard: Guard,
        before: Counts<Self>,
    ) -> (FlexTensor, FlexTensor) {
        let (scores, positions) = (scores.to_contiguous(), positions.to_contiguous());
        let [batch, heads, entries] = scores.layout().shape().dims::<3>();
        let (values, places) = (elements::<f32>(&scores), integers(&positions));
        let (slots, mut nans) = lowest(values, &places, &guard, entries);
        if let Counts::Known { counts } = before {
            let counts = counts.to_contiguous();
            let both = nans.iter_mut().zip(elements::<f32>(&counts));
            both.for_each(|(count, before)| *count += before);
        }
        let slots = integer_tensor(slots, [batch, heads, 1], positions.dtype());
        (slots, tensor(nans, [batch, heads]))
    }
}

/// `scores`, `positions [heads * entries]` → the slots that stay, `[heads * budget]`, and the number of NaN per head.
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

/// `scores`, `positions [heads * entries]` → the slot of the lowest score of each head, and the number of NaN.
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
