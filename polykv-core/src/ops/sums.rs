//! Sums of attention to which the latest row has not been added yet.

#[cfg(feature = "cube")]
use super::kernels::{StepOps, kernel};
#[cfg(feature = "cube")]
use super::route::Route;
use burn::tensor::{Int, Tensor};
use std::sync::Arc;

/// Sums of attention and the row that is still to be added to them.
#[derive(Clone, Debug)]
pub struct StepSums {
    /// Of all entries but the newest, `[batch, kv_heads, entries - 1]`.
    pub(crate) sums: Tensor<3>,
    /// The attention of the latest query, `[batch, kv_heads, group, entries]`.
    pub(crate) latest: Arc<Tensor<4>>,
    /// If the sums are divided by the number of queries that could see the entry: the number of all queries.
    pub(crate) seen: Option<usize>,
}

/// `sums [batch, kv_heads, n]`, and 0 for entries behind them, plus the mean of `rows [batch, kv_heads, group, entries]` over the group.
///
/// # Panics
/// If there are fewer entries than sums.
pub(crate) fn add_latest(sums: Tensor<3>, rows: &Tensor<4>) -> Tensor<3> {
    let [batch, kv_heads, _, entries] = rows.dims();
    let dims @ [_, _, known] = sums.dims();
    assert!(
        dims == [batch, kv_heads, known] && known <= entries,
        "sums {dims:?} of {entries} entries"
    );
    #[cfg(feature = "cube")]
    if Route::of(&sums).if_f32(rows) == Route::Gpu {
        return kernel!(StepOps::add_mean(sums, rows.clone()));
    }
    let sums = super::extend(sums, entries - known);
    sums + rows.clone().mean_dim(2).reshape([batch, kv_heads, entries])
}

/// Sums over the number of queries that could see each entry, both `[batch, kv_heads, entries]`: of `seen` queries the one at
/// position p sees the entries up to p, so an entry at position j was visible to seen − j.
pub(crate) fn by_visible(sums: Tensor<3>, positions: &Tensor<3, Int>, seen: usize) -> Tensor<3> {
    sums / positions.clone().float().neg().add_scalar(seen as f32)
}
