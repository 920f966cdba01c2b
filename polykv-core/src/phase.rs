//! The two moments at which a layer evicts.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The two moments at which a layer evicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Once, when a layer has processed the whole prompt.
    Prefill,
    /// After every generated token that leaves the layer above its budget.
    Decode,
}

impl Phase {
    /// Both phases, in the order in which they happen.
    pub const BOTH: [Self; 2] = [Self::Prefill, Self::Decode];
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        })
    }
}
