//! Prefill and decode, the two phases of a sequence.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The phase of a sequence, which decides when a layer evicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The prompt: a layer evicts once, when it has been given all of it.
    Prefill,
    /// Generation: a layer evicts after every token that leaves it above its budget.
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
