use super::{Allocator, Basis, LayerStat};
use crate::apportion::largest_remainder;

/// The same budget in every layer, or budgets in proportion to the shares that a plan states. They are rounded down, and
/// the entries that are left go to the layers with the largest remainders, one each.
#[derive(Debug)]
pub struct UniformAllocator;

impl Allocator for UniformAllocator {
    fn name(&self) -> &str {
        "uniform"
    }

    fn summary(&self) -> &str {
        "evenly, or by the shares that a plan states"
    }

    fn basis(&self) -> Basis {
        Basis::Shares
    }

    fn split(&self, total: usize, _prompt: usize, layers: &[LayerStat]) -> Vec<usize> {
        let shares: Vec<f64> = layers.iter().map(|stat| stat.share).collect();
        largest_remainder(total, &shares)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_by_share_to_the_exact_total() {
        let stats = |shares: &[f64]| -> Vec<LayerStat> {
            let stat = |&share: &f64| LayerStat {
                share,
                least: 1,
                sensitivity: 0.0,
            };
            shares.iter().map(stat).collect()
        };
        assert_eq!(UniformAllocator.split(11, 9, &stats(&[1.0; 3])), [4, 4, 3]);
        assert_eq!(UniformAllocator.split(12, 9, &stats(&[1.0, 2.0])), [4, 8]);
    }
}
