//! Merging evicted entries into those that stay.

use super::bridge::{elements, existing, integers, tensor, widened};
use super::view::Heads;
use crate::ops::kernels::MergeOps;
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

impl MergeOps for Flex {
    fn merge_into(
        vectors: FlexTensor,
        evicted: FlexTensor,
        kept: FlexTensor,
        places: FlexTensor,
        parts: FlexTensor,
    ) -> FlexTensor {
        let (vectors, parts) = (widened(vectors), parts.to_contiguous());
        let [evicted, kept, places] = [evicted, kept, places].map(|slots| slots.to_contiguous());
        let [batch, heads, staying] = kept.layout().shape().dims::<3>();
        let vectors = Heads::of(&vectors);
        let (evicted, kept, places) = (integers(&evicted), integers(&kept), integers(&places));
        let sums = merge_into(&vectors, &evicted, &kept, &places, elements(&parts));
        tensor(sums, [batch, heads, staying, vectors.dim])
    }

    fn spread_into(
        vectors: FlexTensor,
        positions: FlexTensor,
        evicted: FlexTensor,
        kept: FlexTensor,
        parts: FlexTensor,
        window: usize,
    ) -> FlexTensor {
        let (vectors, parts) = (widened(vectors), parts.to_contiguous());
        let [positions, evicted, kept] = [positions, evicted, kept].map(|x| x.to_contiguous());
        let [batch, heads, staying] = kept.layout().shape().dims::<3>();
        let vectors = Heads::of(&vectors);
        let (places, evicted, kept) = (integers(&positions), integers(&evicted), integers(&kept));
        let parts = elements(&parts);
        let sums = spread_into(&vectors, &places, &evicted, &kept, parts, window);
        tensor(sums, [batch, heads, staying, vectors.dim])
    }
}

/// `[batch * heads * m * dim]`: what the evicted entries add to the kept ones at `places`.
pub fn merge_into(
    vectors: &Heads<'_>,
    evicted: &[i64],
    kept: &[i64],
    places: &[i64],
    parts: &[f32],
) -> Vec<f32> {
    let (heads, dim) = (vectors.batch * vectors.heads, vectors.dim);
    let (going, staying) = (evicted.len() / heads, kept.len() / heads);
    let mut sums = vec![0.0; heads * staying * dim];
    let of_heads = sums.par_chunks_mut(staying * dim).enumerate();
    of_heads.for_each(|(head, sums)| {
        let row = |slot: i64| {
            let slot = existing(slot, vectors.tokens);
            vectors.row(head / vectors.heads, head % vectors.heads, slot)
        };
        for i in head * going..(head + 1) * going {
            let (place, part) = (places[i], parts[i]);
            if part == 0.0 || place < 0 || place >= staying as i64 {
                continue;
            }
            let place = place as usize;
            let target = row(kept[head * staying + place]);
            let sums = &mut sums[place * dim..(place + 1) * dim];
            for ((sum, x), y) in sums.iter_mut().zip(row(evicted[i])).zip(target) {
                *sum += (x - y) * part;
            }
        }
    });
    sums
}

/// `[batch * heads * m * dim]`: what the evicted entries leave to the next `window` kept ones.
pub fn spread_into(
    vectors: &Heads<'_>,
    positions: &[i64],
    evicted: &[i64],
    kept: &[i64],
    parts: &[f32],
    window: usize,
) -> Vec<f32> {
    let (heads, dim) = (vectors.batch * vectors.heads, vectors.dim);
    let (going, staying) = (evicted.len() / heads, kept.len() / heads);
    let mut sums = vec![0.0; heads * staying * dim];
    let of_heads = sums.par_chunks_mut(staying * dim).enumerate();
    of_heads.for_each(|(head, sums)| {
        let slot_of = |slot: i64| existing(slot, vectors.tokens);
        let position = |slot: i64| positions[head * vectors.tokens + slot_of(slot)];
        let kept = &kept[head * staying..(head + 1) * staying];
        let all = head * going..(head + 1) * going;
        let mut leaving = evicted[all.clone()].iter().zip(&parts[all]).peekable();
        let mut total = vec![0.0; dim];
        let add = |total: &mut [f32], slot: i64, part: f32| {
            let row = vectors.row(head / vectors.heads, head % vectors.heads, slot_of(slot));
            for (total, x) in total.iter_mut().zip(row) {
                *total += x * part;
            }
        };
        while let Some((&slot, &part)) = leaving.next() {
            let from = position(slot);
            let first = kept.partition_point(|&slot| position(slot) < from);
            // Those before the same kept entry have the same heirs: their sum is spread, not each of them.
            let end = kept.get(first).map_or(i64::MAX, |&slot| position(slot));
            total.fill(0.0);
            add(&mut total, slot, part);
            while let Some((&slot, &part)) = leaving.next_if(|(slot, _)| position(**slot) < end) {
                add(&mut total, slot, part);
            }
            for sums in sums.chunks_exact_mut(dim).skip(first).take(window) {
                for (sum, total) in sums.iter_mut().zip(&total) {
                    *sum += total;
                }
            }
        }
    });
    sums
}
