//! Pooling by burn's own operations.

use super::choice::existing;
use crate::ops::pool::Pool;
use burn::tensor::module::{avg_pool1d, max_pool1d};
use burn::tensor::ops::{AvgPoolOptions, MaxPoolOptions};
use burn::tensor::{IndexingUpdateOp, Int, Tensor};

/// [`pool`](crate::ops::pool).
pub fn pool(
    scores: Tensor<3>,
    order: Option<&Tensor<3, Int>>,
    tail: usize,
    width: usize,
    mode: Pool,
) -> Tensor<3> {
    let [_, _, entries] = scores.dims();
    let old = entries.saturating_sub(tail);
    let order = order.map(|order| existing(order.clone(), entries));
    let ordered = match &order {
        Some(order) => scores.gather(2, order.clone()),
        None => scores,
    };
    let pooled = neighbours(ordered.clone().narrow(2, 0, old), width, mode);
    let all = match entries - old {
        0 => pooled,
        tail => Tensor::cat(vec![pooled, ordered.narrow(2, old, tail)], 2),
    };
    match order {
        Some(order) => {
            let slots = all.zeros_like();
            slots.scatter(2, order.clone(), all, IndexingUpdateOp::Assign)
        }
        None => all,
    }
}

fn neighbours(scores: Tensor<3>, width: usize, mode: Pool) -> Tensor<3> {
    let padding = [(width / 2, width / 2)];
    match mode {
        Pool::Max => max_pool1d(
            scores,
            MaxPoolOptions {
                stride: [1],
                padding,
                ..MaxPoolOptions::new([width])
            },
        ),
        Pool::Avg => avg_pool1d(
            scores,
            AvgPoolOptions {
                stride: [1],
                padding,
                ..AvgPoolOptions::new([width])
            },
        ),
    }
}
