use super::{kernels, oracle};
use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};

/// How neighbouring scores are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    Max,
    /// Positions beyond the ends count as zeros.
    Avg,
}

/// Pools each score with its neighbours in order of position, `width` (odd) of them with itself: `scores` and `order
/// [batch, kv_heads, entries]`, `order` the slots in ascending order of position, none if that is their own order. The
/// last `tail` entries of the order stay as they are, and leave their neighbours alone.
pub fn pool(
    scores: Tensor<3>,
    order: Option<&Tensor<3, Int>>,
    tail: usize,
    width: usize,
    mode: Pool,
) -> Tensor<3> {
    let [batch, kv_heads, entries] = scores.dims();
    if width <= 1 || entries <= tail {
        return scores;
    }
    let device = scores.device();
    if !kernels::moves_entries(&device) {
        return oracle::pool::pool(scores, order, tail, width, mode);
    }
    let order = match order {
        Some(order) => order.clone(),
        None => Tensor::<1, Int>::arange(0..entries as i64, &device)
            .reshape([1, 1, entries])
            .expand([batch, kv_heads, entries]),
    };
    kernels::pool_scores(scores, order, tail, width, mode)
}
