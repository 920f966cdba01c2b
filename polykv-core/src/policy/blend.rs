use super::member::{Member, append_each, observe_each, observe_repetition_each};
use super::stages::Stages;
use super::{Appended, LayerView, NamedPolicy, Needs, Params, Policies, Policy, Protect, State};
use crate::Result;
use crate::apportion::largest_remainder;
use crate::ops::{AttentionBlock, Protected};
use crate::shape::LayerShape;
use burn::tensor::Tensor;
use serde::Deserialize;
use serde_yaml_ng::Value;

/// Several policies, each with a share of the budget. They choose one after the other: each takes its part of the budget
/// from the entries that the earlier ones left, first those that it protects, then those with its highest scores. The parts
/// are in proportion to the shares and sum to the budget. Entries that a member protects always stay and are charged to the
/// member that takes them; spans that the caller protects are charged to the last members.
///
/// In a plan file `policies` is a list of maps `{policy: tova, share: 0.5, ...}` with the parameters of each policy, or text
/// in the short form `tova:0.5,h2o:0.5`.
///
/// During decode every member chooses anew at every step.
#[derive(Clone, Debug)]
pub struct Blend {
    members: Vec<Member>,
}

/// The most members of a blend: each one is a pass over the entries at every step.
const MOST: usize = 16;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    #[serde(default = "halves")]
    policies: Value,
}

fn halves() -> Value {
    "h2o:0.5,tova:0.5".into()
}

impl NamedPolicy for Blend {
    const NAME: &'static str = "blend";
    const SUMMARY: &'static str =
        "several policies, each with its share of the budget: policies=tova:0.5,h2o:0.5";
    const SOURCE: Option<&'static str> = None;
    const VARIANTS: &'static [&'static str] = &[
        "{}",
        "{policies: [{policy: tova, share: 1}, {policy: snapkv, share: 2, window: 4, kernel: 3}, {policy: knorm, share: 1}]}",
        "{policies: 'streaming-llm:2,tova:3'}",
    ];

    fn from_params(params: &Params, policies: &Policies) -> std::result::Result<Self, String> {
        let text: Text = params.read()?;
        let listed: Vec<Value> = match text.policies {
            Value::String(list) => list.split(',').map(Value::from).collect(),
            Value::Sequence(list) => list,
            _ => return Err("policies a list, or text as in tova:0.5,h2o:0.5".into()),
        };
        if !(2..=MOST).contains(&listed.len()) {
            let found = listed.len();
            return Err(format!("policies 2 to {MOST} of them (found {found})"));
        }
        let members = listed.iter().enumerate().map(|(i, value)| {
            Member::parse(value, policies).map_err(|reason| format!("policies[{i}]: {reason}"))
        });
        Ok(Self {
            members: members.collect::<std::result::Result<_, _>>()?,
        })
    }
}

impl Blend {
    fn policies(&self) -> impl ExactSizeIterator<Item = &dyn Policy> {
        self.members.iter().map(|member| &*member.policy as &dyn Policy)
    }

    /// Each member with its part of a budget, in entries.
    fn parts(&self, budget: usize) -> impl Iterator<Item = (&Member, usize)> {
        let shares: Vec<f64> = self.members.iter().map(|member| member.share).collect();
        self.members.iter().zip(largest_remainder(budget, &shares))
    }
}

impl Policy for Blend {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        let members = self.members.iter().map(|member| member.to_value(true));
        Params::new().with("policies", Value::Sequence(members.collect()))
    }

    fn needs(&self) -> Needs {
        let members = self.members.iter();
        members.fold(Needs::default(), |all, member| all.union(member.policy.needs()))
    }

    fn bytes_per_entry(&self, shape: LayerShape) -> usize {
        let members = self.members.iter();
        members.fold(0, |all, member| {
            all.saturating_add(member.policy.bytes_per_entry(shape))
        })
    }

    fn protect(&self, budget: usize) -> Protect {
        let parts = self.parts(budget);
        let protects = parts.map(|(member, part)| member.policy.protect(part));
        protects.fold(Protect::default(), |all, protect| Protect {
            sinks: all.sinks.max(protect.sinks),
            recent: all.recent.max(protect.recent),
        })
    }

    fn same_for_all_heads(&self) -> bool {
        self.members
            .iter()
            .all(|member| member.policy.same_for_all_heads())
    }

    fn append(&self, state: &mut State, appended: &Appended) -> Result<()> {
        append_each(self.policies(), state, appended)
    }

    fn observe(&self, state: &mut State, block: &AttentionBlock) -> Result<()> {
        observe_each(self.policies(), state, block)
    }

    fn observe_repetition(&self, state: &mut State, block: &AttentionBlock) -> Result<()> {
        observe_repetition_each(self.policies(), state, block)
    }

    fn can_cut_in_steps(&self) -> bool {
        false
    }

    fn score(&self, state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        let parts: Vec<(&Member, usize)> = self.parts(view.budget).collect();
        let scored = |index: usize| -> Result<(Tensor<3>, Protected<'_>)> {
            let (member, part) = parts[index];
            let protected = Protected {
                protect: member.policy.protect(part),
                spans: &[],
                seen: view.seen,
                oldest: view.protected.oldest,
            };
            let view = LayerView {
                budget: part,
                protected,
                ..view.clone()
            };
            let scores = member.policy.score(&state.members[index], &view)?;
            Ok((scores, protected))
        };
        let last = parts.len() - 1;
        let mut stages = Stages::default();
        for (index, (_, part)) in parts.iter().enumerate().take(last) {
            let (scores, protected) = scored(index)?;
            let taken = stages.taken();
            let best = view.best(scores.clone(), protected, taken.as_ref(), *part);
            stages.push(best, scores);
        }
        Ok(stages.finish(scored(last)?.0))
    }

    #[cfg(feature = "testing")]
    fn oracle(&self) -> Option<&dyn crate::testing::Oracle> {
        let all = self.members.iter().all(|member| member.policy.oracle().is_some());
        all.then_some(self as &dyn crate::testing::Oracle)
    }
}

#[cfg(feature = "testing")]
mod oracle {
    use super::*;
    use crate::cache::Spans;
    use crate::testing::{Head, Oracle, staged};

    impl Oracle for Blend {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            let mut stages: Vec<(Vec<usize>, Vec<f64>)> = Vec::new();
            let mut rest = Vec::new();
            for (member, part) in self.parts(head.budget()) {
                let head = head.with_budget(part);
                let scores = member.policy.oracle().map(|oracle| oracle.scores(&head));
                rest = scores.unwrap_or_default();
                // The last member only ranks what is left.
                if stages.len() + 1 < self.members.len() {
                    let protect = member.policy.protect(part);
                    let taken: Vec<usize> = stages.iter().flat_map(|stage| stage.0.clone()).collect();
                    let taken = head.best(&rest, protect, &Spans::default(), &taken, part);
                    stages.push((taken, rest.clone()));
                }
            }
            staged(&stages, rest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blend(policies: &str) -> Result<std::sync::Arc<dyn Policy>> {
        let value: Value = serde_yaml_ng::from_str(policies).unwrap();
        Policies::default().build("blend", &Params::new().with("policies", value))
    }

    #[test]
    fn short_and_long_forms_are_the_same() {
        let short = blend("tova:1,snapkv:2").unwrap();
        let long = blend("[{policy: tova}, {policy: snapkv, share: 2.0, window: 32}]").unwrap();
        assert_eq!(short.params(), long.params());
        assert_eq!(short.needs().queries, 32);
        assert!(!short.same_for_all_heads());
        assert!(
            blend("tova:1,streaming-llm:1")
                .unwrap()
                .same_for_all_heads()
        );
    }

    #[test]
    fn protection_is_the_union_of_each_share() {
        let protect = blend("h2o:1,streaming-llm:3").unwrap().protect(40);
        // h2o protects half of its 10 entries.
        assert_eq!(
            protect,
            Protect {
                sinks: 4,
                recent: 5
            }
        );
    }

    #[test]
    fn wrong_members_are_refused_by_name() {
        for (policies, reason) in [
            ("tova", "policies 2 to 16 of them (found 1)"),
            (
                "tova:1,tovva:1",
                "policies[1]: inside it: policy is 'tovva'",
            ),
            ("tova:1,full:1", "found full"),
            ("tova:1,d2o:1", "found d2o"),
            ("tova:0,h2o:1", "share of tova above 0"),
            ("tova:x,h2o:1", "share of tova a number (found 'x')"),
            (
                "[tova, {share: 1}]",
                "policies[1]: a map with the name under 'policy'",
            ),
            ("[tova, {policy: snapkv, windw: 3}]", "windw"),
            ("[tova, 3]", "a policy's name"),
            ("7", "policies a list"),
        ] {
            let error = blend(policies).unwrap_err().to_string();
            assert!(error.contains(reason), "{policies}: {error}");
        }
    }
}
