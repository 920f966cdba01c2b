//! Choosing which entries stay.

use super::is_cpu;
use crate::policy::Protect;
use crate::{Error, Result};
use burn::tensor::{Bool, IndexingUpdateOp, Int, IntDType, Tensor, TensorData};
use std::ops::Range;

/// The positions that no eviction may touch in a sequence of `seen` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protected<'a> {
    pub protect: Protect,
    /// Ranges of positions beside those.
    pub spans: &'a [Range<usize>],
    pub seen: usize,
}

impl Protected<'_> {
    fn contains(&self, position: i64) -> bool {
        let in_span = |span: &Range<usize>| span.contains(&(position as usize));
        position < self.protect.sinks as i64
            || position >= self.first_recent()
            || self.spans.iter().any(in_span)
    }

    fn is_empty(&self) -> bool {
        self.protect.count() == 0 && self.spans.is_empty()
    }

    fn first_recent(&self) -> i64 {
        self.seen as i64 - self.protect.recent as i64
    }

    /// True where an entry is protected; the shape of `positions`.
    pub fn mask(&self, positions: Tensor<3, Int>) -> Tensor<3, Bool> {
        let below = |end: usize| positions.clone().lower_elem(end as i64);
        let from = |start: i64| positions.clone().greater_equal_elem(start);
        let mut mask = from(self.first_recent());
        if self.protect.sinks > 0 {
            mask = mask.bool_or(below(self.protect.sinks));
        }
        for span in self.spans {
            mask = mask.bool_or(from(span.start as i64).bool_and(below(span.end)));
        }
        mask
    }
}

/// The slots of the `budget` entries that stay, per sequence and head, in ascending order of position:
/// `[batch, kv_heads, budget]`. Protected entries stay first, then the highest scores; of equal scores the later
/// position stays.
///
/// # Errors
/// A NaN score, and a budget that the protected entries exceed.
pub fn select(
    scores: Tensor<3>,
    positions: Tensor<3, Int>,
    protected: Protected<'_>,
    budget: usize,
) -> Result<Tensor<3, Int>> {
    let [batch, kv_heads, entries] = scores.dims();
    let device = scores.device();
    let read = |e| Error::Failed(format!("reading scores from the device: {e:?}"));
    let scores: Vec<f32> = scores.try_into_vec_as().map_err(read)?;
    let positions: Vec<i64> = positions.try_into_vec_as().map_err(read)?;
    if scores.iter().any(|score| score.is_nan()) {
        return Err(Error::Failed("an eviction score is NaN".into()));
    }
    let mut kept: Vec<i64> = Vec::with_capacity(batch * kv_heads * budget);
    for (scores, positions) in scores
        .chunks_exact(entries)
        .zip(positions.chunks_exact(entries))
    {
        kept.extend(top(scores, positions, protected, budget)?);
    }
    let data = TensorData::new(kept, [batch, kv_heads, budget]);
    Ok(Tensor::from_data(data, &device))
}

/// The slots of `0..entries` that `slots [batch, kv_heads, count]` leaves out, ascending: `[batch, kv_heads, entries −
/// count]`. Reads the slots.
///
/// # Errors
/// A device that cannot be read.
pub fn rest(slots: &Tensor<3, Int>, entries: usize) -> Result<Tensor<3, Int>> {
    let [batch, kv_heads, count] = slots.dims();
    let read = |e| Error::Failed(format!("reading slots from the device: {e:?}"));
    let values: Vec<i64> = slots.clone().try_into_vec_as().map_err(read)?;
    let mut others: Vec<i64> = Vec::with_capacity(batch * kv_heads * (entries - count));
    for kept in values.chunks_exact(count) {
        let mut free = vec![true; entries];
        kept.iter().for_each(|&slot| free[slot as usize] = false);
        others.extend((0..entries as i64).filter(|&slot| free[slot as usize]));
    }
    let data = TensorData::new(others, [batch, kv_heads, entries - count]);
    Ok(Tensor::from_data(data, &slots.device()))
}

fn top(
    scores: &[f32],
    positions: &[i64],
    protected: Protected<'_>,
    budget: usize,
) -> Result<impl Iterator<Item = i64>> {
    let mut slots: Vec<usize> = (0..scores.len()).collect();
    let safe: Vec<bool> = positions.iter().map(|&p| protected.contains(p)).collect();
    let count = safe.iter().filter(|&&safe| safe).count();
    if count > budget || budget > scores.len() {
        return Err(Error::invalid(
            "eviction",
            "budget",
            budget,
            format!(
                "{count} (protected entries) to {} (cached entries)",
                scores.len()
            ),
        ));
    }
    let best_first = |&a: &usize, &b: &usize| {
        safe[b]
            .cmp(&safe[a])
            .then(scores[b].total_cmp(&scores[a]))
            .then(positions[b].cmp(&positions[a]))
    };
    if budget < slots.len() {
        slots.select_nth_unstable_by(budget, best_first);
        slots.truncate(budget);
    }
    slots.sort_unstable_by_key(|&slot| positions[slot]);
    Ok(slots.into_iter().map(|slot| slot as i64))
}

/// The slot of the lowest unprotected score per sequence and head, `[batch, kv_heads, 1]`, without leaving the
/// device; of equal scores the earlier position goes. The caller guarantees that some entry is unprotected, and checks
/// for NaN.
pub fn drop_lowest(
    scores: Tensor<3>,
    positions: Tensor<3, Int>,
    protected: Protected<'_>,
) -> Tensor<3, Int> {
    // On the CPU nothing is waited for, and one pass over the entries costs less than a dozen operations.
    if is_cpu(&scores.device())
        && let Some(slots) = lowest_on_host(&scores, &positions, protected)
    {
        return slots;
    }
    let guarded = match protected.is_empty() {
        true => scores,
        false => scores.mask_fill(protected.mask(positions.clone()), f32::MAX),
    };
    let [_, _, entries] = guarded.dims();
    let lowest = guarded.clone().min_dim(2).repeat_dim(2, entries);
    // Pooling makes equal scores common: the choice between them must not depend on slots.
    let dtype = IntDType::from(positions.dtype());
    positions
        .mask_fill(guarded.greater(lowest), i32::MAX)
        .argmin(2)
        .cast(dtype)
}

/// As [`drop_lowest`], by reading the tensors.
fn lowest_on_host(
    scores: &Tensor<3>,
    positions: &Tensor<3, Int>,
    protected: Protected<'_>,
) -> Option<Tensor<3, Int>> {
    let [batch, kv_heads, entries] = scores.dims();
    let dtype = IntDType::from(positions.dtype());
    let all_scores: Vec<f32> = scores.clone().try_into_vec_as().ok()?;
    let all_positions: Vec<i64> = positions.clone().try_into_vec_as().ok()?;
    let rows = all_scores
        .chunks_exact(entries)
        .zip(all_positions.chunks_exact(entries));
    let lowest = |(scores, positions): (&[f32], &[i64])| {
        let free = (0..entries).filter(|&slot| !protected.contains(positions[slot]));
        let order = |a: &usize, b: &usize| {
            let by_score = scores[*a].total_cmp(&scores[*b]);
            by_score.then(positions[*a].cmp(&positions[*b]))
        };
        free.min_by(order).map(|slot| slot as i64)
    };
    let slots: Vec<i64> = rows.map(lowest).collect::<Option<_>>()?;
    let data = TensorData::new(slots, [batch, kv_heads, 1]);
    Some(Tensor::<3, Int>::from_data(data, &scores.device()).cast(dtype))
}

/// Gathers entries: `tensor [batch, kv_heads, n, d]` at `slots [batch, kv_heads, m]`.
pub fn take(tensor: Tensor<4>, slots: Tensor<3, Int>) -> Tensor<4> {
    let [batch, kv_heads, _, d] = tensor.dims();
    let count = slots.dims()[2];
    let index = slots
        .unsqueeze_dim::<4>(3)
        .expand([batch, kv_heads, count, d]);
    tensor.gather(2, index)
}

/// Overwrites entries, in place while the tensor is not shared: `tensor [batch, kv_heads, n, d]` at the different
/// `slots [batch, kv_heads, m]` becomes `entries [batch, kv_heads, m, d]`.
pub fn put(tensor: Tensor<4>, slots: Tensor<3, Int>, entries: Tensor<4>) -> Tensor<4> {
    let dims = entries.dims();
    let index = slots.unsqueeze_dim::<4>(3).expand(dims);
    tensor.scatter(2, index, entries, IndexingUpdateOp::Assign)
}
