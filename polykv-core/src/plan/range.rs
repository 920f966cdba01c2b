use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Consecutive layers, both ends included: `7` or `0-14` in a plan file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerRange {
    pub first: usize,
    pub last: usize,
}

impl LayerRange {
    /// All of `layers` layers (at least one).
    pub fn all(layers: usize) -> Self {
        Self {
            first: 0,
            last: layers.saturating_sub(1),
        }
    }

    pub fn count(&self) -> usize {
        self.last - self.first + 1
    }
}

impl fmt::Display for LayerRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl FromStr for LayerRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("layers '{text}' is no range; allowed: N or FIRST-LAST");
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |part: &str| part.trim().parse::<usize>().map_err(|_| wrong());
        let (first, last) = (number(first)?, number(last)?);
        match first <= last {
            true => Ok(Self { first, last }),
            false => Err(wrong()),
        }
    }
}

impl Serialize for LayerRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LayerRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            One(usize),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::One(layer) => Ok(Self {
                first: layer,
                last: layer,
            }),
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}
