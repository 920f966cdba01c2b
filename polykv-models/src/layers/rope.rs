use crate::config::{ModelConfig, RopeScaling};
use burn::tensor::{Device, Tensor, TensorData};
use polykv_core::{RopeFacts, ops};
use std::f64::consts::TAU;
use std::ops::Range;

/// Rotary position embedding in the rotate-half layout of Hugging Face checkpoints: element `i` turns with element
/// `i + head_dim / 2`.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Radians per position, one per pair of elements.
    frequencies: Vec<f64>,
    /// Multiplies cosines and sines: how YaRN sharpens attention in long contexts.
    magnitude: f64,
}

/// The cosines and sines of consecutive positions, for all rows of a batch or for each of them.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// `[rows, 1, tokens, head_dim / 2]`, where one row stands for all rows of a batch.
    pub(super) cos: Tensor<4>,
    pub(super) sin: Tensor<4>,
}

impl RopeTable {
    /// Whether all rows of a batch stand at the same positions.
    pub(super) fn is_shared(&self) -> bool {
        self.cos.dims()[0] == 1
    }

    /// Elements of the vectors that are rotated.
    pub(super) fn head_dim(&self) -> usize {
        2 * self.cos.dims()[3]
    }

    /// Rotates queries or keys, `[batch, heads, tokens, head_dim]`.
    pub(super) fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        if self.is_shared() {
            return ops::rotate(x, self.cos.clone(), self.sin.clone());
        }
        // The operator takes one table for all rows.
        let row = |row| {
            let [x, cos, sin] = [&x, &self.cos, &self.sin].map(|all| all.clone().narrow(0, row, 1));
            ops::rotate(x, cos, sin)
        };
        Tensor::cat((0..x.dims()[0]).map(row).collect(), 0)
    }
}

impl Rope {
    /// The rotary embedding of a model: its base and its scaling.
    pub fn new(config: &ModelConfig) -> Self {
        let pairs = config.head_dim / 2;
        let mut frequencies: Vec<f64> = (0..pairs)
            .map(|i| config.rope_theta.powf(-(i as f64) / pairs as f64))
            .collect();
        scale(&mut frequencies, config);
        let magnitude = match config.rope_scaling {
            RopeScaling::Yarn {
                attention_factor, ..
            } => attention_factor,
            _ => 1.0,
        };
        Self {
            frequencies,
            magnitude,
        }
    }

    /// The facts about the rotary embedding that eviction policies can use.
    pub fn facts(&self) -> RopeFacts {
        RopeFacts {
            frequencies: self.frequencies.as_slice().into(),
            magnitude: self.magnitude,
        }
    }

    /// The cosines and sines of `tokens` consecutive positions in each row of a batch, on a device. Row `i` starts at position
    /// `first[i]`.
    pub fn table_of_rows(&self, first: &[usize], tokens: usize, device: &Device) -> RopeTable {
        let table = |first: usize| self.table(first..first + tokens, device);
        match first {
            [one, others @ ..] if others.iter().any(|other| other != one) => {
                let rows = first.iter().map(|&first| table(first));
                let (cos, sin) = rows.map(|row| (row.cos, row.sin)).unzip();
                RopeTable {
                    cos: Tensor::cat(cos, 0),
                    sin: Tensor::cat(sin, 0),
                }
            }
            _ => table(first.first().copied().unwrap_or(0)),
        }
    }

    /// The cosines and sines of a range of positions, on a device. They are the same in all rows of a batch.
    pub fn table(&self, positions: Range<usize>, device: &Device) -> RopeTable {
        let dims = [1, 1, positions.len(), self.frequencies.len()];
        let table = |f: fn(f64) -> f64| {
            let row = |p: usize| self.frequencies.iter().map(move |w| f(p as f64 * w));
            let values: Vec<f32> = positions
                .clone()
                .flat_map(|p| row(p).map(|x| (x * self.magnitude) as f32))
                .collect();
            Tensor::from_data(TensorData::new(values, dims), device)
        };
        RopeTable {
            cos: table(f64::cos),
            sin: table(f64::sin),
        }
    }
}

/// Stretches the frequencies, one per pair of elements, fastest first.
fn scale(frequencies: &mut [f64], config: &ModelConfig) {
    match config.rope_scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => frequencies.iter_mut().for_each(|w| *w /= factor),
        // Short wavelengths stay, long ones are stretched, those between are blended by the turns they make.
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } => {
            for w in frequencies {
                let turns = original_max_positions as f64 * *w / TAU;
                let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                *w = blend(*w, factor, kept);
            }
        }
        // The same idea, blended by the index of the pair.
        RopeScaling::Yarn {
            factor,
            original_max_positions,
            beta_fast,
            beta_slow,
            truncate,
            ..
        } => {
            // The pair, as a fraction, that makes so many turns within the original context.
            let pair_with = |turns: f64| {
                let wavelengths = original_max_positions as f64 / (turns * TAU);
                frequencies.len() as f64 * wavelengths.ln() / config.rope_theta.ln()
            };
            let (mut low, mut high) = (pair_with(beta_fast), pair_with(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            // Not the number of pairs: so it was published, and checkpoints are trained with it.
            (low, high) = (low.max(0.0), high.min(config.head_dim as f64 - 1.0));
            if low == high {
                high += 0.001;
            }
            for (pair, w) in frequencies.iter_mut().enumerate() {
                *w = blend(*w, factor, 1.0 - (pair as f64 - low) / (high - low));
            }
        }
    }
}

/// `kept` of 1 and more leaves the frequency, 0 and less divides it by `factor`.
fn blend(frequency: f64, factor: f64, kept: f64) -> f64 {
    let kept = kept.clamp(0.0, 1.0);
    (1.0 - kept) * frequency / factor + kept * frequency
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaled(frequency: f64, rope_scaling: RopeScaling) -> f64 {
        let config = ModelConfig {
            rope_scaling,
            ..ModelConfig::example()
        };
        let mut frequencies = [frequency];
        scale(&mut frequencies, &config);
        frequencies[0]
    }

    #[test]
    fn llama3_scaling_keeps_short_and_stretches_long_wavelengths() {
        let llama3 = |frequency| {
            let scaling = RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_positions: 8192,
            };
            scaled(frequency, scaling)
        };
        assert_eq!(llama3(1.0), 1.0);
        assert_eq!(llama3(1e-5), 1e-5 / 8.0);
        // Two turns lie a third of the way from one to four.
        let middle = 2.0 * TAU / 8192.0;
        let expected = middle / 8.0 * (2.0 / 3.0) + middle / 3.0;
        assert!((llama3(middle) - expected).abs() < 1e-12);
    }

    #[test]
    fn linear_scaling_divides() {
        let linear = RopeScaling::Linear { factor: 4.0 };
        assert_eq!(scaled(0.5, linear), 0.125);
    }

    /// Numbers of transformers 4.57.6 for the example's shape, f32 there.
    #[test]
    fn yarn_equals_transformers() {
        let check = |rope_scaling, wanted: [(usize, f64); 4], magnitude: f64| {
            let rope = Rope::new(&ModelConfig {
                rope_scaling,
                ..ModelConfig::example()
            });
            for (pair, wanted) in wanted {
                let found = rope.frequencies[pair];
                assert!((found / wanted - 1.0).abs() < 1e-6, "{pair}: {found}");
            }
            assert!((rope.magnitude - magnitude).abs() < 1e-12);
        };
        let published = RopeScaling::yarn(4.0, 2048);
        let wanted = [
            (0, 1.0),
            (9, 0.03121514804661274),
            (13, 0.004864353686571121),
            (31, 3.582531689971802e-06),
        ];
        check(published, wanted, 1.138629436111989);
        let given = RopeScaling::Yarn {
            factor: 4.0,
            original_max_positions: 2048,
            beta_fast: 8.0,
            beta_slow: 2.0,
            attention_factor: 1.25,
            truncate: false,
        };
        let wanted = [
            (9, 0.03924189880490303),
            (11, 0.01652214676141739),
            (13, 0.004423138685524464),
            (17, 0.000551683537196368),
        ];
        check(given, wanted, 1.25);
    }
}
