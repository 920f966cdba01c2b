//! Splitting a total budget over layers. Every allocator of this crate is one file in `allocate/` and one line in the default
//! [`Allocators`].

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

mod cake;
mod calibrated;
mod dynamic;
mod pyramid;
mod uniform;

pub use cake::CakeAllocator;
pub use calibrated::CalibratedAllocator;
pub use dynamic::DynamicAllocator;
pub(crate) use dynamic::wins;
pub use pyramid::PyramidAllocator;
pub use uniform::UniformAllocator;

use crate::apportion::within;
use crate::policy::{LayerView, Needs, Policy, Protect};
use crate::{Error, Result};
use burn::tensor::Tensor;
use std::fmt::Debug;
use std::sync::Arc;

/// What an allocator may know of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerStat {
    /// The share that the plan states: the layer's part of the total relative to the other layers', above 0.
    pub share: f64,
    /// The smallest budget under which the layer's policy works, see [`least_budget`].
    pub least: usize,
    /// How much a small budget hurts the layer, as calibration or an [`Online`] allocator measured it; 0 where nothing
    /// was measured.
    pub sensitivity: f64,
}

/// What an allocator splits the total by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The shares that a plan states.
    Shares,
    /// The layers' order and the prompt's length: a plan names the allocator.
    Prompt,
    /// What each layer does with the prompt: a plan names the allocator, which implements [`Online`].
    Layers,
    /// What a calibration measured: a plan holds the resulting budgets.
    Calibration,
}

impl Basis {
    /// Whether the total is split anew for each prompt, by an allocator that the plan names.
    pub fn is_online(self) -> bool {
        matches!(self, Self::Prompt | Self::Layers)
    }
}

/// Splits a total budget over the layers of a phase.
pub trait Allocator: Send + Sync + Debug {
    /// The name in plans and on the command line.
    fn name(&self) -> &str;

    /// How it splits the budget, in a few words and with its source, for help texts and tables.
    fn summary(&self) -> &str;

    /// What it splits the budget by, beside the total. It decides where the allocator can be named.
    fn basis(&self) -> Basis;

    /// The name of the policy whose published method includes this allocator, if there is one.
    fn implied_by(&self) -> Option<&'static str> {
        None
    }

    /// Entries per KV head for each of `layers`, in their order, for a prompt of `prompt` tokens. They sum to `total`
    /// exactly.
    fn split(&self, total: usize, prompt: usize, layers: &[LayerStat]) -> Vec<usize>;

    /// The allocator itself if it splits by what each layer does with the prompt ([`Basis::Layers`]), `None` for any
    /// other.
    fn online(&self) -> Option<&dyn Online> {
        None
    }
}

/// An allocator that is given every layer once the prompt has gone through it. Until the last layer has been given, the
/// cache holds at most [`Online::budgets`] in the layers so far, and cuts them again whenever these budgets shrink.
pub trait Online: Allocator {
    /// What the cache must gather of each layer for this allocator, beside what the policies need.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// What the allocator remembers of a layer, taken before anything is evicted there. `scores [batch, kv_heads,
    /// entries]` are those of the layer's policy; entries with higher scores stay.
    ///
    /// # Errors
    /// A device that cannot be read.
    fn note(&self, view: &LayerView<'_>, scores: &Tensor<3>) -> Result<Note>;

    /// Entries per KV head for each of the `layers` given so far, with their `notes` in the same order, while `to_come`
    /// more layers follow. When none follow, the budgets sum to `total`. No budget exceeds the layer's entries unless the
    /// total exceeds the entries of all layers.
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
    /// Entries per KV head before anything is evicted.
    pub entries: usize,
    /// The sequences of the batch times the KV heads.
    pub rows: usize,
    /// Numbers whose meaning is the allocator's.
    pub values: Vec<f32>,
}

/// Allocators by name. The default list has every allocator of this crate; [`Allocators::register`] adds others.
#[derive(Clone, Debug)]
pub struct Allocators(Vec<Arc<dyn Allocator>>);

impl Default for Allocators {
    // A new allocator is its file and a line here.
    fn default() -> Self {
        Self(vec![
            Arc::new(UniformAllocator),
            Arc::new(PyramidAllocator { beta: 20.0 }),
            Arc::new(CakeAllocator {
                window: 32,
                spatial: 1.0,
                temporal: 1.0,
            }),
            Arc::new(DynamicAllocator { most: 10 }),
            Arc::new(CalibratedAllocator { epsilon: 1e-6 }),
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

    /// The names of the allocators for which `wanted` is true, in the order in which they joined.
    pub fn names(&self, wanted: impl Fn(&dyn Allocator) -> bool) -> Vec<&str> {
        let chosen = self.iter().filter(|allocator| wanted(&***allocator));
        chosen.map(|allocator| allocator.name()).collect()
    }

    /// The allocator that has this name.
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

    /// The allocator that the published method of the policy named `policy` includes, [`UniformAllocator`] if it includes
    /// none.
    pub fn of_policy(&self, policy: &str) -> Arc<dyn Allocator> {
        let implied = self
            .iter()
            .find(|allocator| allocator.implied_by() == Some(policy));
        implied
            .cloned()
            .unwrap_or_else(|| Arc::new(UniformAllocator))
    }
}

/// Budgets above this one are refused, and parameters that need more.
const MOST_ENTRIES: usize = 1 << 32;

/// The smallest budget in entries per KV head, at least 1, that is not exceeded by what the policy protects under it.
///
/// # Errors
/// A policy that protects more entries than its budget whatever the budget is.
pub fn least_budget(policy: &dyn Policy) -> Result<usize> {
    least_budget_of(policy, |protect| protect.count())
}

/// The same, where the entries that are protected are counted by `count`.
pub(crate) fn least_budget_of(
    policy: &dyn Policy,
    count: impl Fn(Protect) -> usize,
) -> Result<usize> {
    let least = |budget: usize| count(policy.protect(budget)).max(1);
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

/// A split in proportion to the layers' sensitivities. Each layer gets at least what its policy protects and at most
/// `most(layer)`.
fn by_claims(total: usize, layers: &[LayerStat], most: impl Fn(usize) -> usize) -> Vec<usize> {
    let least: Vec<usize> = layers.iter().map(|layer| layer.least).collect();
    let most: Vec<usize> = least
        .iter()
        .enumerate()
        .map(|(layer, least)| most(layer).max(*least))
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

    /// Claims of layers: a range of numbers, ties, and what is no number.
    fn numbers() -> impl Strategy<Value = f64> {
        prop_oneof![
            6 => 0.0f64..50.0,
            2 => Just(1.0),
            1 => Just(0.0),
            1 => prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, f64::MAX]),
        ]
    }

    proptest! {
        #[test]
        fn every_allocator_sums_exactly(
            total in 0usize..100_000,
            prompt in 1usize..5000,
            layers in prop::collection::vec((1usize..64, 1e-6f64..1e6, numbers()), 1..80),
        ) {
            let stats: Vec<LayerStat> = layers
                .iter()
                .map(|&(least, share, sensitivity)| LayerStat { share, least, sensitivity })
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
            layers in prop::collection::vec((1usize..64, prop::collection::vec(numbers(), 8)), 1..40),
        ) {
            let stats: Vec<LayerStat> = layers
                .iter()
                .map(|layer| LayerStat { share: 1.0, least: layer.0, sensitivity: 0.0 })
                .collect();
            let repeated = |values: &[f64]| values.iter().map(|&value| value as f32).cycle().take(entries).collect();
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
