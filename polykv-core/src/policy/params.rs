//! The parameters of a policy as a plan file states them.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_yaml_ng::Value;
use std::collections::BTreeMap;
use std::fmt;

/// Parameters by name. Values are numbers, truth values, text, and lists and maps of these, with text as keys.
///
/// As text, parameters are a YAML map in one line: `{kernel: 5, window: 64}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, Value>", into = "BTreeMap<String, Value>")]
pub struct Params(BTreeMap<String, Value>);

impl TryFrom<BTreeMap<String, Value>> for Params {
    type Error = String;

    fn try_from(values: BTreeMap<String, Value>) -> Result<Self, String> {
        values.values().try_for_each(check)?;
        Ok(Self(values))
    }
}

impl From<Params> for BTreeMap<String, Value> {
    fn from(params: Params) -> Self {
        params.0
    }
}

fn by_name(map: serde_yaml_ng::Mapping) -> Result<BTreeMap<String, Value>, String> {
    let named = |(key, value): (Value, Value)| match key {
        Value::String(name) => Ok((name, value)),
        _ => Err("parameters with names".to_string()),
    };
    map.into_iter().map(named).collect()
}

/// # Errors
/// What YAML can state and a plan in JSON cannot: tags, and keys that are no text.
fn check(value: &Value) -> Result<(), String> {
    match value {
        Value::Tagged(tagged) => Err(format!("the tag {} in parameters", tagged.tag)),
        Value::Sequence(items) => items.iter().try_for_each(check),
        Value::Mapping(map) => map.iter().try_for_each(|(key, value)| match key {
            Value::String(_) => check(value),
            _ => Err(format!(
                "the key {} in parameters, which is no text",
                flow(key)
            )),
        }),
        _ => Ok(()),
    }
}

impl Params {
    /// No parameters: the policy takes its defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The fields of a serialisable policy as parameters.
    #[must_use]
    pub fn of(fields: &impl Serialize) -> Self {
        match serde_yaml_ng::to_value(fields) {
            Ok(Value::Mapping(map)) => by_name(map).map(Self).unwrap_or_default(),
            _ => Self::new(),
        }
    }

    /// Reads a YAML map such as `{window: 32}`; empty text means no parameters.
    ///
    /// # Errors
    /// Text that is no YAML map with text as keys; tags.
    pub fn from_yaml(text: &str) -> Result<Self, String> {
        match serde_yaml_ng::from_str(text) {
            Ok(Value::Mapping(map)) => Self::from_map(map),
            Ok(Value::Null) => Ok(Self::new()),
            Ok(_) => Err("a YAML map of parameters".into()),
            Err(error) => Err(format!("a YAML map of parameters ({error})")),
        }
    }

    /// These parameters with one added, or with another value for it.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Serialize) -> Self {
        self.set(name, value);
        self
    }

    /// Adds a parameter or changes its value. A value that YAML cannot state becomes null.
    pub fn set(&mut self, name: &str, value: impl Serialize) {
        let value = serde_yaml_ng::to_value(value).unwrap_or(Value::Null);
        self.0.insert(name.to_string(), value);
    }

    /// Adds a parameter whose value is given as YAML text, as on a command line.
    ///
    /// # Errors
    /// Text that is no YAML; tags, and keys that are no text.
    pub fn set_yaml(&mut self, name: &str, text: &str) -> Result<(), String> {
        let value: Value = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
        check(&value)?;
        self.0.insert(name.to_string(), value);
        Ok(())
    }

    /// The value of a parameter, if it is present and of this type.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_yaml_ng::from_value(self.0.get(name)?.clone()).ok()
    }

    /// These parameters without those that `others` has with the same value.
    #[must_use]
    pub fn without(mut self, others: &Self) -> Self {
        self.0
            .retain(|name, value| others.0.get(name) != Some(value));
        self
    }

    /// Whether there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Each name with its value as YAML in one line.
    pub fn texts(&self) -> impl Iterator<Item = (&str, String)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), flow(value)))
    }

    /// Each name with its value as a command line states it. Lists of policies with no parameters but a share have the short
    /// form `tova:0.5,h2o:0.5`.
    pub fn settings(&self) -> impl Iterator<Item = (&str, String)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), short(value)))
    }

    /// Whether every value is a scalar, which the form `name=value` can state.
    pub fn are_scalars(&self) -> bool {
        let nested = |value: &Value| matches!(value, Value::Sequence(_) | Value::Mapping(_));
        !self.0.values().any(nested)
    }

    /// A value of a deserialisable type with these parameters as fields.
    ///
    /// # Errors
    /// What serde refuses, such as an unknown parameter or a value of another type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, String> {
        let pairs = self.0.iter();
        let map = pairs.map(|(name, value)| (Value::String(name.clone()), value.clone()));
        serde_yaml_ng::from_value(Value::Mapping(map.collect())).map_err(|error| error.to_string())
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    pub(super) fn from_map(map: serde_yaml_ng::Mapping) -> Result<Self, String> {
        Self::try_from(by_name(map)?)
    }

    pub(super) fn to_map(&self) -> serde_yaml_ng::Mapping {
        let pairs = self.0.iter();
        pairs
            .map(|(name, value)| (Value::String(name.clone()), value.clone()))
            .collect()
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&flow(&Value::Mapping(self.to_map())))
    }
}

/// A value as YAML in one line.
fn flow(value: &Value) -> String {
    let joined = |parts: Vec<String>| parts.join(", ");
    match value {
        Value::Sequence(list) => format!("[{}]", joined(list.iter().map(flow).collect())),
        Value::Mapping(map) => {
            let pairs = map.iter().map(|(k, v)| format!("{}: {}", flow(k), flow(v)));
            format!("{{{}}}", joined(pairs.collect()))
        }
        Value::String(text) => text.clone(),
        // Scalars print in one line.
        other => serde_yaml_ng::to_string(other)
            .unwrap_or_default()
            .trim()
            .to_string(),
    }
}

/// A value in one line, policies with nothing but a share in their short form.
fn short(value: &Value) -> String {
    let member = |value: &Value| {
        let map = value.as_mapping().filter(|map| map.len() == 2)?;
        let (policy, share) = (map.get("policy")?, map.get("share")?);
        Some(format!("{}:{}", flow(policy), flow(share)))
    };
    let Value::Sequence(list) = value else {
        return flow(value);
    };
    let members: Option<Vec<String>> = list.iter().map(member).collect();
    members.map_or_else(|| flow(value), |members| members.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_and_written_as_one_line() {
        let params = Params::from_yaml("{window: 64, pool: avg, list: [1, {a: b}]}").unwrap();
        assert_eq!(
            params.to_string(),
            "{list: [1, {a: b}], pool: avg, window: 64}"
        );
        assert_eq!(params.get::<usize>("window"), Some(64));
        assert_eq!(params.get::<usize>("pool"), None);
        assert!(!params.are_scalars());
        assert_eq!(Params::new().with("window", 64).to_string(), "{window: 64}");
        assert!(Params::from_yaml("{1: 2}").is_err() && Params::from_yaml("[1]").is_err());
        assert_eq!(Params::from_yaml(""), Ok(Params::new()));
        // What could not be written again.
        for text in [
            "{a: !b c}",
            "{a: [{!b c: d}]}",
            "{a: {1: 2}}",
            "{a: [{[b]: c}]}",
        ] {
            assert!(Params::from_yaml(text).is_err(), "{text}");
            assert!(serde_yaml_ng::from_str::<Params>(text).is_err(), "{text}");
        }
        assert!(Params::new().set_yaml("a", "!b c").is_err());
        let short = |text: &str| -> String {
            let params = Params::from_yaml(text).unwrap();
            params
                .settings()
                .map(|(name, value)| format!("{name}={value}"))
                .collect()
        };
        assert_eq!(
            short("{p: [{policy: tova, share: 1}, {policy: h2o, share: 0.5}]}"),
            "p=tova:1,h2o:0.5"
        );
        assert_eq!(
            short("{p: [{policy: tova, share: 1, a: 2}]}"),
            "p=[{policy: tova, share: 1, a: 2}]"
        );
    }
}
