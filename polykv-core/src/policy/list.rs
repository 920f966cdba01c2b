//! Policies by name.

use super::{Params, Policy, shipped};
use crate::{Error, Result};
use std::fmt;
use std::sync::Arc;

/// A policy that plan files and command lines can name, see [`Policies::register`].
pub trait NamedPolicy: Policy + Sized + 'static {
    /// The name. Lower case with hyphens, by convention.
    const NAME: &'static str;

    /// What the policy keeps, in a few words, for help texts and tables.
    const SUMMARY: &'static str;

    /// The publication that describes the policy, if there is one.
    const SOURCE: Option<&'static str>;

    /// Sets of parameters that the test harness tries, as YAML maps. With each of them the policy should evict some of a
    /// dozen entries.
    const VARIANTS: &'static [&'static str] = &["{}"];

    /// Builds the policy with these parameters; parameters left out take their defaults. [`Params::read`] does this for a
    /// type that implements serde's `Deserialize`. A policy that is made of others looks them up in `policies`.
    ///
    /// # Errors
    /// A parameter that is unknown, of another type or out of range. The text says what is allowed.
    fn from_params(params: &Params, policies: &Policies) -> std::result::Result<Self, String>;
}

type Build =
    dyn Fn(&Params, &Policies) -> std::result::Result<Arc<dyn Policy>, String> + Send + Sync;

/// A policy of a list: its name, its description, and how it is built.
#[derive(Clone)]
#[non_exhaustive]
pub struct PolicyEntry {
    /// See [`NamedPolicy::NAME`].
    pub name: String,
    /// See [`NamedPolicy::SUMMARY`].
    pub summary: String,
    /// See [`NamedPolicy::SOURCE`].
    pub source: Option<String>,
    /// See [`NamedPolicy::VARIANTS`].
    pub variants: Vec<String>,
    build: Arc<Build>,
}

impl PolicyEntry {
    /// The entry for policies of type `P`.
    #[must_use]
    pub fn of<P: NamedPolicy>() -> Self {
        Self {
            name: P::NAME.into(),
            summary: P::SUMMARY.into(),
            source: P::SOURCE.map(String::from),
            variants: P::VARIANTS.iter().map(ToString::to_string).collect(),
            build: Arc::new(|params, policies| Ok(Arc::new(P::from_params(params, policies)?))),
        }
    }
}

impl fmt::Debug for PolicyEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyEntry")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Policies by name. The default list has every policy of this crate; [`Policies::register`] adds others.
#[derive(Clone, Debug)]
pub struct Policies(Vec<PolicyEntry>);

impl Default for Policies {
    fn default() -> Self {
        Self(shipped())
    }
}

impl Policies {
    /// The word that stands in place of a policy's name where a layer keeps everything. No policy has this name.
    pub const KEEP: &'static str = "full";

    /// A list without any policy.
    #[must_use]
    pub fn empty() -> Self {
        Self(Vec::new())
    }

    /// Adds a policy under its name.
    ///
    /// # Errors
    /// A name that is taken, empty, or [`Policies::KEEP`].
    pub fn register<P: NamedPolicy>(&mut self) -> Result<()> {
        if P::NAME.is_empty() || P::NAME == Self::KEEP || self.get(P::NAME).is_some() {
            let found = format!("'{}'", P::NAME);
            return Err(Error::plan(
                "name of a policy",
                found,
                "a name that is free",
            ));
        }
        self.0.push(PolicyEntry::of::<P>());
        Ok(())
    }

    /// Every policy, in the order in which they joined.
    pub fn iter(&self) -> impl Iterator<Item = &PolicyEntry> {
        self.0.iter()
    }

    /// The entry of the policy that has this name.
    pub fn get(&self, name: &str) -> Option<&PolicyEntry> {
        self.0.iter().find(|entry| entry.name == name)
    }

    /// The names of all policies, in the order in which they joined.
    pub fn names(&self) -> Vec<&str> {
        self.0.iter().map(|entry| entry.name.as_str()).collect()
    }

    /// Builds the policy that has this name; parameters left out take the policy's defaults.
    ///
    /// # Errors
    /// An unknown name (listing the known ones), an unknown parameter, and a value out of range.
    pub fn build(&self, name: &str, params: &Params) -> Result<Arc<dyn Policy>> {
        let entry = self.get(name).ok_or_else(|| {
            let allowed = format!("{}, {}", Self::KEEP, self.names().join(", "));
            Error::plan("policy", format!("'{name}'"), allowed)
        })?;
        (entry.build)(params, self)
            .map_err(|reason| Error::plan(format!("parameters of policy {name}"), params, reason))
    }
}
