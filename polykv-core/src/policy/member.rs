//! Policies inside policies.

use super::{Appended, HeadBudgets, Params, Phase, Policies, Policy, State};
use crate::Result;
use crate::ops::AttentionBlock;
use serde_yaml_ng::Value;
use std::sync::Arc;

/// A policy that another one is made of. In a plan file it is its name, or a map of `policy`, `share` and its
/// parameters; on the command line `NAME` or `NAME:SHARE`.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub policy: Arc<dyn Policy>,
    pub share: f64,
}

impl Member {
    /// # Errors
    /// Names what is wrong: anything but a policy that does not merge, with parameters of its own.
    pub fn parse(value: &Value, policies: &Policies) -> std::result::Result<Self, String> {
        let (name, share, params) = match value {
            Value::String(text) => match text.split_once(':') {
                Some((name, share)) => {
                    let wrong = |_| format!("share of {name} a number (found '{share}')");
                    let share = share.trim().parse().map_err(wrong)?;
                    (name.trim().to_string(), share, Params::new())
                }
                None => (text.trim().to_string(), 1.0, Params::new()),
            },
            Value::Mapping(map) => {
                let mut params = Params::from_map(map.clone())?;
                let name = params.take("policy");
                let name = name.as_ref().and_then(Value::as_str).map(String::from);
                let share = match params.take("share") {
                    Some(share) => share.as_f64().ok_or("share a number")?,
                    None => 1.0,
                };
                let name = name.ok_or("a map with the name under 'policy'")?;
                (name, share, params)
            }
            _ => return Err("a policy's name, or a map of policy, share and parameters".into()),
        };
        if name == Policies::KEEP {
            return Err(format!("policies that evict (found {name})"));
        }
        let policy = policies
            .build(&name, &params)
            .map_err(|error| error.at("inside it").to_string())?;
        if Phase::BOTH.into_iter().any(|phase| policy.merges(phase)) {
            return Err(format!(
                "policies that evict without merging (found {name})"
            ));
        }
        if policy.heads() != HeadBudgets::Even {
            return Err(format!(
                "policies that treat all heads alike (found {name})"
            ));
        }
        if !(share > 0.0 && share <= 1e6) {
            return Err(format!(
                "share of {name} above 0, at most 1e6 (found {share})"
            ));
        }
        Ok(Self { policy, share })
    }

    /// The map that a plan file holds: policy, share if `with_share`, and parameters.
    pub fn to_value(&self, with_share: bool) -> Value {
        let mut map = serde_yaml_ng::Mapping::new();
        map.insert("policy".into(), self.policy.name().into());
        if with_share {
            map.insert("share".into(), self.share.into());
        }
        map.extend(self.policy.params().to_map());
        Value::Mapping(map)
    }
}

/// [`Policy::append`] of several policies, whose states are the members of one.
pub(super) fn append_each<'a>(
    policies: impl ExactSizeIterator<Item = &'a dyn Policy>,
    state: &mut State,
    appended: &Appended,
) -> Result<()> {
    let members = &mut state.members;
    members.resize_with(policies.len(), State::default);
    let mut both = policies.zip(members);
    both.try_for_each(|(policy, state)| policy.append(state, appended))
}

/// [`Policy::observe`] of those that ask for it.
pub(super) fn observe_each<'a>(
    policies: impl Iterator<Item = &'a dyn Policy>,
    state: &mut State,
    block: &AttentionBlock,
) -> Result<()> {
    let both = policies.zip(&mut state.members);
    let mut asking = both.filter(|(policy, _)| policy.needs().attention);
    asking.try_for_each(|(policy, state)| policy.observe(state, block))
}

/// [`Policy::observe_repetition`] of those that ask for it.
pub(super) fn observe_repetition_each<'a>(
    policies: impl Iterator<Item = &'a dyn Policy>,
    state: &mut State,
    block: &AttentionBlock,
) -> Result<()> {
    let both = policies.zip(&mut state.members);
    let mut asking = both.filter(|(policy, _)| policy.needs().repetition);
    asking.try_for_each(|(policy, state)| policy.observe_repetition(state, block))
}

/// Implements [`Policy`] for a type whose field `base` is the member that scores: only its parameters and what it makes of the
/// budget are its own.
macro_rules! through_base {
    ($type:ident, |$policy:ident| { params: $params:expr, heads: $heads:expr, }) => {
        impl $crate::Policy for $type {
            fn name(&self) -> &str {
                <Self as $crate::policy::NamedPolicy>::NAME
            }

            fn params(&self) -> $crate::policy::Params {
                let $policy = self;
                $params
            }

            fn heads(&self) -> $crate::policy::HeadBudgets {
                let $policy = self;
                $heads
            }

            fn needs(&self) -> $crate::policy::Needs {
                self.base.policy.needs()
            }

            fn bytes_per_entry(&self, shape: $crate::LayerShape) -> usize {
                self.base.policy.bytes_per_entry(shape)
            }

            fn protect(&self, budget: usize) -> $crate::policy::Protect {
                self.base.policy.protect(budget)
            }

            fn same_for_all_heads(&self) -> bool {
                let even = self.heads() == $crate::policy::HeadBudgets::Even;
                even && self.base.policy.same_for_all_heads()
            }

            fn append(
                &self,
                state: &mut $crate::policy::State,
                appended: &$crate::policy::Appended,
            ) -> $crate::Result<()> {
                self.base.policy.append(state, appended)
            }

            fn observe(
                &self,
                state: &mut $crate::policy::State,
                block: &$crate::ops::AttentionBlock,
            ) -> $crate::Result<()> {
                self.base.policy.observe(state, block)
            }

            fn observe_repetition(
                &self,
                state: &mut $crate::policy::State,
                block: &$crate::ops::AttentionBlock,
            ) -> $crate::Result<()> {
                self.base.policy.observe_repetition(state, block)
            }

            fn score(
                &self,
                state: &$crate::policy::State,
                view: &$crate::policy::LayerView<'_>,
            ) -> $crate::Result<burn::tensor::Tensor<3>> {
                self.base.policy.score(state, view)
            }

            fn step_scores(
                &self,
                state: &$crate::policy::State,
                view: &$crate::policy::LayerView<'_>,
            ) -> $crate::Result<$crate::policy::StepScores> {
                self.base.policy.step_scores(state, view)
            }

            fn token_rule(&self) -> Option<$crate::policy::TokenRule> {
                self.base.policy.token_rule()
            }

            fn accepts(
                &self,
                state: &$crate::policy::State,
                like: &$crate::policy::State,
                seen: usize,
            ) -> std::result::Result<(), String> {
                self.base.policy.accepts(state, like, seen)
            }

            // Steps would cut every head alike.
            fn can_cut_in_steps(&self) -> bool {
                false
            }

            #[cfg(feature = "testing")]
            fn oracle(&self) -> Option<&dyn $crate::testing::Oracle> {
                self.base.policy.oracle()
            }
        }
    };
}

pub(super) use through_base;
