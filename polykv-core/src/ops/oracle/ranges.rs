//! A token of several sequences whose entries lie in ranges of the same slots.

use super::attend_token;
use super::choice::lowest;
use crate::ops::ranges::{Head, Slots};
use crate::ops::tensor::put;
use crate::ops::{Mask, Protected, by_visible};
use crate::policy::{Protect, TokenRule};
use burn::tensor::{DType, IndexingUpdateOp, Int, IntDType, Tensor, s};

/// [`Slots::decode`] where `heads` are the ranges before the token.
pub(crate) fn decode(
    mut slots: Slots,
    q: Tensor<4>,
    new: [Tensor<4>; 2],
    heads: &[Head],
    softcap: Option<f64>,
) -> (Tensor<4>, Slots) {
    let dims @ [sequences, query_heads, ..] = q.dims();
    let kv_heads = new[0].dims()[1];
    let group = query_heads / kv_heads;
    let mask = Mask {
        softcap,
        places: None,
    };
    let (mut outputs, mut rows) = (Vec::new(), Vec::new());
    for (index, head) in heads.iter().enumerate() {
        let (sequence, kv) = (index / kv_heads, index % kv_heads);
        let of = |all: &Tensor<4>, count: usize| {
            let own = all.clone().narrow(0, sequence, 1);
            own.narrow(1, kv * count, count)
        };
        let [shared, own] = head.ranges();
        let (all, newest) = (own.start..own.end + 1, own.end..own.end + 1);
        for (old, new) in [&mut slots.keys, &mut slots.values].into_iter().zip(&new) {
            let new = of(new, 1).cast(old.dtype());
            old.inplace(|old| old.slice_assign(s![.., .., newest.clone(), ..], new));
        }
        let position = Tensor::full([1, 1, 1], head.seen as i64, &q.device());
        let old = &mut slots.positions;
        old.inplace(|old| old.slice_assign(s![.., .., newest], position));
        let range = |vectors: &Tensor<4>| {
            let own = vectors.clone().slice(s![.., .., all.clone(), ..]);
            match head.shared {
                0 => own,
                _ => {
                    let before = vectors.clone().slice(s![.., .., shared.clone(), ..]);
                    Tensor::cat(vec![before, own], 2)
                }
            }
        };
        let (keys, values) = (range(&slots.keys), range(&slots.values));
        let (output, row) = attend_token(of(&q, group), keys, values, None, &mask);
        outputs.push(output);
        rows.push(row);
    }
    for index in 0..heads.len() {
        evict(&mut slots, heads, &rows, index, kv_heads);
    }
    debug_assert_eq!(outputs.len(), sequences * kv_heads);
    // `[sequences * kv_heads, group, 1, d]` in the order of `[sequences, heads, 1, d]`.
    (Tensor::cat(outputs, 0).reshape(dims), slots)
}

/// What the token's `rows [1, 1, group, n]` of all heads do to the entries of one.
fn evict(slots: &mut Slots, heads: &[Head], rows: &[Tensor<4>], index: usize, kv_heads: usize) {
    let head = &heads[index];
    let n = head.with_newest();
    let all = head.start..head.start + n;
    let positions = slots.positions.clone().slice(s![.., .., all.clone()]);
    let mean = |row: &Tensor<4>| row.clone().mean_dim(2).reshape([1, 1, n]);
    let mut sums = None;
    let scores = match head.rule {
        None | Some(TokenRule::Forgets) => return,
        Some(TokenRule::Positions) => positions.clone().float(),
        Some(TokenRule::MeanOfGroup) => mean(&rows[index]),
        Some(TokenRule::MeanOfHeads) => {
            let first = index - index % kv_heads;
            let own = rows[first..first + kv_heads].iter().map(mean);
            Tensor::cat(own.collect(), 1).mean_dim(1)
        }
        Some(TokenRule::Sums {
            by_visible: visible,
        }) => {
            let known = slots.sums.clone().slice(s![head.start..all.end - 1]);
            let zero = Tensor::zeros([1], &known.device());
            let known = Tensor::cat(vec![known, zero], 0).reshape([1, 1, n]);
            let all = known + mean(&rows[index]);
            sums = Some(all.clone());
            match visible {
                true => by_visible(all, &positions, head.seen + 1),
                false => all,
            }
        }
    };
    if n > head.budget {
        let nans = scores
            .clone()
            .is_nan()
            .int()
            .sum()
            .cast(IntDType::I32)
            .float();
        let id = head.id..head.id + 1;
        let known = slots.nans.clone().slice(s![id.clone()]);
        slots.nans = slots.nans.clone().slice_assign(s![id], known + nans);
        let protected = Protected {
            protect: Protect {
                sinks: head.sinks,
                recent: head.recent,
            },
            ..Protected::nothing(head.seen + 1)
        };
        let slot = lowest(scores, positions.clone(), protected);
        for old in [&mut slots.keys, &mut slots.values] {
            let range = old.clone().slice(s![.., .., all.clone(), ..]);
            let moved = put(range.clone(), slot.clone(), range.narrow(2, n - 1, 1));
            *old = old.clone().slice_assign(s![.., .., all.clone(), ..], moved);
        }
        let last = positions.clone().narrow(2, n - 1, 1);
        let moved: Tensor<3, Int> =
            positions.scatter(2, slot.clone(), last, IndexingUpdateOp::Assign);
        let old = slots.positions.clone();
        slots.positions = old.slice_assign(s![.., .., all.clone()], moved);
        sums = sums.map(|sums| {
            let last = sums.clone().narrow(2, n - 1, 1);
            sums.scatter(2, slot, last, IndexingUpdateOp::Assign)
        });
    }
    if let Some(sums) = sums {
        let sums = sums.reshape([n]).cast(DType::F32);
        slots.sums = slots.sums.clone().slice_assign(s![all], sums);
    }
}
