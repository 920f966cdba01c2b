//! Values with names: lists come from the registries, so that a new policy needs no line here.

use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use polykv::allocate::{self, Basis};
use polykv::models::config::SHAPES;
use polykv::models::hub::{self, ALIASES, Alias, Repo};
use polykv::{Phase, Storage, policy};
use serde_yaml_ng::Value;
use std::str::FromStr;

/// The policies, with their summaries as help.
pub fn policies() -> PossibleValuesParser {
    let value = |entry: &policy::Entry| PossibleValue::new(entry.name).help(entry.summary);
    PossibleValuesParser::new(policy::REGISTRY.iter().map(value))
}

/// The policies beside `full`, for commands that compare with it anyway.
pub fn evicting() -> PossibleValuesParser {
    let evicts = |entry: &&policy::Entry| entry.name != "full";
    let value = |entry: &policy::Entry| PossibleValue::new(entry.name).help(entry.summary);
    PossibleValuesParser::new(policy::REGISTRY.iter().filter(evicts).map(value))
}

/// All allocators.
pub fn allocators() -> PossibleValuesParser {
    PossibleValuesParser::new(allocate::REGISTRY.iter().map(|(name, _)| *name))
}

/// The allocators that need no calibration.
pub fn ready_allocators() -> PossibleValuesParser {
    let all = allocate::REGISTRY.iter();
    let ready = all.filter(|(_, allocator)| allocator.basis() != Basis::Calibration);
    PossibleValuesParser::new(ready.map(|(name, _)| *name))
}

/// What can be fetched.
#[derive(Clone, Debug)]
pub enum Pullable {
    BuiltIn(&'static Alias),
    Hub(Repo),
}

impl FromStr for Pullable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let built_in = hub::alias(text).map(Self::BuiltIn);
        built_in
            .or_else(|| Repo::parse(text).map(Self::Hub))
            .ok_or_else(|| {
                let names: Vec<_> = ALIASES.iter().map(|alias| alias.name).collect();
                let names = names.join(", ");
                format!("no such model; allowed: {names}, ORG/NAME, ORG/NAME:FILE.gguf")
            })
    }
}

/// The published shapes.
pub fn shapes() -> PossibleValuesParser {
    PossibleValuesParser::new(SHAPES.iter().map(|(name, _)| *name))
}

/// A count that may not be zero.
pub fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// Number formats by name; which of them work is for the model and the device to say. `auto` is f32.
pub fn dtypes() -> impl TypedValueParser<Value = Storage> {
    let names = ["auto"].into_iter().chain(Storage::ALL.map(Storage::name));
    PossibleValuesParser::new(names).map(|name| name.parse().unwrap_or_default())
}

/// The phases in which a policy evicts.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Phases {
    Prefill,
    Decode,
    #[default]
    Both,
}

impl Phases {
    /// The phases one by one.
    pub fn list(self) -> &'static [Phase] {
        match self {
            Self::Prefill => &[Phase::Prefill],
            Self::Decode => &[Phase::Decode],
            Self::Both => &[Phase::Prefill, Phase::Decode],
        }
    }
}

/// `key=value`, the value a YAML scalar as in a plan file.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    pub key: String,
    pub value: Value,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no setting; allowed: KEY=VALUE, as in window=32");
        let (key, value) = text.split_once('=').ok_or_else(wrong)?;
        let value: Value = serde_yaml_ng::from_str(value).map_err(|_| wrong())?;
        let scalar = matches!(value, Value::Bool(_) | Value::Number(_) | Value::String(_));
        match scalar && !key.trim().is_empty() {
            true => Ok(Self {
                key: key.trim().to_string(),
                value,
            }),
            false => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_yaml_scalars() {
        let value = |text: &str| text.parse::<Setting>().map(|setting| setting.value);
        assert_eq!(value("window=32"), Ok(Value::from(32)));
        assert_eq!(value("recent_fraction=0.25"), Ok(Value::from(0.25)));
        assert_eq!(value("normalize=true"), Ok(Value::from(true)));
        assert_eq!(value("pool=max"), Ok(Value::from("max")));
        for wrong in [
            "window",
            "=3",
            "window=",
            "window=[1]",
            "window={a: 1}",
            "a=: :",
        ] {
            assert!(value(wrong).unwrap_err().contains("KEY=VALUE"), "{wrong}");
        }
    }
}
