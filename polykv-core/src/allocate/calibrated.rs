use super::{Allocator, Basis, LayerStat};
use crate::apportion::within;

/// A minimum for every layer and the rest in proportion to the measured sensitivities (PolyKV, arXiv 2606.15157,
/// Algorithm 1). The minimum is what the layer's policy protects, or a quarter of the average budget if that is more. No
/// layer gets more than the prompt; what it would get beyond that goes to the others in the same proportion.
#[derive(Debug)]
pub struct CalibratedAllocator {
    /// Added to every sensitivity, so that layers which all have sensitivity 0 get equal budgets.
    pub epsilon: f64,
}

impl Allocator for CalibratedAllocator {
    fn name(&self) -> &str {
        "calibrated"
    }

    fn summary(&self) -> &str {
        "a floor for every layer, the rest by measured sensitivities (PolyKV, arXiv 2606.15157)"
    }

    fn basis(&self) -> Basis {
        Basis::Calibration
    }

    fn split(&self, total: usize, prompt: usize, layers: &[LayerStat]) -> Vec<usize> {
        let quarter = total.checked_div(layers.len()).unwrap_or(0) / 4;
        let least: Vec<usize> = layers
            .iter()
            .map(|layer| layer.least.max(quarter))
            .collect();
        let most: Vec<usize> = least.iter().map(|&least| least.max(prompt)).collect();
        let weights: Vec<f64> = layers
            .iter()
            .map(|layer| layer.sensitivity.max(0.0) + self.epsilon)
            .collect();
        within(total, &weights, &least, &most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(total: usize, prompt: usize, least: usize, signal: &[f64]) -> Vec<usize> {
        let stat = |&sensitivity: &f64| LayerStat {
            share: 1.0,
            least,
            sensitivity,
        };
        let stats: Vec<LayerStat> = signal.iter().map(stat).collect();
        CalibratedAllocator { epsilon: 1e-6 }.split(total, prompt, &stats)
    }

    #[test]
    fn budgets_by_hand() {
        // Floors of 25 leave 225 for the weights 1, 2 and 6.
        assert_eq!(split(300, 1000, 5, &[1.0, 2.0, 6.0]), [50, 75, 175]);
        assert_eq!(split(300, 1000, 40, &[0.0, 0.0, 1.0]), [40, 40, 220]);
        assert_eq!(split(300, 150, 40, &[0.0, 0.0, 1.0]), [75, 75, 150]);
        assert_eq!(split(300, 1000, 5, &[0.0; 3]), [100; 3]);
    }
}
