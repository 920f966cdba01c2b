use crate::policy::{self, Params, Policy};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_yaml_ng::Value;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A policy with parameters: what a route may choose. As text: `tova`, `snapkv:window=64:kernel=5`, or with a YAML map for
/// parameters that are no scalars, `name:{key: [a, b]}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    pub policy: String,
    #[serde(default, skip_serializing_if = "Params::is_empty")]
    pub params: Params,
}

impl Candidate {
    /// # Errors
    /// What [`policy::build`] refuses, and a policy that keeps everything: it would win every comparison and pay for it
    /// nowhere.
    pub fn build(&self, place: &str) -> Result<Arc<dyn Policy>> {
        let policy = policy::build(place, &self.policy, &self.params)?;
        match policy.evicts() {
            true => Ok(policy),
            false => {
                let found = format!("'{}'", self.policy);
                Err(Error::invalid(
                    place,
                    "policies",
                    found,
                    "policies that evict",
                ))
            }
        }
    }

    /// Every policy of the registry that a paper describes, with its default parameters.
    pub fn all() -> Vec<Self> {
        let published = policy::REGISTRY.iter().filter(|entry| entry.source != "-");
        published.map(|entry| Self::named(entry.name)).collect()
    }

    fn named(policy: &str) -> Self {
        Self {
            policy: policy.to_string(),
            params: Params::new(),
        }
    }

    /// Candidates separated by commas; commas within brackets belong to a candidate.
    ///
    /// # Errors
    /// Text that is no candidate, and a candidate given twice.
    pub fn parse_list(text: &str) -> std::result::Result<Vec<Self>, String> {
        let mut depth = 0;
        let parts = text.split(|c| {
            match c {
                '{' | '[' => depth += 1,
                '}' | ']' => depth -= 1,
                _ => {}
            }
            c == ',' && depth == 0
        });
        let mut all: Vec<Self> = Vec::new();
        for part in parts {
            let candidate: Self = part.trim().parse()?;
            if all.contains(&candidate) {
                return Err(format!("'{candidate}' comes twice"));
            }
            all.push(candidate);
        }
        Ok(all)
    }
}

impl FromStr for Candidate {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (name, params) = text.split_once(':').unwrap_or((text, ""));
        if !policy::names().contains(&name) {
            let known = policy::names().join(", ");
            return Err(format!("no policy '{name}'; allowed: {known}"));
        }
        let wrong =
            || format!("'{params}' are no parameters; allowed: KEY=VALUE:… or {{KEY: VALUE, …}}");
        let params = match params {
            "" => Params::new(),
            map if map.starts_with('{') => serde_yaml_ng::from_str(map).map_err(|_| wrong())?,
            list => list
                .split(':')
                .map(|part| {
                    let (key, value) = part.split_once('=').ok_or_else(wrong)?;
                    let value: Value = serde_yaml_ng::from_str(value).map_err(|_| wrong())?;
                    Ok((key.trim().to_string(), value))
                })
                .collect::<std::result::Result<_, String>>()?,
        };
        Ok(Self {
            policy: name.to_string(),
            params,
        })
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.policy)?;
        let nested = |value: &Value| matches!(value, Value::Sequence(_) | Value::Mapping(_));
        if self.params.values().any(nested) {
            let map = self
                .params
                .iter()
                .map(|(k, v)| (Value::from(k.as_str()), v.clone()));
            return write!(f, ":{}", flow(&Value::Mapping(map.collect())));
        }
        let mut params = self.params.iter();
        params.try_for_each(|(key, value)| write!(f, ":{key}={}", flow(value)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for text in [
            "tova",
            "snapkv:kernel=5:window=64",
            "h2o:{a: [tova, h2o], b: [0.5, 0.25]}",
        ] {
            let candidate: Candidate = text.parse().unwrap();
            assert_eq!(candidate.to_string(), text);
        }
        let list = Candidate::parse_list("h2o, h2o:{a: [1, 2], b: 3},tova").unwrap();
        assert_eq!(list.len(), 3);
        assert_eq!(list[1].params.len(), 2);
    }

    #[test]
    fn wrong_text_is_refused_by_name() {
        let message = |text: &str| Candidate::parse_list(text).unwrap_err();
        assert!(message("h2o,tvoa").contains("'tvoa'"));
        assert!(message("h2o,").contains("''"));
        assert!(message("snapkv:window").contains("KEY=VALUE"));
        assert!(message("h2o,tova,h2o").contains("'h2o' comes twice"));
        let full: Candidate = "full".parse().unwrap();
        assert!(
            full.build("test")
                .unwrap_err()
                .to_string()
                .contains("policies that evict")
        );
    }

    #[test]
    fn the_default_is_every_published_policy() {
        let all = Candidate::all();
        assert!(all.len() >= 6 && all.iter().all(|own| own.build("test").is_ok()));
        assert!(!all.iter().any(|own| own.policy == "random"));
    }
}
