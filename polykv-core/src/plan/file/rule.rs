use crate::plan::LayerRange;
use crate::plan::{Rule, Share};
use crate::policy::{Params, Policies, Policy};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The eviction rule of a range of layers in one phase, as a plan file states it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FileRule {
    /// The layers that the rule is for.
    pub layers: LayerRange,
    /// The policy's name, or [`Policies::KEEP`] for layers that keep everything.
    pub policy: String,
    /// The policy's parameters; those left out take their defaults.
    #[serde(default, skip_serializing_if = "Params::is_empty")]
    pub params: Params,
    /// Entries per KV head for each of these layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// The part of the budget for each of these layers relative to the other layers. Without `tokens` and `share` it is 1.
    /// All rules of a phase that evict state `tokens`, or none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
}

impl FileRule {
    /// A rule without parameters, `tokens` and `share`.
    #[must_use]
    pub fn new(layers: LayerRange, policy: impl Into<String>) -> Self {
        Self {
            layers,
            policy: policy.into(),
            params: Params::new(),
            tokens: None,
            share: None,
        }
    }

    pub(super) fn of(layer: usize, rule: &Rule, policies: &Policies) -> Self {
        let range = LayerRange {
            first: layer,
            last: layer,
        };
        let Rule::Evict { policy, share } = rule else {
            return Self::new(range, Policies::KEEP);
        };
        let (tokens, share) = match *share {
            Share::Entries(entries) => (Some(entries), None),
            Share::Part(part) => (None, (part != 1.0).then_some(part)),
        };
        let defaults = policies.build(policy.name(), &Params::new());
        let defaults = defaults.map_or_else(|_| Params::new(), |policy| policy.params());
        Self {
            params: policy.params().without(&defaults),
            tokens,
            share,
            ..Self::new(range, policy.name())
        }
    }

    /// Whether these layers keep everything.
    pub fn keeps(&self) -> bool {
        self.policy == Policies::KEEP
    }

    pub(super) fn same_but_layers(&self, other: &Self) -> bool {
        let layers = other.layers;
        Self {
            layers,
            ..self.clone()
        } == *other
    }

    pub(super) fn build(
        &self,
        policies: &Policies,
        field: impl Fn(&str) -> String,
    ) -> Result<Rule> {
        if self.tokens.is_some() && self.share.is_some() {
            let found = "given beside share";
            return Err(Error::plan(field("tokens"), found, "tokens or share"));
        }
        if let Some(share) = self.share
            && !(share.is_finite() && share > 0.0 && share <= 1e6)
        {
            return Err(Error::plan(field("share"), share, "above 0, at most 1e6"));
        }
        if self.keeps() {
            let given = [
                ("tokens", self.tokens.is_some(), "no budget"),
                ("share", self.share.is_some(), "no share"),
                ("params", !self.params.is_empty(), "no parameters"),
            ];
            return match given.into_iter().find(|(_, given, _)| *given) {
                Some((name, _, allowed)) => {
                    let found = format!("given for policy {}", self.policy);
                    Err(Error::plan(field(name), found, allowed))
                }
                None => Ok(Rule::Keep),
            };
        }
        let policy: Arc<dyn Policy> = policies.build(&self.policy, &self.params)?;
        if let Some(tokens) = self.tokens {
            let least = policy.protect(tokens).count().max(1);
            if tokens < least {
                let allowed = format!("at least {least}, what policy {} protects", self.policy);
                return Err(Error::budget(field("tokens"), tokens, allowed));
            }
        }
        let share = match self.tokens {
            Some(tokens) => Share::Entries(tokens),
            None => Share::Part(self.share.unwrap_or(1.0)),
        };
        Ok(Rule::Evict { policy, share })
    }
}
