//! A policy with its parameters, as text.

use super::{Params, Policies, Policy};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// A policy's name with parameters. As text it is `tova` or `snapkv:window=64:kernel=5`; parameters that are no scalars are
/// a YAML map, `name:{key: [a, b]}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicySpec {
    /// The policy's name.
    pub policy: String,
    /// The parameters; those left out take the policy's defaults.
    #[serde(default, skip_serializing_if = "Params::is_empty")]
    pub params: Params,
}

impl PolicySpec {
    /// A policy with its default parameters.
    #[must_use]
    pub fn named(policy: impl Into<String>) -> Self {
        Self {
            policy: policy.into(),
            params: Params::new(),
        }
    }

    /// Every listed policy that a paper describes, with its default parameters.
    #[must_use]
    pub fn published(policies: &Policies) -> Vec<Self> {
        let published = policies.iter().filter(|entry| entry.source.is_some());
        published.map(|entry| Self::named(&*entry.name)).collect()
    }

    /// Builds the policy.
    ///
    /// # Errors
    /// What [`Policies::build`] refuses, and the name [`Policies::KEEP`], since comparisons are between policies that
    /// evict.
    pub fn build(&self, policies: &Policies) -> Result<Arc<dyn Policy>> {
        match self.policy == Policies::KEEP {
            true => {
                let found = format!("'{}'", self.policy);
                Err(Error::plan("policies", found, "policies that evict"))
            }
            false => policies.build(&self.policy, &self.params),
        }
    }

    /// Reads one policy. Its parameters are checked by [`PolicySpec::build`].
    ///
    /// # Errors
    /// A name that `policies` does not have, and parameters in another form than `KEY=VALUE` or a YAML map.
    pub fn parse(text: &str, policies: &Policies) -> std::result::Result<Self, String> {
        let (name, params) = text.split_once(':').unwrap_or((text, ""));
        if name != Policies::KEEP && policies.get(name).is_none() {
            let known = policies.names().join(", ");
            return Err(format!("no policy '{name}'; allowed: {known}"));
        }
        let wrong =
            || format!("'{params}' are no parameters; allowed: KEY=VALUE:… or {{KEY: VALUE, …}}");
        let mut spec = Self::named(name);
        match params {
            "" => {}
            map if map.starts_with('{') => {
                spec.params = Params::from_yaml(map).map_err(|_| wrong())?;
            }
            list => {
                for part in list.split(':') {
                    let (key, value) = part.split_once('=').ok_or_else(wrong)?;
                    spec.params
                        .set_yaml(key.trim(), value)
                        .map_err(|_| wrong())?;
                }
            }
        }
        Ok(spec)
    }

    /// Reads several policies separated by commas; commas within brackets belong to a policy.
    ///
    /// # Errors
    /// What [`PolicySpec::parse`] refuses, and a policy given twice.
    pub fn parse_list(text: &str, policies: &Policies) -> std::result::Result<Vec<Self>, String> {
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
            let spec = Self::parse(part.trim(), policies)?;
            if all.contains(&spec) {
                return Err(format!("'{spec}' comes twice"));
            }
            all.push(spec);
        }
        Ok(all)
    }
}

impl fmt::Display for PolicySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.policy)?;
        if !self.params.are_scalars() {
            return write!(f, ":{}", self.params);
        }
        let mut params = self.params.texts();
        params.try_for_each(|(key, value)| write!(f, ":{key}={value}"))
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
            let spec = PolicySpec::parse(text, &Policies::default()).unwrap();
            assert_eq!(spec.to_string(), text);
        }
        let list = PolicySpec::parse_list("h2o, h2o:{a: [1, 2], b: 3},tova", &Policies::default());
        let list = list.unwrap();
        assert_eq!(list.len(), 3);
        assert_eq!(list[1].params.names().count(), 2);
    }

    #[test]
    fn wrong_text_is_refused_by_name() {
        let policies = Policies::default();
        let message = |text: &str| PolicySpec::parse_list(text, &policies).unwrap_err();
        assert!(message("h2o,tvoa").contains("'tvoa'"));
        assert!(message("h2o,").contains("''"));
        assert!(message("snapkv:window").contains("KEY=VALUE"));
        assert!(message("h2o,tova,h2o").contains("'h2o' comes twice"));
        let full = PolicySpec::parse("full", &policies).unwrap();
        let error = full.build(&policies).unwrap_err().to_string();
        assert!(error.contains("policies that evict"), "{error}");
    }

    #[test]
    fn the_default_is_every_published_policy() {
        let policies = Policies::default();
        let all = PolicySpec::published(&policies);
        assert!(all.len() >= 6 && all.iter().all(|spec| spec.build(&policies).is_ok()));
        assert!(!all.iter().any(|spec| spec.policy == "random"));
    }
}
