use crate::config::{ModelConfig, RopeScaling};
use burn::tensor::{Device, Tensor, TensorData, s};
use std::f64::consts::TAU;
use std::ops::Range;

/// Rotary position embedding in the rotate-half layout of Hugging Face checkpoints: element `i` turns with element
/// `i + head_dim / 2`.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Radians per position, one per pair of elements.
    frequencies: Vec<f64>,
}

/// Cosines and sines of consecutive positions.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// `[1, 1, tokens, head_dim / 2]`
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rope {
    pub fn new(config: &ModelConfig) -> Self {
        let pairs = config.head_dim / 2;
        let frequencies = (0..pairs)
            .map(|i| config.rope_theta.powf(-(i as f64) / pairs as f64))
            .map(|frequency| scale(frequency, &config.rope_scaling))
            .collect();
        Self { frequencies }
    }

    /// The table for `positions`.
    pub fn table(&self, positions: Range<usize>, device: &Device) -> RopeTable {
        let dims = [1, 1, positions.len(), self.frequencies.len()];
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = positions
                .clone()
                .flat_map(|p| self.frequencies.iter().map(move |w| f(p as f64 * w) as f32))
                .collect();
            Tensor::from_data(TensorData::new(values, dims), device)
        };
        RopeTable {
            cos: table(f64::cos),
            sin: table(f64::sin),
        }
    }
}

fn scale(frequency: f64, scaling: &RopeScaling) -> f64 {
    match *scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        // Llama 3.1: short wavelengths stay, long ones are stretched, those between are blended.
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } => {
            let turns = original_max_positions as f64 * frequency / TAU;
            if turns > high_freq_factor {
                frequency
            } else if turns < low_freq_factor {
                frequency / factor
            } else {
                let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - kept) * frequency / factor + kept * frequency
            }
        }
    }
}

impl RopeTable {
    /// `[batch, heads, tokens, head_dim]` in and out.
    pub fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let [_, _, _, head_dim] = x.dims();
        let half = head_dim / 2;
        let first = x.clone().slice(s![.., .., .., 0..half]);
        let second = x.slice(s![.., .., .., half..head_dim]);
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        Tensor::cat(
            vec![
                first.clone() * cos.clone() - second.clone() * sin.clone(),
                second * cos + first * sin,
            ],
            3,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA3: RopeScaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    };

    #[test]
    fn llama3_scaling_keeps_short_and_stretches_long_wavelengths() {
        assert_eq!(scale(1.0, &LLAMA3), 1.0);
        assert_eq!(scale(1e-5, &LLAMA3), 1e-5 / 8.0);
        // Two turns lie a third of the way from one to four.
        let middle = 2.0 * TAU / 8192.0;
        let expected = middle / 8.0 * (2.0 / 3.0) + middle / 3.0;
        assert!((scale(middle, &LLAMA3) - expected).abs() < 1e-12);
    }

    #[test]
    fn linear_scaling_divides() {
        assert_eq!(scale(0.5, &RopeScaling::Linear { factor: 4.0 }), 0.125);
    }
}
