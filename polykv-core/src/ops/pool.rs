use serde::{Deserialize, Serialize};

/// How neighbouring scores are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// The largest of them.
    Max,
    /// Their mean; positions beyond the ends count as zeros.
    Avg,
}
