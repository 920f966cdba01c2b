//! Part of a run's samples.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Every `count`th sample, from number `index` on: neighbours, which are alike in length, go to different shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Shard {
    pub index: usize,
    pub count: usize,
}

impl Shard {
    /// Of a run's samples, those in this shard.
    pub fn samples(self, total: usize) -> Vec<usize> {
        (self.index..total).step_by(self.count).collect()
    }

    /// The sample at a place in this shard, if the run has so many.
    pub fn nth(self, place: usize, total: usize) -> Option<usize> {
        let sample = place.checked_mul(self.count)?.checked_add(self.index)?;
        (sample < total).then_some(sample)
    }

    /// The shard that a sample belongs to.
    pub fn of(sample: usize, count: usize) -> Self {
        let index = sample % count;
        Self { index, count }
    }

    pub fn is_whole(&self) -> bool {
        self.count == 1
    }
}

/// The whole run.
impl Default for Shard {
    fn default() -> Self {
        Self { index: 0, count: 1 }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(index, count)| {
            let numbers = (index.parse::<usize>().ok()?, count.parse::<usize>().ok()?);
            (numbers.0 < numbers.1).then_some(numbers)
        });
        let (index, count) = numbers.ok_or_else(|| {
            format!("'{text}' is no shard; allowed: I/N with I from 0 to N-1, as in 0/4")
        })?;
        Ok(Self { index, count })
    }
}

impl TryFrom<String> for Shard {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Shard> for String {
    fn from(shard: Shard) -> Self {
        shard.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_hold_every_sample_once() {
        for total in [0, 1, 3, 10] {
            let mut all: Vec<usize> = (0..4)
                .flat_map(|index| Shard { index, count: 4 }.samples(total))
                .collect();
            all.sort_unstable();
            assert_eq!(all, (0..total).collect::<Vec<_>>());
        }
        let third: Shard = "2/4".parse().unwrap();
        assert_eq!(third.samples(10), [2, 6]);
        let nth = [0, 1, 2, usize::MAX].map(|place| third.nth(place, 10));
        assert_eq!(nth, [Some(2), Some(6), None, None]);
        assert_eq!(Shard::of(6, 4), third);
        for wrong in ["", "4/4", "1", "0/0", "-1/2", "1/2/3", "a/b"] {
            assert!(
                wrong.parse::<Shard>().unwrap_err().contains("0 to N-1"),
                "{wrong}"
            );
        }
    }
}
