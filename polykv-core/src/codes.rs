//! Number formats in which a layer keeps its entries in codes of a few bits.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How a layer keeps keys and values in codes of 8 or 4 bits, `kv` in a plan file and `--kv-dtype` on the command line.
///
/// A vector of head_dim numbers is coded by itself, so that an entry can be evicted, moved and overwritten without its
/// neighbours: each run of [`Codes::RUN`] numbers, the last one may be shorter, has a step between codes and a code for 0 in
/// 32 bits together. Keys are first brought to the scale of their channels: see [`ops::coded`](crate::ops::coded).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codes {
    /// 8 bits per number.
    Q8,
    /// 4 bits per number.
    Q4,
}

impl Codes {
    /// All formats, from the most bits to the fewest.
    pub const ALL: [Self; 2] = [Self::Q8, Self::Q4];

    /// Numbers that share a step and a code for 0.
    pub const RUN: usize = 32;

    /// The name in plan files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }

    /// Bits of a code.
    pub fn bits(self) -> usize {
        match self {
            Self::Q8 => 8,
            Self::Q4 => 4,
        }
    }

    /// The words of 32 bits of a vector of `head_dim` numbers: its codes, and one per run.
    pub fn words(self, head_dim: usize) -> usize {
        let codes = head_dim.saturating_mul(self.bits()).div_ceil(32);
        codes.saturating_add(head_dim.div_ceil(Self::RUN))
    }
}

impl fmt::Display for Codes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Codes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = |codes: &&Self| codes.name() == text;
        Self::ALL.iter().find(known).copied().ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("'{text}' is no format of entries; allowed: {names}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        for codes in Codes::ALL {
            assert_eq!(codes.name().parse(), Ok(codes));
        }
        assert!("q5".parse::<Codes>().unwrap_err().contains("q8, q4"));
    }

    #[test]
    fn vectors_are_whole_words() {
        let words = |codes: Codes| [8, 64, 80, 128].map(|dim| codes.words(dim));
        assert_eq!(words(Codes::Q8), [3, 18, 23, 36]);
        assert_eq!(words(Codes::Q4), [2, 10, 13, 20]);
    }
}
