//! Ranges and sets of layers as text.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// Consecutive layers, both ends included. In a plan file it is `7` or `0-14`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerRange {
    /// The first layer, from 0.
    pub first: usize,
    /// The last layer, at least `first`.
    pub last: usize,
}

impl LayerRange {
    /// The range of all layers of a model with `layers` layers, at least 1.
    #[must_use]
    pub fn all(layers: usize) -> Self {
        Self {
            first: 0,
            last: layers.saturating_sub(1),
        }
    }

    /// The number of layers in the range.
    pub fn count(&self) -> usize {
        self.last.saturating_sub(self.first).saturating_add(1)
    }
}

/// A set of layers as ascending ranges. As text it is `0-2,7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSet(
    /// The ranges, in ascending order.
    pub Vec<LayerRange>,
);

impl LayerSet {
    /// The set of these layers, which are in ascending order.
    #[must_use]
    pub fn of(layers: &[usize]) -> Self {
        let mut ranges: Vec<LayerRange> = Vec::new();
        for &layer in layers {
            match ranges.last_mut() {
                Some(last) if last.last.checked_add(1) == Some(layer) => last.last = layer,
                _ => ranges.push(LayerRange {
                    first: layer,
                    last: layer,
                }),
            }
        }
        Self(ranges)
    }
}

impl fmt::Display for LayerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{range}")?;
        }
        Ok(())
    }
}

impl FromStr for LayerSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').filter(|part| !part.is_empty());
        parts.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl Serialize for LayerSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LayerSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
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
        struct Range;

        impl de::Visitor<'_> for Range {
            type Value = LayerRange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("layers as N or FIRST-LAST, as in 7 or 0-14")
            }

            fn visit_u64<E: de::Error>(self, layer: u64) -> Result<LayerRange, E> {
                let layer = usize::try_from(layer).map_err(E::custom)?;
                Ok(LayerRange {
                    first: layer,
                    last: layer,
                })
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<LayerRange, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_written_as_ranges() {
        for (layers, text) in [(&[0, 1, 2, 7][..], "0-2,7"), (&[4], "4"), (&[], "")] {
            let set = LayerSet::of(layers);
            assert_eq!(set.to_string(), text);
            assert_eq!(text.parse(), Ok(set));
        }
        assert!("1,x".parse::<LayerSet>().unwrap_err().contains("'x'"));
    }

    #[test]
    fn a_range_says_what_it_may_be() {
        let read = |text: &str| serde_yaml_ng::from_str::<LayerRange>(text);
        assert_eq!(read("3").unwrap(), LayerRange { first: 3, last: 3 });
        assert_eq!(read("0-3").unwrap(), LayerRange { first: 0, last: 3 });
        for wrong in ["[0, 1]", "-1", "{first: 0}", "1.5"] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains("N or FIRST-LAST"), "{wrong}: {error}");
        }
        assert!(read("3-1").unwrap_err().to_string().contains("'3-1'"));
    }
}
