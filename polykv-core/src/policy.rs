//! Eviction policies: what a layer keeps when its budget is smaller than its cache.
//!
//! A policy of this crate is one file in `policy/` and one line in `policies!` below: plan files, the command line's help, the
//! tests and the documentation read that list. Most policies implement [`Policy::needs`], [`Policy::protect`] and
//! [`Policy::score`] only. Policies from other crates implement [`Policy`], and [`NamedPolicy`] if plan files are to name
//! them.

mod heads;
mod latest;
mod list;
mod member;
mod params;
mod spec;
mod stages;
mod state;
mod token_rule;
mod view;

pub use crate::ops::{Protect, StepScores};
pub use heads::HeadBudgets;
pub use list::{NamedPolicy, Policies, PolicyEntry};
pub use params::Params;
pub use spec::PolicySpec;
pub use state::State;
pub use token_rule::TokenRule;
pub use view::{Appended, LayerView, Merge, Split, Stored};

use crate::Result;
use crate::ops::AttentionBlock;
use crate::phase::Phase;
use crate::shape::LayerShape;
use burn::tensor::Tensor;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

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
    kvzip::KvZip,
    criticalkv::CriticalKv,
    refit::Refit,
    adakv::AdaKv,
    per_head::PerHead,
    by_head::ByHead,
    knorm::KNorm,
    keydiff::KeyDiff,
    blend::Blend,
    random::Random,
}

/// What the cache must gather for a policy. It gathers only what some policy of the layer needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// How many of the latest queries to remember, see [`LayerView::queries`].
    pub queries: usize,
    /// Whether [`Policy::observe`] is called with the attention of every query.
    pub attention: bool,
    /// Whether [`Policy::observe`] reads the sums of attention per entry ([`AttentionBlock::column_sums`]), which are then
    /// computed with the attention.
    pub column_sums: bool,
    /// Whether the prompt runs a second time behind itself for [`Policy::observe_repetition`], see
    /// [`Prompt::repeat`](crate::Prompt::repeat).
    pub repetition: bool,
    /// Whether scores or merges depend on the entries' order of position, as pooling and partitions do; see
    /// [`LayerView::order`].
    pub position_order: bool,
    /// Whether the model must state its rotary frequencies ([`LayerFacts::rope`](crate::LayerFacts::rope)).
    pub rope: bool,
    /// Whether the model must state the weights of its output projection
    /// ([`LayerFacts::output`](crate::LayerFacts::output)).
    pub output: bool,
}

impl Needs {
    /// The needs of two policies together.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self {
            queries: self.queries.max(other.queries),
            attention: self.attention || other.attention,
            column_sums: self.column_sums || other.column_sums,
            repetition: self.repetition || other.repetition,
            position_order: self.position_order || other.position_order,
            rope: self.rope || other.rope,
            output: self.output || other.output,
        }
    }
}

/// Decides which entries of a layer stay when it holds more than its budget. Policies are values without state; what they
/// remember of a sequence is a [`State`], which the cache holds and changes along with the entries.
pub trait Policy: Send + Sync + fmt::Debug {
    /// The name in plans, reports and errors.
    fn name(&self) -> &str;

    /// All parameters that change what the policy does, for reports and plan files. Two policies with the same name and equal
    /// parameters must do the same, see [`Policy::key`].
    fn params(&self) -> Params;

    /// The identity of the policy: its name and its parameters. Layers whose policies have equal keys may share their work
    /// and their statistics.
    fn key(&self) -> String {
        format!("{} {}", self.name(), self.params())
    }

    /// What the cache must gather for the policy beside positions, keys and values.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// The most bytes that the policy remembers per entry and KV head, for estimates of memory. The default is two numbers.
    fn bytes_per_entry(&self, _shape: LayerShape) -> usize {
        2 * size_of::<f32>()
    }

    /// The entries that stay whatever their score, under a budget of `budget` entries per KV head.
    fn protect(&self, _budget: usize) -> Protect {
        Protect::default()
    }

    /// Whether all KV heads of a layer get the same scores as long as they hold the same positions.
    fn same_for_all_heads(&self) -> bool {
        false
    }

    /// How the budget of a layer is divided over its KV heads. The default gives every head as much.
    fn heads(&self) -> HeadBudgets {
        HeadBudgets::Even
    }

    /// Called when entries have been appended, before any attention over them. The default extends every statistic per entry
    /// by zeros.
    ///
    /// # Errors
    /// Anything that keeps the policy from going on; the caller of the cache gets it.
    fn append(&self, state: &mut State, appended: &Appended) -> Result<()> {
        state.extend_with_zeros(appended);
        Ok(())
    }

    /// Called with every block of attention that was computed, if [`Needs::attention`] is set.
    ///
    /// # Errors
    /// Anything that keeps the policy from going on; the caller of the cache gets it.
    fn observe(&self, _state: &mut State, _block: &AttentionBlock) -> Result<()> {
        Ok(())
    }

    /// Called after the last tokens of a prompt with every block of attention that the prompt's repetition pays, if
    /// [`Needs::repetition`] is set. The block's last entries are those of the repeated tokens, which are gone afterwards; all
    /// before them are the layer's.
    ///
    /// # Errors
    /// Anything that keeps the policy from going on; the caller of the cache gets it.
    fn observe_repetition(&self, _state: &mut State, _block: &AttentionBlock) -> Result<()> {
        Ok(())
    }

    /// The score of every entry, `[batch, kv_heads, entries]` in slot order. The entries with the highest scores stay beside
    /// the protected ones; of equal scores the later position stays. A NaN is reported to the caller of the cache as an
    /// error.
    ///
    /// # Errors
    /// Anything that keeps the policy from scoring; the caller of the cache gets it.
    fn score(&self, state: &State, view: &LayerView<'_>) -> Result<Tensor<3>>;

    /// [`Policy::score`] for the eviction of one entry while decoding, in the form that costs least. A policy whose scores are
    /// positions or means of [`LayerView::attention_row`] can say so; the default calls [`Policy::score`].
    ///
    /// # Errors
    /// Those of [`Policy::score`].
    fn step_scores(&self, state: &State, view: &LayerView<'_>) -> Result<StepScores> {
        self.score(state, view).map(StepScores::Given)
    }

    /// What the policy does with a decoded token, if that is all it does. The default says nothing: tokens are then taken sequence
    /// by sequence.
    fn token_rule(&self) -> Option<TokenRule> {
        None
    }

    /// Whether the policy can go on from `state`, which was read from a [`Session`](crate::Session) after `seen` tokens and may
    /// be forged. Statistics per entry are known to have one number or row per entry; `like` is what [`Policy::append`] makes
    /// of the latest token alone. The default wants the same tensors, whose shapes differ in the number of entries only, and
    /// as many [`State::counts`], each at most `seen`. Policies whose statistics change their number or shape say here what
    /// they can have.
    ///
    /// # Errors
    /// A state that the policy never has. The text says what it has instead of what.
    fn accepts(&self, state: &State, like: &State, seen: usize) -> std::result::Result<(), String> {
        state.check_like(like, seen)
    }

    /// Whether entries that a phase evicts change those that stay. If so, [`Policy::merge`] is called at every eviction of it.
    fn merges(&self, _phase: Phase) -> bool {
        false
    }

    /// Whether a layer may be cut in several steps by the same scores. That needs scores that do not depend on the budget,
    /// and evictions that do not change the entries that stay.
    fn can_cut_in_steps(&self) -> bool {
        !self.merges(Phase::Prefill)
    }

    /// Whether the KV heads of a layer may get budgets by parts beside this policy
    /// ([`LayerPlan::heads`](crate::plan::LayerPlan::heads)): it neither merges nor divides budgets itself.
    fn can_be_divided(&self) -> bool {
        let merges = Phase::BOTH.into_iter().any(|phase| self.merges(phase));
        !merges && self.heads() == HeadBudgets::Even
    }

    /// The policy of a layer whose KV heads get these parts of its budget, if it is another one than this.
    fn for_parts(&self, _parts: &[f64]) -> Option<Arc<dyn Policy>> {
        None
    }

    /// The policy's definition in f64, which the test harness compares with; `None` if there is none.
    #[cfg(feature = "testing")]
    fn oracle(&self) -> Option<&dyn crate::testing::Oracle> {
        None
    }

    /// What is added to the entries that stay when those of `split.evicted` go; `None` if nothing is. Only called if
    /// [`Policy::merges`] is true for the phase. The cache leaves the statistics of the entries that stay as they are.
    ///
    /// # Errors
    /// Anything that keeps the policy from merging; the caller of the cache gets it.
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

/// Checks a parameter's range.
///
/// # Errors
/// A value outside of the range. The text names the parameter, the range and the value.
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

/// Checks how many positions are pooled.
///
/// # Errors
/// An even number, and a number above 1023.
fn check_odd(name: &str, value: usize) -> std::result::Result<(), String> {
    match value % 2 == 1 && value < 1024 {
        true => Ok(()),
        false => Err(format!("{name} odd, at most 1023 (found {value})")),
    }
}

#[cfg(test)]
mod tests;
