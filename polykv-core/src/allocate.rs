//! Splitting a total budget over layers. An allocator of ours is one file in `allocate/` and one line in the default
//! [`Allocators`].

mod cake;
mod calibrated;
mod dynamic;
mod pyramid;
mod uniform;

pub use cake::Cake;
pub use calibrated::Calibrated;
pub use dynamic::Dynamic;
pub use pyramid::Pyramid;
pub use uniform::Uniform;

use crate::apportion::within;
use crate::policy::{LayerView, Needs, Policy};
use crate::{Error, Result};
use burn::tensor::Tensor;
use std::fmt::Debug;
use std::sync::Arc;

/// What an allocator may know of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerStat {
    /// Relative claim on the total, positive.
    pub share: f64,
    /// The smallest budget under which the layer's policy works, see [`least_budget`].
    pub least: usize,
    /// How much a small budget hurts the layer, as calibration or an [`Online`] allocator measured it; 0 where nothing
    /// was measured.
    pub sensitivity: f64,
}

/// What an allocator splits by beside the total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The shares that a plan states.
    Shares,
    /// The layer's place in the stack and the prompt's length: a plan names the allocator.
    Prompt,
    /// What each layer does with the prompt: a plan names the allocator, which is [`Online`].
    Layers,
    /// What calibration measured: a plan holds the result.
    Calibration,
}

impl Basis {
    /// Whether a plan names the allocator, which then splits the total anew for each prompt.
    pub fn is_online(self) -> bool {
        matches!(self, Self::Prompt | Self::Layers)
    }
}

/// Splits `total` entries over layers for a prompt of `prompt` tokens; the result sums to `total` exactly.
pub trait Allocator: Send + Sync + Debug {
    /// The name in plans and on the command line.
    fn name(&self) -> &str;

    /// How it splits the budget, in a few words and with its source, for help texts and tables.
    fn summary(&self) -> &str;

    fn basis(&self) -> Basis;

    /// The policy whose published method includes this allocator.
    fn implied_by(&self) -> Option<&'static str> {
        None
    }

    fn split(&self, total: usize, prompt: usize, layers: &[LayerStat]) -> Vec<usize>;

    /// How an allocator of [`Basis::Layers`] gets to know the layers.
    fn online(&self) -> Option<&dyn Online> {
        None
    }
}

/// An allocator that sees every layer once the prompt has gone through it. Until the last one has been seen, the cache
/// holds what [`Online::budgets`] grants the layers so far, and cuts them again whenever that shrinks.
pub trait Online: Allocator {
    /// What it must be given of each layer, beside what the policies need.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// What it notes of a layer before anything is evicted; `scores [batch, kv_heads, entries]` are those of the
    /// layer's policy, higher stays.
    ///
    /// # Errors
    /// A device that cannot be read.
    fn note(&self, view: &LayerView<'_>, scores: &Tensor<3>) -> Result<Note>;

    /// The budgets of the layers seen so far, with their notes, while `to_come` more follow; with none to come the sum
    /// is `total`. No budget lies above the layer's entries unless the total leaves no choice.
    fn budgets(
        &self,
        total: usize,
        layers: &[LayerStat],
        notes: &[Note],
        to_come: usize,
    ) -> Vec<usize>;
}

/// What an [`Online`] allocator remembers of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// Entries per head before anything is evicted.
    pub entries: usize,
    /// Sequences times KV heads.
    pub rows: usize,
    pub values: Vec<f32>,
}

/// A list of allocators by name. The default list has every allocator of this crate; others join it by
/// [`Allocators::register`].
#[derive(Clone, Debug)]
pub struct Allocators(Vec<Arc<dyn Allocator>>);

impl Default for Allocators {
    // A new allocator is its file and a line here.
    fn default() -> Self {
        Self(vec![
            Arc::new(Uniform),
            Arc::new(Pyramid { beta: 20.0 }),
            Arc::new(Cake {
                window: 32,
                spatial: 1.0,
                temporal: 1.0,
            }),
            Arc::new(Dynamic { most: 10 }),
            Arc::new(Calibrated { epsilon: 1e-6 }),
        ])
    }
}

impl Allocators {
    /// Adds an allocator under its name.
    ///
    /// # Errors
    /// A name that is taken or empty.
    pub fn register(&mut self, allocator: impl Allocator + 'static) -> Result<()> {
        let name = allocator.name();
        if name.is_empty() || self.names(|_| true).contains(&name) {
            let found = format!("'{name}'");
            return Err(Error::plan(
                "name of an allocator",
                found,
                "a name that is free",
            ));
        }
        self.0.push(Arc::new(allocator));
        Ok(())
    }

    /// Every allocator, in the order in which they joined.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Allocator>> {
        self.0.iter()
    }

    /// The names of those for which `wanted` is true.
    pub fn names(&self, wanted: impl Fn(&dyn Allocator) -> bool) -> Vec<&str> {
        let chosen = self.iter().filter(|allocator| wanted(&***allocator));
        chosen.map(|allocator| allocator.name()).collect()
    }

    /// The allocator of a name.
    ///
    /// # Errors
    /// An unknown name, listing the known ones.
    pub fn get(&self, name: &str) -> Result<Arc<dyn Allocator>> {
        let found = self.iter().find(|allocator| allocator.name() == name);
        found.cloned().ok_or_else(|| {
            let known = self.names(|_| true).join(", ");
            Error::plan("allocator", format!("'{name}'"), known)
        })
    }

    /// The allocator that a policy's published method uses, [`Uniform`] if it has none of its own.
    pub fn of_policy(&self, policy: &str) -> Arc<dyn Allocator> {
        let implied = self
            .iter()
            .find(|allocator| allocator.implied_by() == Some(policy));
        implied.cloned().unwrap_or_else(|| Arc::new(Uniform))
    }
}

/// Budgets above this one are refused, and parameters that need more.
const MOST_ENTRIES: usize = 1 << 32;

/// The smallest budget that holds what a policy protects under it.
///
/// # Errors
/// A policy that protects more than the budget under every budget.
pub fn least_budget(policy: &dyn Policy) -> Result<usize> {
    let least = |budget: usize| policy.protect(budget).count().max(1);
    let mut budget = 1;
    // Protection that is a part of the budget leads to the least one in steps that shrink; their number has a bound.
    for _ in 0..10_000 {
        let protected = least(budget);
        match protected <= budget {
            true => return Ok(budget),
            false if protected > MOST_ENTRIES => break,
            false => budget = protected,
        }
    }
    let found = format!(
        "{} {}, which protects {} of {budget} entries",
        policy.name(),
        policy.params(),
        least(budget)
    );
    Err(Error::budget(
        "policy",
        found,
        "one that protects less than its budget",
    ))
}

/// A split by the layers' sensitivities between what their policies protect and `most`.
fn by_claims(total: usize, layers: &[LayerStat], most: impl Fn(usize) -> usize) -> Vec<usize> {
    let least: Vec<usize> = layers.iter().map(|layer| layer.least).collect();
    let most: Vec<usize> = (0..layers.len())
        .map(|layer| least[layer].max(most(layer)))
        .collect();
    // Layers without any claim share what is left.
    let claims: Vec<f64> = layers
        .iter()
        .map(|layer| layer.sensitivity.max(0.0) + 1e-12)
        .collect();
    within(total, &claims, &least, &most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Params, Policies};
    use proptest::prelude::*;

    #[test]
    fn unknown_names_list_the_known_ones() {
        let message = Allocators::default()
            .get("pyramdi")
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("pyramdi") && message.contains("uniform"),
            "{message}"
        );
    }

    #[test]
    fn least_budgets_hold_what_is_protected() {
        let least = |name: &str, params: &str| {
            let params = Params::from_yaml(params).unwrap();
            least_budget(&*Policies::default().build(name, &params).unwrap())
        };
        assert_eq!(least("snapkv", "{}").unwrap(), 32);
        assert_eq!(least("streaming-llm", "{}").unwrap(), 5);
        assert_eq!(least("h2o", "{}").unwrap(), 1);
        assert_eq!(least("d2o", "{recent_fraction: 0.9}").unwrap(), 31);
        // The sinks come on top of a whole budget: no budget is enough.
        let error = least("d2o", "{recent_fraction: 1}").unwrap_err();
        assert!(error.to_string().contains("d2o"), "{error}");
        assert!(
            least(
                "blend",
                "{policies: [{policy: streaming-llm}, {policy: h2o, recent_fraction: 1}]}"
            )
            .is_ok()
        );
    }

    #[test]
    fn a_method_names_its_allocator() {
        assert_eq!(
            Allocators::default().of_policy("pyramidkv").name(),
            "pyramid"
        );
        assert_eq!(Allocators::default().of_policy("cake").name(), "cake");
        assert_eq!(Allocators::default().of_policy("snapkv").name(), "uniform");
    }

    proptest! {
        #[test]
        fn every_allocator_sums_exactly(
            total in 0usize..100_000,
            prompt in 1usize..5000,
            layers in prop::collection::vec((1usize..64, 0.0f64..50.0), 1..80),
        ) {
            let stats: Vec<LayerStat> = layers
                .iter()
                .map(|&(least, sensitivity)| LayerStat { share: 1.0, least, sensitivity })
                .collect();
            for allocator in Allocators::default().iter() {
                let budgets = allocator.split(total, prompt, &stats);
                prop_assert_eq!(budgets.len(), stats.len());
                prop_assert_eq!(budgets.iter().sum::<usize>(), total, "{}", allocator.name());
            }
        }

        #[test]
        fn budgets_of_layers_that_were_seen_sum_exactly(
            average in 1usize..500,
            entries in 1usize..600,
            layers in prop::collection::vec((1usize..64, prop::collection::vec(0.0f32..1.0, 8)), 1..40),
        ) {
            let stats: Vec<LayerStat> = layers
                .iter()
                .map(|layer| LayerStat { share: 1.0, least: layer.0, sensitivity: 0.0 })
                .collect();
            let repeated = |values: &[f32]| values.iter().copied().cycle().take(entries).collect();
            let notes: Vec<Note> = layers
                .iter()
                .map(|layer| Note { entries, rows: 1, values: repeated(&layer.1) })
                .collect();
            let total = average * layers.len();
            let least: usize = stats.iter().map(|layer| layer.least).sum();
            let most: usize = stats.iter().map(|layer| layer.least.max(entries)).sum();
            prop_assume!((least..=most).contains(&total));
            for allocator in Allocators::default().iter() {
                let Some(online) = allocator.online() else { continue };
                let budgets = online.budgets(total, &stats, &notes, 0);
                prop_assert_eq!(budgets.iter().sum::<usize>(), total, "{}", allocator.name());
            }
        }
    }
}
