use super::hit_note::StepHits;
use super::sums::{StepSums, add_latest, by_visible};
use burn::tensor::{Int, Tensor};
use std::sync::Arc;

/// The scores of a layer's entries for the eviction of one of them while decoding, in the form in which a policy has them at
/// hand: on GPUs they are then computed in the kernel that evicts, which saves launches.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "it lives for one step")]
#[non_exhaustive]
pub enum StepScores {
    /// A score for each entry, `[batch, kv_heads, entries]`.
    Given(Tensor<3>),
    /// Each entry's position.
    Positions,
    /// The mean over the query group of rows `[batch, kv_heads, group, entries]`.
    MeanOfGroup(Tensor<4>),
    /// The mean over all query heads of rows `[batch, kv_heads, group, entries]`, the same for all KV heads.
    MeanOfHeads(Tensor<4>),
    /// The attention of all queries so far, as a policy's state has it. Policies of this crate make it.
    Sums(StepSums),
    /// The hits in a history of queries, as a policy's state has them. Policies of this crate make it.
    Hits(StepHits),
}

impl StepScores {
    /// The row that is still to be added to a policy's statistics, if there is one.
    pub(crate) fn latest(&self) -> Option<Arc<Tensor<4>>> {
        match self {
            Self::Sums(sums) => Some(sums.latest.clone()),
            Self::Hits(hits) => Some(hits.latest.clone()),
            _ => None,
        }
    }

    /// The scores, `[batch, kv_heads, entries]`, of entries at these positions.
    pub fn tensor(self, positions: &Tensor<3, Int>) -> Tensor<3> {
        match self {
            Self::Given(scores) => scores,
            Self::Positions => positions.clone().float(),
            Self::MeanOfGroup(rows) => {
                let [batch, kv_heads, _, entries] = rows.dims();
                rows.mean_dim(2).reshape([batch, kv_heads, entries])
            }
            Self::MeanOfHeads(rows) => {
                let [batch, kv_heads, group, entries] = rows.dims();
                let mean = rows.reshape([batch, kv_heads * group, entries]);
                mean.mean_dim(1).expand([batch, kv_heads, entries])
            }
            Self::Hits(hits) => hits.noted().0,
            Self::Sums(StepSums { sums, latest, seen }) => {
                let sums = add_latest(sums, &latest);
                match seen {
                    Some(seen) => by_visible(sums, positions, seen),
                    None => sums,
                }
            }
        }
    }
}
