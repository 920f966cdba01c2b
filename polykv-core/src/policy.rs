//! Eviction policies: what a layer keeps when its budget is smaller than its cache.
//!
//! A policy of ours is one file in `policy/` and one line in `policies!` below: plan files, the command line's help, the
//! tests and the documentation read that list. Most policies write [`Policy::needs`], [`Policy::protect`] and
//! [`Policy::score`] only. Policies from other crates implement [`Policy`], and [`NamedPolicy`] if plan files are to name
//! them.

mod list;
mod member;
mod params;
mod spec;
mod stages;
mod state;
mod view;

pub use crate::ops::Protect;
pub use list::{NamedPolicy, Policies, PolicyEntry};
pub use params::Params;
pub use spec::PolicySpec;
pub use state::State;
pub use view::{Appended, LayerView, Merge, Split};

use crate::Result;
use crate::ops::AttentionBlock;
use crate::phase::Phase;
use burn::tensor::Tensor;
use std::fmt;
use std::ops::RangeInclusive;

/// Declares the files and lists their policies.
macro_rules! policies {
    ($($file:ident::$policy:ident,)*) => {
        $(mod $file;)*
        $(pub use $file::$policy;)*

        /// Every policy that this crate ships, in the order of the documentation.
        fn shipped() -> Vec<PolicyEntry> {
            vec![$(PolicyEntry::of::<$policy>()),*]
        }
    };
}

// A new policy is its file and a line here.
policies! {
    streaming_llm::StreamingLlm,
    snapkv::SnapKv,
    pyramidkv::PyramidKv,
    cake::Cake,
    tova::Tova,
    h2o::H2o,
    scissorhands::Scissorhands,
    d2o::D2o,
    cam::Cam,
    expected_attention::ExpectedAttention,
    lagkv::LagKv,
    criticalkv::CriticalKv,
    knorm::KNorm,
    keydiff::KeyDiff,
    blend::Blend,
    random::Random,
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

/// A retention rule. Policies are stateless values; what they remember of a sequence lives in a [`State`] that the
/// cache owns and moves along with the entries.
pub trait Policy: Send + Sync + fmt::Debug {
    /// The name in plans, reports and errors.
    fn name(&self) -> &str;

    /// All parameters that change what the policy does, for reports and plan files. Two policies of one name with equal
    /// parameters are taken to be the same, see [`Policy::key`].
    fn params(&self) -> Params;

    /// What tells this policy from others: its name and its parameters. Layers whose policies have equal keys may share
    /// their work and their statistics.
    fn key(&self) -> String {
        format!("{} {}", self.name(), self.params())
    }

    /// What the policy must be given beside positions, keys and values.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// The entries that stay whatever their score, under a budget of `budget` entries.
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

    /// `[batch, kv_heads, entries]`, slot order, higher stays.
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

    /// The policy's definition in f64, for the test harness to compare with.
    #[cfg(feature = "testing")]
    fn oracle(&self) -> Option<&dyn crate::testing::Oracle> {
        None
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

/// The most that a parameter which counts entries, queries or positions may be.
const MOST: usize = 1 << 20;

/// # Errors
/// A parameter outside of its range, with both.
fn check_range<T: PartialOrd + fmt::Display>(
    name: &str,
    value: T,
    range: RangeInclusive<T>,
) -> std::result::Result<(), String> {
    match range.contains(&value) {
        true => Ok(()),
        false => Err(format!(
            "{name} from {} to {} (found {value})",
            range.start(),
            range.end()
        )),
    }
}

/// # Errors
/// A width of a pooling that has no middle, or is absurdly wide.
fn check_odd(name: &str, value: usize) -> std::result::Result<(), String> {
    match value % 2 == 1 && value < 1024 {
        true => Ok(()),
        false => Err(format!("{name} odd, at most 1023 (found {value})")),
    }
}

#[cfg(test)]
mod tests;
