//! Splitting a total budget over layers.

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

use crate::policy::{LayerView, Needs, Policy};
use crate::{Error, Result};
use burn::tensor::Tensor;
use std::fmt::Debug;

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
    fn name(&self) -> &'static str;

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

/// Every allocator by name. A new one is one file and one line here.
pub const REGISTRY: &[(&str, &dyn Allocator)] = &[
    ("uniform", &Uniform),
    ("pyramid", &Pyramid { beta: 20.0 }),
    (
        "cake",
        &Cake {
            window: 32,
            spatial: 1.0,
            temporal: 1.0,
        },
    ),
    ("dynamic", &Dynamic { most: 10 }),
    ("calibrated", &Calibrated { epsilon: 1e-6 }),
];

/// # Errors
/// Refuses an unknown name, listing the known ones.
pub fn by_name(name: &str) -> Result<&'static dyn Allocator> {
    REGISTRY
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, allocator)| *allocator)
        .ok_or_else(|| {
            let known: Vec<_> = REGISTRY.iter().map(|(name, _)| *name).collect();
            Error::invalid("allocator", "name", name, known.join(", "))
        })
}

/// The allocator that a policy's published method uses, uniform if it has none of its own.
pub fn of_policy(policy: &str) -> &'static dyn Allocator {
    let own = REGISTRY
        .iter()
        .find(|(_, allocator)| allocator.implied_by() == Some(policy));
    own.map_or(&Uniform, |(_, allocator)| *allocator)
}

/// The smallest budget that holds what a policy protects under it.
pub fn least_budget(policy: &dyn Policy) -> usize {
    let mut budget = 1;
    loop {
        let protected = policy.protect(budget).count().max(1);
        if protected <= budget {
            return budget;
        }
        budget = protected;
    }
}

/// Integers in proportion to `weights` that sum to `total` exactly: floors first, then one more for each of the
/// largest remainders, ties to the lower index.
pub fn largest_remainder(total: usize, weights: &[f64]) -> Vec<usize> {
    let sum: f64 = weights.iter().sum();
    if weights.is_empty() || sum <= 0.0 {
        return vec![0; weights.len()];
    }
    let exact: Vec<f64> = weights.iter().map(|w| total as f64 * w / sum).collect();
    let mut counts: Vec<usize> = exact.iter().map(|x| x.floor() as usize).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| {
        exact[b]
            .fract()
            .total_cmp(&exact[a].fract())
            .then(a.cmp(&b))
    });
    // Rounding in f64 can push the floors past the total for huge weights: take those back from the same order.
    let given: usize = counts.iter().sum();
    for &i in order.iter().cycle().take(total.saturating_sub(given)) {
        counts[i] += 1;
    }
    let mut excess = given.saturating_sub(total);
    for &i in order.iter().rev() {
        let back = excess.min(counts[i]);
        counts[i] -= back;
        excess -= back;
    }
    counts
}

/// A split by the layers' sensitivities between what their policies protect and `most`.
fn by_claims(total: usize, layers: &[LayerStat], most: impl Fn(usize) -> usize) -> Vec<usize> {
    let least: Vec<usize> = layers.iter().map(|own| own.least).collect();
    let most: Vec<usize> = (0..layers.len())
        .map(|layer| least[layer].max(most(layer)))
        .collect();
    // Layers without any claim share what is left.
    let claims: Vec<f64> = layers
        .iter()
        .map(|own| own.sensitivity.max(0.0) + 1e-12)
        .collect();
    within(total, &claims, &least, &most)
}

/// As [`largest_remainder`], with at least `least` and at most `most` of each; the sum is exact whatever the limits, which
/// give way if they do not fit the total.
pub fn within(total: usize, weights: &[f64], least: &[usize], most: &[usize]) -> Vec<usize> {
    let floor: usize = least.iter().sum();
    let ceiling = most.iter().copied().fold(0, usize::saturating_add);
    if floor > total || ceiling < total {
        return largest_remainder(total, weights);
    }
    let mut counts = least.to_vec();
    let mut left = total - floor;
    // Each round fills a layer for good or ends.
    while left > 0 {
        let open = |i: usize| counts[i] < most[i];
        let own: Vec<f64> = weights
            .iter()
            .enumerate()
            .map(|(i, &weight)| if open(i) { weight } else { 0.0 })
            .collect();
        let given = largest_remainder(left, &own);
        let before = left;
        for (i, given) in given.into_iter().enumerate() {
            let taken = given.min(most[i].saturating_sub(counts[i]));
            counts[i] += taken;
            left -= taken;
        }
        if left == before {
            // Only layers of weight zero have room.
            for (count, &most) in counts.iter_mut().zip(most) {
                let taken = left.min(most.saturating_sub(*count));
                *count += taken;
                left -= taken;
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{self, Params};
    use proptest::prelude::*;

    #[test]
    fn remainders_go_to_the_largest_fraction() {
        assert_eq!(largest_remainder(10, &[1.0, 1.0, 1.0]), [4, 3, 3]);
        assert_eq!(largest_remainder(10, &[1.0, 2.0, 4.0]), [1, 3, 6]);
    }

    #[test]
    fn unknown_names_list_the_known_ones() {
        let message = by_name("pyramdi").unwrap_err().to_string();
        assert!(
            message.contains("pyramdi") && message.contains("uniform"),
            "{message}"
        );
    }

    #[test]
    fn limits_hold_and_the_excess_goes_to_the_others() {
        assert_eq!(within(10, &[8.0, 1.0, 1.0], &[1; 3], &[4; 3]), [4, 3, 3]);
        assert_eq!(within(10, &[1.0, 0.0], &[0; 2], &[6; 2]), [6, 4]);
        assert_eq!(within(10, &[1.0, 1.0], &[6; 2], &[9; 2]), [5, 5]);
    }

    #[test]
    fn least_budgets_hold_what_is_protected() {
        let least =
            |name: &str| least_budget(&*policy::build("test", name, &Params::new()).unwrap());
        assert_eq!(
            [least("snapkv"), least("streaming-llm"), least("h2o")],
            [32, 5, 1]
        );
    }

    #[test]
    fn a_method_names_its_allocator() {
        assert_eq!(of_policy("pyramidkv").name(), "pyramid");
        assert_eq!(of_policy("cake").name(), "cake");
        assert_eq!(of_policy("snapkv").name(), "uniform");
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
            for (name, allocator) in REGISTRY {
                let budgets = allocator.split(total, prompt, &stats);
                prop_assert_eq!(budgets.len(), stats.len());
                prop_assert_eq!(budgets.iter().sum::<usize>(), total, "{}", name);
            }
        }

        #[test]
        fn limits_that_fit_the_total_hold(
            total in 0usize..20_000,
            layers in prop::collection::vec((0.0f64..1e6, 0usize..300, 0usize..3000), 1..80),
        ) {
            let weights: Vec<f64> = layers.iter().map(|own| own.0).collect();
            let least: Vec<usize> = layers.iter().map(|own| own.1).collect();
            let most: Vec<usize> = layers.iter().map(|own| own.1 + own.2).collect();
            let counts = within(total, &weights, &least, &most);
            prop_assume!(weights.iter().any(|&weight| weight > 0.0));
            prop_assert_eq!(counts.iter().sum::<usize>(), total);
            if (least.iter().sum()..=most.iter().sum()).contains(&total) {
                for (i, count) in counts.iter().enumerate() {
                    prop_assert!((least[i]..=most[i]).contains(count), "{} of {:?}", i, counts);
                }
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
                .map(|own| LayerStat { share: 1.0, least: own.0, sensitivity: 0.0 })
                .collect();
            let repeated = |values: &[f32]| values.iter().copied().cycle().take(entries).collect();
            let notes: Vec<Note> = layers
                .iter()
                .map(|own| Note { entries, rows: 1, values: repeated(&own.1) })
                .collect();
            let total = average * layers.len();
            let least: usize = stats.iter().map(|own| own.least).sum();
            let most: usize = stats.iter().map(|own| own.least.max(entries)).sum();
            prop_assume!((least..=most).contains(&total));
            for (name, allocator) in REGISTRY {
                let Some(online) = allocator.online() else { continue };
                let budgets = online.budgets(total, &stats, &notes, 0);
                prop_assert_eq!(budgets.iter().sum::<usize>(), total, "{}", name);
            }
        }

        #[test]
        fn the_sum_is_exact(total in 0usize..1_000_000, weights in prop::collection::vec(1e-6f64..1e6, 1..200)) {
            let counts = largest_remainder(total, &weights);
            prop_assert_eq!(counts.iter().sum::<usize>(), total);
        }
    }
}
