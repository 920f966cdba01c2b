use serde::{Deserialize, Serialize};

/// How neighbouring scores are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// The maximum of the neighbours.
    Max,
    /// The mean of the neighbours; positions beyond the ends count as zeros.
    Avg,
}
