use super::{Allocator, Basis, LayerStat};
use crate::apportion::largest_remainder;

/// Budgets that fall linearly from the first layer to the last (PyramidKV, arXiv 2406.02069). With `r` entries in the
/// average layer beside those that its policy protects, the first layer has `2 r - r / beta` of them and the last one
/// `r / beta`. No layer gets more than the prompt.
#[derive(Debug)]
pub struct PyramidAllocator {
    /// How many times larger the average is than the last layer's budget, protected entries aside.
    pub beta: f64,
}

impl Allocator for PyramidAllocator {
    fn name(&self) -> &str {
        "pyramid"
    }

    fn summary(&self) -> &str {
        "falling linearly from the first layer to the last (PyramidKV, arXiv 2406.02069)"
    }

    fn basis(&self) -> Basis {
        Basis::Prompt
    }

    fn implied_by(&self) -> Option<&'static str> {
        Some("pyramidkv")
    }

    fn split(&self, total: usize, prompt: usize, layers: &[LayerStat]) -> Vec<usize> {
        let count = layers.len();
        let average = total as f64 / count.max(1) as f64;
        let window = layers.iter().map(|stat| stat.least).max().unwrap_or(0) as f64;
        let rest = average - window;
        let room = prompt as f64 - window;
        if count < 2 || rest <= 0.0 || rest >= room {
            return largest_remainder(total, &vec![1.0; count]);
        }
        let most = (2.0 * rest - (rest / self.beta).floor()).min(room);
        // The mirror of the largest, so that the mean stays.
        let step = 2.0 * (most - rest) / count.saturating_sub(1) as f64;
        let budgets: Vec<f64> = (0..count)
            .map(|layer| window + most - layer as f64 * step)
            .collect();
        largest_remainder(total, &budgets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(total: usize, prompt: usize, least: usize, layers: usize) -> Vec<usize> {
        let stat = LayerStat {
            share: 1.0,
            least,
            sensitivity: 0.0,
        };
        PyramidAllocator { beta: 20.0 }.split(total, prompt, &vec![stat; layers])
    }

    #[test]
    fn budgets_by_hand() {
        // Beside the window of 8 there are 120 on average: from 2 · 120 − 6 down to 6.
        assert_eq!(split(3 * 128, 4000, 8, 3), [242, 128, 14]);
        // A prompt of 200 caps the first layer.
        assert_eq!(split(3 * 128, 200, 8, 3), [200, 128, 56]);
    }

    #[test]
    fn without_room_it_is_uniform() {
        assert_eq!(split(3 * 128, 100, 8, 3), [128; 3]);
        assert_eq!(split(3 * 8, 100, 8, 3), [8; 3]);
        assert_eq!(split(50, 100, 8, 1), [50]);
    }
}
