//! Splitting a total budget over layers.

mod uniform;

pub use uniform::Uniform;

use crate::{Error, Result};
use std::fmt::Debug;

/// What an allocator may know of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerStat {
    /// Relative claim on the total, positive.
    pub share: f64,
}

/// Splits `total` entries over layers; the result sums to `total` exactly.
pub trait Allocator: Send + Sync + Debug {
    fn name(&self) -> &'static str;

    fn split(&self, total: usize, layers: &[LayerStat]) -> Vec<usize>;
}

/// Every allocator by name. A new one is one file and one line here.
pub const REGISTRY: &[(&str, &dyn Allocator)] = &[("uniform", &Uniform)];

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

#[cfg(test)]
mod tests {
    use super::*;
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

    proptest! {
        #[test]
        fn the_sum_is_exact(total in 0usize..1_000_000, weights in prop::collection::vec(1e-6f64..1e6, 1..200)) {
            let counts = largest_remainder(total, &weights);
            prop_assert_eq!(counts.iter().sum::<usize>(), total);
        }
    }
}
