use super::member::{Member, append_each, observe_each, observe_repetition_each};
use super::{Appended, LayerView, NamedPolicy, Needs, Params, Policies, Policy, Protect, State};
use crate::Result;
use crate::ops::AttentionBlock;
use crate::shape::LayerShape;
use burn::tensor::Tensor;
use serde::Deserialize;
use serde_yaml_ng::Value;
use std::sync::Arc;

/// One policy in the wide KV heads of a layer and another one in its narrow heads. Wide are those that `heads` lists, from 0, or
/// without a list those that a plan gives at least an even part of the layer's budget
/// ([`LayerPlan::heads`](crate::plan::LayerPlan::heads)); where nothing divides the budget all heads are wide. Entries that either
/// policy protects stay in every head. In a plan file `wide` and `narrow` are a policy's name, or a map of `policy` and its
/// parameters.
#[derive(Clone, Debug)]
pub struct ByHead {
    wide: Member,
    narrow: Member,
    heads: Option<Vec<usize>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Text {
    wide: Value,
    narrow: Value,
    heads: Option<Vec<usize>>,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            wide: "snapkv".into(),
            narrow: "streaming-llm".into(),
            heads: None,
        }
    }
}

impl NamedPolicy for ByHead {
    const NAME: &'static str = "by-head";
    const SUMMARY: &'static str =
        "one policy in the heads with large parts of the budget, another in the rest: wide=snapkv narrow=streaming-llm";
    const SOURCE: Option<&'static str> = None;
    const VARIANTS: &'static [&'static str] = &[
        "{wide: {policy: snapkv, window: 4, kernel: 3}, narrow: streaming-llm, heads: [1]}",
        "{wide: h2o, narrow: {policy: snapkv, window: 2, kernel: 1}, heads: [0, 2]}",
        "{wide: tova}",
    ];

    fn from_params(params: &Params, policies: &Policies) -> std::result::Result<Self, String> {
        let text: Text = params.read()?;
        let member = |name: &str, value: &Value| {
            Member::parse(value, policies).map_err(|reason| format!("{name}: {reason}"))
        };
        Ok(Self {
            wide: member("wide", &text.wide)?,
            narrow: member("narrow", &text.narrow)?,
            heads: text.heads,
        })
    }
}

impl ByHead {
    fn both(&self) -> [&dyn Policy; 2] {
        [&*self.wide.policy, &*self.narrow.policy]
    }

    fn is_wide(&self, head: usize) -> bool {
        self.heads.as_ref().is_none_or(|heads| heads.contains(&head))
    }
}

impl Policy for ByHead {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        let params = Params::new()
            .with("wide", self.wide.to_value(false))
            .with("narrow", self.narrow.to_value(false));
        match &self.heads {
            Some(heads) => params.with("heads", heads.clone()),
            None => params,
        }
    }

    fn needs(&self) -> Needs {
        let [wide, narrow] = self.both().map(Policy::needs);
        wide.union(narrow)
    }

    fn bytes_per_entry(&self, shape: LayerShape) -> usize {
        let [wide, narrow] = self.both().map(|policy| policy.bytes_per_entry(shape));
        wide.saturating_add(narrow)
    }

    fn protect(&self, budget: usize) -> Protect {
        let [wide, narrow] = self.both().map(|policy| policy.protect(budget));
        Protect {
            sinks: wide.sinks.max(narrow.sinks),
            recent: wide.recent.max(narrow.recent),
        }
    }

    fn for_parts(&self, parts: &[f64]) -> Option<Arc<dyn Policy>> {
        let even = parts.iter().sum::<f64>() / parts.len() as f64;
        let wide = parts.iter().enumerate().filter(|(_, part)| **part >= even);
        let heads = wide.map(|(head, _)| head).collect();
        self.heads.is_none().then(|| {
            Arc::new(Self {
                heads: Some(heads),
                ..self.clone()
            }) as Arc<dyn Policy>
        })
    }

    fn append(&self, state: &mut State, appended: &Appended) -> Result<()> {
        append_each(self.both().into_iter(), state, appended)
    }

    fn observe(&self, state: &mut State, block: &AttentionBlock) -> Result<()> {
        observe_each(self.both().into_iter(), state, block)
    }

    fn observe_repetition(&self, state: &mut State, block: &AttentionBlock) -> Result<()> {
        observe_repetition_each(self.both().into_iter(), state, block)
    }

    fn score(&self, state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        let heads = view.first_head..view.first_head + view.shape.kv_heads;
        let wide: Vec<bool> = heads.map(|head| self.is_wide(head)).collect();
        let score = |index: usize| self.both()[index].score(&state.members[index], view);
        if wide.iter().all(|&wide| wide) {
            return score(0);
        }
        if !wide.contains(&true) {
            return score(1);
        }
        let both = [score(0)?, score(1)?];
        let rows = wide.iter().enumerate().map(|(head, &wide)| {
            let scores = &both[usize::from(!wide)];
            scores.clone().narrow(1, head, 1)
        });
        Ok(Tensor::cat(rows.collect(), 1))
    }

    fn accepts(&self, state: &State, like: &State, seen: usize) -> std::result::Result<(), String> {
        if state.members.len() != like.members.len() {
            let (found, wanted) = (state.members.len(), like.members.len());
            return Err(format!("{found} members instead of {wanted}"));
        }
        let states = state.members.iter().zip(&like.members);
        let mut both = self.both().into_iter().zip(states);
        both.try_for_each(|(policy, (state, like))| policy.accepts(state, like, seen))
    }

    fn can_cut_in_steps(&self) -> bool {
        self.both().iter().all(|policy| policy.can_cut_in_steps())
    }

    #[cfg(feature = "testing")]
    fn oracle(&self) -> Option<&dyn crate::testing::Oracle> {
        let all = self.both().iter().all(|policy| policy.oracle().is_some());
        all.then_some(self as &dyn crate::testing::Oracle)
    }
}

#[cfg(feature = "testing")]
mod oracle {
    use super::*;
    use crate::testing::{Head, Oracle};

    impl Oracle for ByHead {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            let [wide, narrow] = self.both();
            let policy = match self.is_wide(head.head()) {
                true => wide,
                false => narrow,
            };
            let scores = policy.oracle().map(|oracle| oracle.scores(head));
            scores.unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_head(params: &str) -> Result<Arc<dyn Policy>> {
        let params = Params::from_yaml(params).unwrap();
        Policies::default().build("by-head", &params)
    }

    #[test]
    fn the_parts_of_a_plan_say_which_heads_are_wide() {
        let policy = by_head("{wide: h2o, narrow: tova}").unwrap();
        let wide = |parts: &[f64]| policy.for_parts(parts).unwrap().params().to_string();
        assert!(wide(&[3.0, 1.0, 2.0]).contains("heads: [0, 2]"), "{}", wide(&[3.0, 1.0, 2.0]));
        assert!(wide(&[1.0, 1.0]).contains("heads: [0, 1]"));
        let stated = by_head("{wide: h2o, narrow: tova, heads: [1]}").unwrap();
        assert!(stated.for_parts(&[3.0, 1.0]).is_none());
    }

    #[test]
    fn protection_is_the_union() {
        let policy = by_head("{wide: {policy: snapkv, window: 9}, narrow: streaming-llm}").unwrap();
        let protect = policy.protect(40);
        assert_eq!((protect.sinks, protect.recent), (4, 9));
    }

    #[test]
    fn what_merges_or_divides_heads_is_refused_by_name() {
        for (params, reason) in [
            ("{wide: d2o}", "wide: policies that evict without merging (found d2o)"),
            ("{narrow: adakv}", "narrow: policies that treat all heads alike (found adakv)"),
            ("{narrow: full}", "narrow: policies that evict (found full)"),
            ("{wide: h2o, all: 3}", "all"),
        ] {
            let error = by_head(params).unwrap_err().to_string();
            assert!(error.contains(reason), "{params}: {error}");
        }
    }
}
