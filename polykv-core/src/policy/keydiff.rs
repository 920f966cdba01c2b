use super::{Checked, LayerView, Params, Policy, State};
use crate::{Result, ops};
use burn::tensor::Tensor;
use serde::Deserialize;

/// Keys that differ from the others stay: minus the cosine between a key and the mean of the KV head's keys, each
/// scaled to unit norm (KeyDiff, arXiv 2504.15364).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyDiff {}

impl Checked for KeyDiff {}

impl Policy for KeyDiff {
    fn name(&self) -> &'static str {
        "keydiff"
    }

    fn params(&self) -> Params {
        Params::new()
    }

    fn score(&self, _state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        let keys = view.keys();
        let [batch, kv_heads, entries, _] = keys.dims();
        let units = ops::unit(keys);
        let anchor = ops::unit(units.clone().mean_dim(2));
        let cosines = (units * anchor).sum_dim(3);
        Ok(cosines.neg().reshape([batch, kv_heads, entries]))
    }
}
