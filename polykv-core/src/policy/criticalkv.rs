use super::member::Member;
use super::stages::Stages;
use super::{
    Appended, LayerView, NamedPolicy, Needs, Params, Policies, Policy, Protect, State, check_range,
};
use crate::ops::{self, AttentionBlock, Weight};
use crate::shape::LayerShape;
use crate::{Error, Result};
use burn::tensor::{DType, Tensor, s};
use serde::Deserialize;
use serde_yaml_ng::Value;

/// Keeps the entries whose values change the layer's output most (CriticalKV, arXiv 2502.03805). The fraction `first` of the
/// budget goes to the entries with the highest scores of a `base` policy. The rest goes to those with the highest (score +
/// `epsilon`) · ‖W_O v‖₁, where v is the entry's value and W_O the query head's part of the output projection, mean over
/// the query group. The scores of the base policy should not be negative. In a plan file `base` is a policy's name, or a
/// map of `policy` and its parameters.
///
/// The model must state the weights of its output projection, see [`ModelFacts`](crate::ModelFacts). The norm is computed
/// once, when an entry is appended, which costs about one more output projection per token.
#[derive(Clone, Debug)]
pub struct CriticalKv {
    base: Member,
    first: f64,
    epsilon: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Text {
    base: Value,
    first: f64,
    epsilon: f64,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            base: "snapkv".into(),
            first: 0.5,
            epsilon: 1e-4,
        }
    }
}

impl NamedPolicy for CriticalKv {
    const NAME: &'static str = "criticalkv";
    const SUMMARY: &'static str = "a base policy's choice, then its scores times the values' norms after the output projection: base=snapkv";
    const SOURCE: Option<&'static str> = Some("arXiv 2502.03805");
    const VARIANTS: &'static [&'static str] = &[
        "{base: {policy: snapkv, window: 4, kernel: 3}}",
        "{base: h2o, first: 0.3}",
    ];

    fn from_params(params: &Params, policies: &Policies) -> std::result::Result<Self, String> {
        let text: Text = params.read()?;
        check_range("first", text.first, 0.0..=1.0)?;
        check_range("epsilon", text.epsilon, 0.0..=1e6)?;
        let base = Member::parse(&text.base, policies);
        Ok(Self {
            base: base.map_err(|reason| format!("base: {reason}"))?,
            first: text.first,
            epsilon: text.epsilon,
        })
    }
}

/// Tokens whose projected values exist at a time.
const BLOCK: usize = 256;

impl Policy for CriticalKv {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        Params::new()
            .with("base", self.base.to_value(false))
            .with("first", self.first)
            .with("epsilon", self.epsilon)
    }

    fn needs(&self) -> Needs {
        Needs {
            output: true,
            ..self.base.policy.needs()
        }
    }

    fn bytes_per_entry(&self, shape: LayerShape) -> usize {
        let of_base = self.base.policy.bytes_per_entry(shape);
        of_base.saturating_add(size_of::<f32>())
    }

    fn protect(&self, budget: usize) -> Protect {
        self.base.policy.protect(budget)
    }

    fn append(&self, state: &mut State, appended: &Appended) -> Result<()> {
        state.members.resize_with(1, State::default);
        self.base.policy.append(&mut state.members[0], appended)?;
        let output = appended.facts.output.as_ref().ok_or_else(|| {
            Error::Failed("policy criticalkv runs without the output projection".into())
        })?;
        state.extend_with(output_norms(
            &appended.values,
            output,
            appended.shape.group(),
        ));
        Ok(())
    }

    fn observe(&self, state: &mut State, block: &AttentionBlock) -> Result<()> {
        match self.base.policy.needs().attention {
            true => self.base.policy.observe(&mut state.members[0], block),
            false => Ok(()),
        }
    }

    fn observe_repetition(&self, state: &mut State, block: &AttentionBlock) -> Result<()> {
        match self.base.policy.needs().repetition {
            true => self.base.policy.observe_repetition(&mut state.members[0], block),
            false => Ok(()),
        }
    }

    fn can_cut_in_steps(&self) -> bool {
        false
    }

    fn score(&self, state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        let scores = self.base.policy.score(&state.members[0], view)?;
        let weighted = scores.clone().add_scalar(self.epsilon as f32) * state.entries[0].clone();
        let first = ((view.budget as f64 * self.first).floor() as usize).max(1);
        let mut stages = Stages::default();
        let best = view.best(scores.clone(), view.protected, None, first);
        stages.push(best, scores);
        Ok(stages.finish(weighted))
    }

    #[cfg(feature = "testing")]
    fn oracle(&self) -> Option<&dyn crate::testing::Oracle> {
        self.base
            .policy
            .oracle()
            .map(|_| self as &dyn crate::testing::Oracle)
    }
}

#[cfg(feature = "testing")]
mod oracle {
    use super::*;
    use crate::testing::{Entry, GROUP, Head, Oracle, dot, staged};

    impl Oracle for CriticalKv {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            let base = &self.base.policy;
            let scores = base.oracle().map(|oracle| oracle.scores(head));
            let scores = scores.unwrap_or_default();
            let weighted = scores.iter().zip(head.entries());
            let weighted =
                weighted.map(|(score, entry)| (score + self.epsilon) * output_norm(head, entry));
            let weighted = weighted.collect();
            let first = ((head.budget() as f64 * self.first) as usize).max(1);
            let protect = base.protect(head.budget());
            let taken = head.best(&scores, protect, head.spans(), &[], first);
            staged(&[(taken, scores)], weighted)
        }
    }

    /// ‖W v‖₁ of the value as it arrived, mean over the query group.
    fn output_norm(head: &Head<'_>, entry: &Entry) -> f64 {
        let of_member = |member: usize| {
            let weight = head.output_weight(member);
            let rows = weight.iter().map(|row| dot(row, &entry.arrived).abs());
            rows.sum::<f64>()
        };
        (0..GROUP).map(of_member).sum::<f64>() / GROUP as f64
    }
}

/// ‖W v‖₁, mean over the query group: `values [batch, kv_heads, tokens, head_dim]`, `output [hidden, heads *
/// head_dim]` → `[batch, kv_heads, tokens]`.
fn output_norms(values: &Tensor<4>, output: &Weight, group: usize) -> Tensor<3> {
    let [batch, kv_heads, tokens, d] = values.dims();
    let values = values.clone().cast(DType::F32);
    let output = output.to_f32();
    let of_head = |head: usize, first: usize, count: usize| {
        let kv_head = head / group;
        let part = values
            .clone()
            .slice(s![.., kv_head..=kv_head, first..first + count, ..]);
        let weight = output.clone().slice(s![.., head * d..(head + 1) * d]);
        let part = part.reshape([batch * count, d]);
        let projected = ops::matmul(part, weight.transpose());
        projected.abs().sum_dim(1).reshape([batch, 1, count])
    };
    let heads = (0..kv_heads).map(|kv_head| {
        let blocks = (0..tokens).step_by(BLOCK).map(|first| {
            let count = BLOCK.min(tokens - first);
            let mine = kv_head * group..(kv_head + 1) * group;
            let norms = mine.map(|head| of_head(head, first, count));
            Tensor::cat(norms.collect(), 1).mean_dim(1)
        });
        Tensor::cat(blocks.collect(), 2)
    });
    Tensor::cat(heads.collect(), 1)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn norms_are_those_of_projected_values() {
        let device = Device::flex();
        // Two query heads over one KV head of two elements, a hidden state of three.
        let output = Tensor::from_data(
            [
                [1.0, 0.0, 2.0, 2.0],
                [0.0, -1.0, 0.0, 0.0],
                [1.0, 1.0, 0.0, 1.0],
            ],
            &device,
        );
        let values = Tensor::from_data([[[[1.0, 2.0], [3.0, -3.0]]]], &device);
        let norms: Vec<f32> = output_norms(&values, &Weight::new(output), 2)
            .try_into_vec_as()
            .unwrap();
        // |1| + |-2| + |3| and |6| + |2|; |3| + |3| + |0| and |0| + |-3|.
        assert_eq!(norms, [(6.0 + 8.0) / 2.0, (6.0 + 3.0) / 2.0]);
    }

    #[test]
    fn wrong_bases_and_shares_are_refused_by_name() {
        for (params, reason) in [
            ("{base: full}", "base: policies that evict"),
            ("{base: cam}", "found cam"),
            ("{base: {policy: snapkv, kernel: 4}}", "kernel odd"),
            ("{first: 1.5}", "first from 0 to 1"),
            ("{epsilon: -1}", "epsilon from 0"),
            ("{second: 1}", "second"),
        ] {
            let params = Params::from_yaml(params).unwrap();
            let error = Policies::default()
                .build("criticalkv", &params)
                .unwrap_err()
                .to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
