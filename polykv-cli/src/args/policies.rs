//! Policies as they are typed: a name, and parameters behind a colon if they differ from the defaults.

use crate::registry::registry;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Command};
use polykv::policy::{Policies, PolicyEntry, PolicySpec};
use std::ffi::OsStr;
use std::str::FromStr;

/// One policy, or the word for keeping everything: `tova`, `snapkv:window=16`, `h2o:{normalize: true}`.
#[derive(Clone)]
pub struct OnePolicy(PossibleValuesParser);

impl OnePolicy {
    /// The names come from the registry, so that a new policy needs no line here.
    pub fn parser() -> Self {
        let keep = PossibleValue::new(Policies::KEEP).help("everything");
        let names = registry().policies.iter().map(named);
        Self(PossibleValuesParser::new(
            std::iter::once(keep).chain(names),
        ))
    }
}

fn named(entry: &'static PolicyEntry) -> PossibleValue {
    PossibleValue::new(entry.name.as_str()).help(entry.summary.as_str())
}

impl TypedValueParser for OnePolicy {
    type Value = PolicySpec;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<PolicySpec, clap::Error> {
        let text = value.to_string_lossy();
        let name = text.split(':').next().unwrap_or_default();
        // For its message, which suggests what is close.
        self.0.parse_ref(command, arg, OsStr::new(name))?;
        PolicySpec::parse(&text, &registry().policies).map_err(|reason| {
            let arg = arg.map(ToString::to_string).unwrap_or_default();
            let text = format!("invalid value '{text}' for '{arg}': {reason}\n");
            command.clone().error(ErrorKind::ValueValidation, text)
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        self.0.possible_values()
    }
}

/// Several policies that evict, separated by commas: `h2o,snapkv:window=64,h2o:{normalize: true}`.
#[derive(Clone, Debug)]
pub struct PolicyList(pub Vec<PolicySpec>);

impl FromStr for PolicyList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let list = PolicySpec::parse_list(text, &registry().policies)?;
        match list.iter().any(|spec| spec.policy == Policies::KEEP) {
            true => Err(format!(
                "'{}' does not evict; allowed: {}",
                Policies::KEEP,
                registry().policies.names().join(", ")
            )),
            false => Ok(Self(list)),
        }
    }
}
