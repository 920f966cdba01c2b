//! Eviction policies: what a layer keeps when its budget is smaller than its cache.
//!
//! A policy is one file in `policy/` and one line in [`REGISTRY`]; the plan schema, the command line's help and the
//! test matrix read that list. Most policies write [`Policy::needs`], [`Policy::protect`] and [`Policy::score`] only.

mod blend;
mod cake;
mod cam;
mod criticalkv;
mod d2o;
mod expected_attention;
mod full;
mod h2o;
mod keydiff;
mod knorm;
mod lagkv;
mod member;
mod pyramidkv;
mod random;
mod scissorhands;
mod snapkv;
mod stages;
mod state;
mod streaming_llm;
mod tova;
mod view;

pub use blend::Blend;
pub use cake::Cake;
pub use cam::Cam;
pub use criticalkv::CriticalKv;
pub use d2o::D2o;
pub use expected_attention::ExpectedAttention;
pub use full::Full;
pub use h2o::H2o;
pub use keydiff::KeyDiff;
pub use knorm::KNorm;
pub use lagkv::LagKv;
pub use pyramidkv::PyramidKv;
pub use random::Random;
pub(crate) use random::splitmix;
pub use scissorhands::Scissorhands;
pub use snapkv::SnapKv;
pub use state::State;
pub use streaming_llm::StreamingLlm;
pub use tova::Tova;
pub use view::{Appended, LayerView, Merge, Split};

use crate::ops::AttentionBlock;
use crate::{Error, Result};
use burn::tensor::Tensor;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_yaml_ng::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The two moments at which a layer evicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Once, when a layer has processed the whole prompt.
    Prefill,
    /// After every generated token that leaves the layer above its budget.
    Decode,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        })
    }
}

/// What a policy must be given. The cache gathers only what some policy of the layer needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// How many of the latest queries to remember.
    pub queries: usize,
    /// Whether [`Policy::observe`] is called with the attention of every query.
    pub attention: bool,
    /// Whether it then asks for the sums of its columns.
    pub column_sums: bool,
    /// Whether scores depend on the entries' order of position (pooling, partitions).
    pub position_order: bool,
    /// Whether the model must tell its rotary frequencies.
    pub rope: bool,
    /// Whether the model must tell the weights of the projection after attention.
    pub output: bool,
}

impl Needs {
    /// What satisfies both.
    pub fn union(self, other: Self) -> Self {
        Self {
            queries: self.queries.max(other.queries),
            attention: self.attention || other.attention,
            column_sums: self.column_sums || other.column_sums,
            position_order: self.position_order || other.position_order,
            rope: self.rope || other.rope,
            output: self.output || other.output,
        }
    }
}

/// Entries that a policy never evicts, by position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protect {
    /// The first positions of the sequence (attention sinks).
    pub sinks: usize,
    /// The latest positions.
    pub recent: usize,
}

impl Protect {
    /// How many entries that are, in a sequence long enough for both.
    pub fn count(&self) -> usize {
        self.sinks + self.recent
    }
}

/// A retention rule. Policies are stateless values; what they remember of a sequence lives in a [`State`] that the
/// cache owns and moves along with the entries.
pub trait Policy: Send + Sync + fmt::Debug {
    /// The name in plans and on the command line.
    fn name(&self) -> &'static str;

    /// The parameters in effect, for reports and plan files.
    fn params(&self) -> Params;

    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// False for a policy that keeps everything; such a layer is charged its full length.
    fn evicts(&self) -> bool {
        true
    }

    fn protect(&self, _budget: usize) -> Protect {
        Protect::default()
    }

    /// True if all KV heads of a layer get the same scores as long as they hold the same positions.
    fn same_for_all_heads(&self) -> bool {
        false
    }

    /// Called when entries are appended, before any attention over them. The default extends every per-entry
    /// statistic by zeros.
    fn append(&self, state: &mut State, appended: &Appended) -> Result<()> {
        state.extend_with_zeros(appended);
        Ok(())
    }

    /// Called with every block of attention when [`Needs::attention`] is set.
    fn observe(&self, _state: &mut State, _block: &AttentionBlock) -> Result<()> {
        Ok(())
    }

    /// `[batch, kv_heads, entries]`, slot order, higher stays. Never called for a policy that does not evict.
    fn score(&self, state: &State, view: &LayerView<'_>) -> Result<Tensor<3>>;

    /// True if evicted entries leave something behind: [`Policy::merge`] is then called at every eviction.
    fn merges(&self) -> bool {
        false
    }

    /// Whether what stays at a smaller budget is a part of what stays at a larger one by the same scores, so that a layer
    /// can be cut in steps.
    fn narrows(&self) -> bool {
        !self.merges()
    }

    /// What the entries that are about to go add to those that stay. Statistics of the entries that stay are left as
    /// they are.
    fn merge(
        &self,
        _state: &mut State,
        _view: &LayerView<'_>,
        _split: &Split,
    ) -> Result<Option<Merge>> {
        Ok(None)
    }
}

/// Parameters of a policy as a plan file states them.
pub type Params = BTreeMap<String, Value>;

/// A policy by name: its constructor and a line for help texts.
pub struct Entry {
    pub name: &'static str,
    pub summary: &'static str,
    pub source: &'static str,
    build: fn(&Params) -> std::result::Result<Arc<dyn Policy>, String>,
}

/// Every policy. A new one is one file and one line here.
pub const REGISTRY: &[Entry] = &[
    entry::<Full>("full", "keeps everything", "-"),
    entry::<StreamingLlm>(
        "streaming-llm",
        "first and latest positions",
        "arXiv 2309.17453",
    ),
    entry::<SnapKv>(
        "snapkv",
        "attention of the last window, pooled",
        "arXiv 2404.14469",
    ),
    entry::<PyramidKv>(
        "pyramidkv",
        "as snapkv, with a smaller window",
        "arXiv 2406.02069",
    ),
    entry::<Cake>(
        "cake",
        "mean and variance of the last window's attention; the current query's in decode",
        "arXiv 2503.12491",
    ),
    entry::<Tova>(
        "tova",
        "attention of the last query, one set for all heads",
        "arXiv 2401.06104",
    ),
    entry::<H2o>(
        "h2o",
        "attention summed over all queries",
        "arXiv 2306.14048",
    ),
    entry::<Scissorhands>(
        "scissorhands",
        "how often attention was above average lately",
        "arXiv 2305.17118",
    ),
    entry::<D2o>(
        "d2o",
        "as h2o, merging evicted entries into similar ones",
        "arXiv 2406.13035",
    ),
    entry::<Cam>(
        "cam",
        "as streaming-llm, merging some evicted values into later ones",
        "ICML 2024",
    ),
    entry::<ExpectedAttention>(
        "expected-attention",
        "attention expected of queries to come",
        "arXiv 2510.00636",
    ),
    entry::<LagKv>(
        "lagkv",
        "entries that differ from those that follow",
        "arXiv 2504.04704",
    ),
    entry::<CriticalKv>(
        "criticalkv",
        "a base policy, then its score weighted by the output projection: base=snapkv",
        "arXiv 2502.03805",
    ),
    entry::<KNorm>("knorm", "keys of small norm", "arXiv 2406.11430"),
    entry::<KeyDiff>(
        "keydiff",
        "keys that differ from the others",
        "arXiv 2504.15364",
    ),
    entry::<Blend>(
        "blend",
        "shares of the budget for several policies: policies=tova:0.5,h2o:0.5",
        "-",
    ),
    entry::<Random>("random", "a seeded hash: the floor for every policy", "-"),
];

const fn entry<P>(name: &'static str, summary: &'static str, source: &'static str) -> Entry
where
    P: Policy + DeserializeOwned + Checked + 'static,
{
    Entry {
        name,
        summary,
        source,
        build: |params| {
            let map = params
                .iter()
                .map(|(k, v)| (Value::String(k.clone()), v.clone()))
                .collect();
            let policy: P =
                serde_yaml_ng::from_value(Value::Mapping(map)).map_err(|e| e.to_string())?;
            policy.check()?;
            Ok(Arc::new(policy))
        },
    }
}

/// Range checks of a policy's parameters, run when a policy is built by name.
pub trait Checked {
    /// # Errors
    /// Names the parameter, the value found and the values allowed.
    fn check(&self) -> std::result::Result<(), String> {
        Ok(())
    }
}

/// The parameters of any serialisable policy.
fn params_of<P: Serialize>(policy: &P) -> Params {
    match serde_yaml_ng::to_value(policy) {
        Ok(Value::Mapping(map)) => map
            .into_iter()
            .filter_map(|(k, v)| Some((k.as_str()?.to_string(), v)))
            .collect(),
        _ => Params::new(),
    }
}

/// Builds a policy from its name and parameters; parameters left out take the policy's defaults.
///
/// # Errors
/// Refuses an unknown name (listing the known ones), an unknown parameter and a value out of range.
pub fn build(place: &str, name: &str, params: &Params) -> Result<Arc<dyn Policy>> {
    let entry = REGISTRY
        .iter()
        .find(|entry| entry.name == name)
        .ok_or_else(|| Error::invalid(place, "policy", format!("'{name}'"), names().join(", ")))?;
    (entry.build)(params).map_err(|reason| {
        let found = serde_yaml_ng::to_string(params).unwrap_or_default();
        Error::invalid(
            place,
            format!("parameters of policy {name}"),
            format!("{{{}}}", found.trim().replace('\n', ", ")),
            reason,
        )
    })
}

/// The names of all policies, in the registry's order.
pub fn names() -> Vec<&'static str> {
    REGISTRY.iter().map(|entry| entry.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_builds_with_defaults_and_reports_its_name() {
        for entry in REGISTRY {
            let policy = build("test", entry.name, &Params::new()).unwrap();
            assert_eq!(policy.name(), entry.name);
            let again = build("test", entry.name, &policy.params()).unwrap();
            assert_eq!(again.params(), policy.params());
        }
    }

    #[test]
    fn unknown_names_and_parameters_are_refused_by_name() {
        let error = build("plan.yaml", "snapvk", &Params::new())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("'snapvk'") && error.contains("snapkv"),
            "{error}"
        );
        let params = Params::from([("windw".into(), Value::from(32))]);
        let error = build("plan.yaml", "snapkv", &params)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("windw") && error.contains("window"),
            "{error}"
        );
        let params = Params::from([("kernel".into(), Value::from(4))]);
        let error = build("plan.yaml", "snapkv", &params)
            .unwrap_err()
            .to_string();
        assert!(error.contains("kernel") && error.contains("odd"), "{error}");
    }
}
