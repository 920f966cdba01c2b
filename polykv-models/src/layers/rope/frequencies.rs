//! The frequencies of a rotary embedding, scaled for long contexts.

use crate::config::{RopeConfig, RopeScaling};
use std::f64::consts::TAU;

/// Radians per position, one per rotated pair of elements, fastest first.
pub(super) fn frequencies(rope: &RopeConfig) -> Vec<f64> {
    let pairs = rope.rotated / 2;
    let mut frequencies: Vec<f64> = (0..pairs)
        .map(|i| rope.theta.powf(-(i as f64) / pairs as f64))
        .collect();
    scale(&mut frequencies, rope);
    frequencies
}

/// Stretches the frequencies, one per pair of elements, fastest first.
fn scale(frequencies: &mut [f64], rope: &RopeConfig) {
    match rope.scaling {
        RopeScaling::None => {}
        RopeScaling::LongRope { ref divisors, .. } => {
            for (w, divisor) in frequencies.iter_mut().zip(divisors) {
                *w /= divisor;
            }
        }
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
                frequencies.len() as f64 * wavelengths.ln() / rope.theta.ln()
            };
            let (mut low, mut high) = (pair_with(beta_fast), pair_with(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            // Not the number of pairs: so it was published, and checkpoints are trained with it.
            (low, high) = (low.max(0.0), high.min(rope.rotated as f64 - 1.0));
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

    /// The rotary embedding of SmolLM2 with another scaling.
    fn rope(scaling: RopeScaling) -> RopeConfig {
        RopeConfig {
            scaling,
            ..RopeConfig::new(100_000.0, 64)
        }
    }

    fn scaled(frequency: f64, scaling: RopeScaling) -> f64 {
        let mut frequencies = [frequency];
        scale(&mut frequencies, &rope(scaling));
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

    /// Numbers of transformers 4.57.6 for SmolLM2's shape, f32 there.
    #[test]
    fn yarn_equals_transformers() {
        let check = |scaling: RopeScaling, wanted: [(usize, f64); 4], magnitude: f64| {
            let found = frequencies(&rope(scaling.clone()));
            for (pair, wanted) in wanted {
                let found = found[pair];
                assert!((found / wanted - 1.0).abs() < 1e-6, "{pair}: {found}");
            }
            assert!((scaling.magnitude() - magnitude).abs() < 1e-12);
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
