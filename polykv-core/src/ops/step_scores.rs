use super::sums::{StepSums, add_latest};
use burn::tensor::{Int, Tensor};

/// The scores of a layer's entries for the eviction of one of them while decoding, in the form in which a policy has them at
/// hand: on GPUs they are then computed in the kernel that evicts, which saves launches.
#[derive(Clone, Debug)]
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
    /// The attention of all queries so far, as a policy's state has it.
    Sums(StepSums),
}

impl StepScores {
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
            Self::Sums(StepSums { sums, latest, seen }) => {
                let sums = add_latest(sums, &latest);
                match seen {
                    Some(seen) => sums / positions.clone().float().neg().add_scalar(seen as f32),
                    None => sums,
                }
            }
        }
    }
}
