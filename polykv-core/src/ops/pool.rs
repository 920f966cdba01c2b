use burn::tensor::Tensor;
use burn::tensor::module::{avg_pool1d, max_pool1d};
use burn::tensor::ops::{AvgPoolOptions, MaxPoolOptions};
use serde::{Deserialize, Serialize};

/// How neighbouring scores are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    Max,
    /// Positions beyond the ends count as zeros.
    Avg,
}

/// Pools along the entries with stride 1 and the same length: `[batch, kv_heads, entries]` in and out. `kernel` is
/// odd.
pub fn pool(scores: Tensor<3>, kernel: usize, mode: Pool) -> Tensor<3> {
    if kernel <= 1 {
        return scores;
    }
    let padding = [(kernel / 2, kernel / 2)];
    match mode {
        Pool::Max => max_pool1d(
            scores,
            MaxPoolOptions {
                stride: [1],
                padding,
                ..MaxPoolOptions::new([kernel])
            },
        ),
        Pool::Avg => avg_pool1d(
            scores,
            AvgPoolOptions {
                stride: [1],
                padding,
                ..AvgPoolOptions::new([kernel])
            },
        ),
    }
}
