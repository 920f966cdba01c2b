//! The order of entries by position, and scores along it.

use super::kernels::{OrderOps, kernel};
use super::oracle;
use super::pool::Pool;
use super::route::Route;
use burn::tensor::{Int, Tensor};

/// Pools each score over the `width` (odd) positions around it: `scores [batch, kv_heads, n]` → `[batch, kv_heads, n]`.
/// `order [batch, kv_heads, n]` has the slots in ascending order of position; without it slots must be in that order. The
/// last `tail` entries of the order are left out: their scores stay as they are and do not reach their neighbours. A number
/// in `order` that is no slot counts as n − 1.
///
/// # Panics
/// If the shapes differ.
pub fn pool(
    scores: Tensor<3>,
    order: Option<&Tensor<3, Int>>,
    tail: usize,
    width: usize,
    mode: Pool,
) -> Tensor<3> {
    let dims @ [_, _, entries] = scores.dims();
    if width <= 1 || entries <= tail {
        return scores;
    }
    if let Some(order) = order {
        assert_eq!(order.dims(), dims, "a slot per score");
    }
    if Route::of(&scores) == Route::Plain {
        return oracle::pool::pool(scores, order, tail, width, mode);
    }
    let order = match order {
        Some(order) => order.clone(),
        None => Tensor::<1, Int>::arange(0..entries as i64, &scores.device())
            .reshape([1, 1, entries])
            .expand(dims),
    };
    kernel!(OrderOps::pool_scores(scores, order, tail, width, mode))
}

/// The slots in order of position, `order [batch, kv_heads, n]`, without the slot `victim [batch, kv_heads, 1]`: `[batch,
/// kv_heads, n − 1]`. With `moved`, the entry of the last slot has moved into that slot. If the order does not have the slot,
/// its last one is left out.
///
/// # Panics
/// If the shapes do not fit.
pub fn drop_from_order(
    order: Tensor<3, Int>,
    victim: Tensor<3, Int>,
    moved: bool,
) -> Tensor<3, Int> {
    let [batch, kv_heads, entries] = order.dims();
    assert!(entries > 0, "an order of at least one slot");
    assert_eq!(victim.dims(), [batch, kv_heads, 1], "a victim per head");
    match Route::on(&victim.device()) {
        Route::Plain => oracle::choice::drop_from_order(order, victim, moved),
        _ => kernel!(OrderOps::drop_from_order(order, victim, moved)),
    }
}

/// The slots in order of position, `order [batch, kv_heads, n]`, followed by the slots `n..n + count` of new entries with the
/// latest positions: `[batch, kv_heads, n + count]`.
pub fn extend_order(order: Tensor<3, Int>, count: usize) -> Tensor<3, Int> {
    match Route::on(&order.device()) {
        Route::Plain => oracle::choice::extend_order(order, count),
        _ => kernel!(OrderOps::extend_order(order, count)),
    }
}
