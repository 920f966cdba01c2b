//! The best entries as a mask, for policies that choose in stages.

use super::kernels::{self, Guard};
use super::oracle;
use burn::tensor::{Bool, IndexingUpdateOp, Int, Tensor};

/// True for the `count` highest scores per sequence and head, of equal ones the later positions: `scores` and
/// `positions [batch, kv_heads, entries]`, positions below `seen`. Nothing waits for the device.
pub fn top(
    scores: Tensor<3>,
    positions: Tensor<3, Int>,
    seen: usize,
    count: usize,
) -> Tensor<3, Bool> {
    let [_, _, entries] = scores.dims();
    if !kernels::moves_entries(&scores.device()) || count == 0 || count >= entries {
        return oracle::choice::top(scores, positions, count);
    }
    let (slots, _) = kernels::select_top(scores.clone(), positions, Guard::none(), seen, count);
    let ones = Tensor::ones(slots.dims(), &scores.device());
    scores
        .zeros_like()
        .scatter(2, slots, ones, IndexingUpdateOp::Assign)
        .greater_elem(0.5)
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
            let found = top(scores.clone(), positions.clone(), entries, count);
            let wanted = oracle::choice::top(scores, positions, count);
            let per_head = found.clone().int().sum_dim(2);
            let per_head: Vec<i64> = per_head.try_into_vec_as().unwrap();
            assert_eq!(per_head, vec![count as i64; 4]);
            let apart = found.not_equal(wanted).any();
            assert!(!apart.into_scalar::<bool>(), "{count} of {entries}");
        }
    }

    #[test]
    fn of_equal_scores_the_later_positions_are_taken() {
        let device = Device::flex();
        let scores = Tensor::<3>::from_data([[[1.0, 3.0, 1.0, 1.0]]], &device);
        let positions = Tensor::<3, Int>::from_data([[[8, 2, 9, 5]]], &device);
        let taken: Vec<i64> = top(scores, positions, 10, 3)
            .int()
            .try_into_vec_as()
            .unwrap();
        assert_eq!(taken, [1, 1, 1, 0]);
    }
}
