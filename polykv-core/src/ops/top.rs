//! The best entries as a mask, for policies that choose in stages.

use crate::{Error, Result};
use burn::tensor::{Bool, Int, Tensor, TensorData};

/// Columns that are compared at a time: bounds the memory of [`top`].
const BLOCK: usize = 256;

/// True for the `count` highest scores per sequence and head, of equal ones the later positions: `scores` and
/// `positions [batch, kv_heads, entries]`. Nothing waits for the device; every score is compared with every other.
pub fn top(scores: Tensor<3>, positions: Tensor<3, Int>, count: usize) -> Tensor<3, Bool> {
    let [batch, kv_heads, entries] = scores.dims();
    let mut better = scores.zeros_like();
    for first in (0..entries).step_by(BLOCK) {
        let width = BLOCK.min(entries - first);
        let dims = [batch, kv_heads, entries, width];
        let other = scores.clone().narrow(2, first, width);
        let other = other.unsqueeze_dim::<4>(2).expand(dims);
        let own = scores.clone().unsqueeze_dim::<4>(3).expand(dims);
        let later = positions.clone().narrow(2, first, width);
        let later = later.unsqueeze_dim::<4>(2).expand(dims);
        let later = later.greater(positions.clone().unsqueeze_dim::<4>(3).expand(dims));
        let before = other.clone().greater(own.clone());
        let before = before.bool_or(other.equal(own).bool_and(later));
        let sums = before.float().sum_dim(3);
        better = better + sums.reshape([batch, kv_heads, entries]);
    }
    better.lower_elem(count as f32)
}

/// As [`top`], sorted on the host.
///
/// # Errors
/// A device that cannot be read.
pub fn top_on_host(
    scores: Tensor<3>,
    positions: Tensor<3, Int>,
    count: usize,
) -> Result<Tensor<3, Bool>> {
    let dims = scores.dims();
    let [_, _, entries] = dims;
    let device = scores.device();
    let read = |e| Error::Failed(format!("reading scores from the device: {e:?}"));
    let scores: Vec<f32> = scores.try_into_vec_as().map_err(read)?;
    let positions: Vec<i64> = positions.try_into_vec_as().map_err(read)?;
    let mut mask = vec![0f32; scores.len()];
    let rows = scores
        .chunks_exact(entries)
        .zip(positions.chunks_exact(entries));
    for ((scores, positions), mask) in rows.zip(mask.chunks_exact_mut(entries)) {
        let mut slots: Vec<usize> = (0..entries).collect();
        if count < entries {
            slots.select_nth_unstable_by(count, |&a, &b| {
                scores[b]
                    .total_cmp(&scores[a])
                    .then(positions[b].cmp(&positions[a]))
            });
            slots.truncate(count);
        }
        slots.into_iter().for_each(|slot| mask[slot] = 1.0);
    }
    Ok(Tensor::<3>::from_data(TensorData::new(mask, dims), &device).greater_elem(0.5))
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    #[test]
    fn both_ways_choose_the_same_entries() {
        let device = Device::flex();
        for (entries, count) in [(1, 1), (9, 4), (300, 257), (300, 0), (5, 5)] {
            // Few different scores, so that ties are common, and positions in descending order.
            let scores = Tensor::<3>::random([2, 2, entries], Distribution::Default, &device);
            let scores = scores.mul_scalar(6.0).floor();
            let positions = Tensor::<1, Int>::arange(0..entries as i64, &device)
                .flip([0])
                .reshape([1, 1, entries])
                .expand([2, 2, entries]);
            let on_device = top(scores.clone(), positions.clone(), count);
            let on_host = top_on_host(scores, positions, count).unwrap();
            let per_head = on_device.clone().int().sum_dim(2);
            let per_head: Vec<i64> = per_head.try_into_vec_as().unwrap();
            assert_eq!(per_head, vec![count as i64; 4]);
            let apart = on_device.not_equal(on_host).any();
            assert!(!apart.into_scalar::<bool>(), "{count} of {entries}");
        }
    }

    #[test]
    fn of_equal_scores_the_later_positions_are_taken() {
        let device = Device::flex();
        let scores = Tensor::<3>::from_data([[[1.0, 3.0, 1.0, 1.0]]], &device);
        let positions = Tensor::<3, Int>::from_data([[[8, 2, 9, 5]]], &device);
        let taken: Vec<i64> = top(scores, positions, 3).int().try_into_vec_as().unwrap();
        assert_eq!(taken, [1, 1, 1, 0]);
    }
}
