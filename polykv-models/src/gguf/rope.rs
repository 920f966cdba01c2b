//! How the rotary frequencies of a GGUF file are stretched.

use super::GgufFile;
use super::config::key;
use super::value::{quoted, widen};
use crate::config::{Family, RopeConfig, RopeScaling};
use polykv_core::{Error, Result};

impl GgufFile {
    /// The rotary embedding of layers that see every token.
    pub(super) fn rope(
        &self,
        family: Family,
        head_dim: usize,
        context: usize,
    ) -> Result<RopeConfig> {
        let theta = self.number(&key(family, "rope.freq_base"))?;
        let theta = theta.unwrap_or(10_000.0);
        let rotated_key = key(family, "rope.dimension_count");
        let rotated = match self.uint(&rotated_key)? {
            Some(_) => self.size(&rotated_key)?,
            None => head_dim,
        };
        if rotated != head_dim && family != Family::Phi3 {
            let reason = format!("{}: the head size is {head_dim}", self.place());
            return Err(Error::unsupported(
                format!("{rotated_key} {rotated}"),
                reason,
            ));
        }
        let has = |name: &str| self.tensor(name).is_some();
        let scaling = match () {
            () if has("rope_freqs.weight") => self.llama3_scaling(theta, head_dim)?,
            () if has(LONG) || has(SHORT) => self.longrope(family, context)?,
            () => self.rope_scaling(family, context)?,
        };
        Ok(RopeConfig {
            theta,
            rotated,
            scaling,
        })
    }

    /// LongRoPE, whose divisors are tensors of their own. Converters write the published attention factor.
    fn longrope(&self, family: Family, context: usize) -> Result<RopeScaling> {
        let original = self.size(&key(family, "rope.scaling.original_context_length"))?;
        let divisors = |name| -> Result<Vec<f64>> {
            let values = self.read_f32(name)?;
            Ok(values.into_iter().map(widen).collect())
        };
        let factors = [divisors(SHORT)?, divisors(LONG)?];
        let stated = self.number(&key(family, "rope.scaling.attn_factor"))?;
        let scaling = |factor| RopeScaling::longrope(factors.clone(), factor, context, original);
        let published = scaling(None);
        // The file holds an f32.
        let differs = |stated: &f64| (stated / published.magnitude() - 1.0).abs() > 1e-6;
        Ok(match stated.filter(differs) {
            Some(stated) => scaling(Some(stated)),
            None => published,
        })
    }

    fn rope_scaling(&self, family: Family, max_positions: usize) -> Result<RopeScaling> {
        let (type_key, factor_key) = (
            key(family, "rope.scaling.type"),
            key(family, "rope.scaling.factor"),
        );
        let factor = match self.number(&factor_key)? {
            Some(factor) => Some(factor),
            None => self.number(&key(family, "rope.scale_linear"))?,
        };
        match (self.text(&type_key)?, factor) {
            (Some("none"), _) | (None, None) => Ok(RopeScaling::None),
            (None | Some("linear"), Some(1.0)) => Ok(RopeScaling::None),
            (None | Some("linear"), Some(factor)) => Ok(RopeScaling::Linear { factor }),
            (Some("yarn"), Some(factor)) => self.yarn(family, factor, max_positions),
            (Some("linear" | "yarn"), None) => Err(self.refuse(&factor_key, "missing", "a number")),
            (Some(other), _) => Err(Error::unsupported(
                format!("{type_key} {}", quoted(other)),
                format!("{}: allowed are none, linear and yarn", self.place()),
            )),
        }
    }

    /// YaRN as published; files that turn its other knobs are refused.
    fn yarn(&self, family: Family, factor: f64, max_positions: usize) -> Result<RopeScaling> {
        for knob in [
            "attn_factor",
            "yarn_attn_factor",
            "yarn_beta_fast",
            "yarn_beta_slow",
            "yarn_ext_factor",
            "yarn_log_multiplier",
        ] {
            let key = key(family, &format!("rope.scaling.{knob}"));
            if self.value(&key).is_some() {
                return Err(Error::unsupported(key, self.place()));
            }
        }
        let original = key(family, "rope.scaling.original_context_length");
        let original = match self.uint(&original)? {
            Some(_) => self.size(&original)?,
            None => max_positions,
        };
        Ok(RopeScaling::yarn(factor, original))
    }

    /// The file holds only the divisors of the frequencies; the published parameters that give them are found by trial.
    pub(super) fn llama3_scaling(&self, theta: f64, head_dim: usize) -> Result<RopeScaling> {
        let shape = self.tensor("rope_freqs.weight").map(|freqs| &freqs.shape);
        let pairs = head_dim / 2;
        if shape.is_none_or(|shape| *shape != [pairs]) {
            let allowed = format!("[{pairs}], half the head size");
            let found = format!("{:?}", shape.map_or(&[][..], Vec::as_slice));
            return Err(self.refuse("tensor rope_freqs.weight", found, &allowed));
        }
        let divisors = self.read_f32("rope_freqs.weight")?;
        let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
        let (low, high, original) = (1.0, 4.0, 8192usize);
        let fits = divisors.iter().enumerate().all(|(pair, found)| {
            let frequency = theta.powf(-2.0 * pair as f64 / head_dim as f64);
            let expected = llama3_divisor(frequency, factor, low, high, original as f64);
            (f64::from(*found) / expected - 1.0).abs() < 1e-3
        });
        if !fits {
            let reason = format!(
                "{}: only Llama 3 scaling with frequency factors {low} and {high} from {original} positions is known",
                self.place()
            );
            return Err(Error::unsupported(
                "the scaling in rope_freqs.weight",
                reason,
            ));
        }
        Ok(RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_positions: original,
        })
    }
}

const LONG: &str = "rope_factors_long.weight";
const SHORT: &str = "rope_factors_short.weight";

/// What Llama 3 scaling divides one rotary frequency (radians per position) by.
fn llama3_divisor(frequency: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wavelength = std::f64::consts::TAU / frequency;
    if wavelength < original / high {
        1.0
    } else if wavelength > original / low {
        factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Value;
    use super::super::testing::tiny_llama;
    use super::*;

    #[test]
    fn yarn() {
        let set = |factor: f64| {
            tiny_llama()
                .value("llama.rope.scaling.type", &Value::String("yarn".into()))
                .value("llama.rope.scaling.factor", &Value::Float(factor))
        };
        let key = "llama.rope.scaling.original_context_length";
        let file = set(4.0).value(key, &Value::Uint(32)).open();
        let expected = RopeScaling::yarn(4.0, 32);
        let config = file.config().unwrap();
        assert_eq!(config.rope().scaling, expected);
        assert_eq!(config.max_positions, 128);
        // A context length that stayed that of the training.
        let config = set(4.0).open().config().unwrap();
        assert_eq!(config.max_positions, 512);
        let knob = "llama.rope.scaling.yarn_ext_factor";
        let file = set(4.0).value(knob, &Value::Float(1.0)).open();
        let message = file.config().unwrap_err().to_string();
        assert!(message.contains(knob), "{message}");
        let file = set(-4.0).open();
        let message = file.config().unwrap_err().to_string();
        assert!(message.contains("factor is -4"), "{message}");
    }

    #[test]
    fn llama3_factors_are_recognised() {
        // 32 pairs with theta 500000 and factor 8 reach all three branches.
        let divisors: Vec<f32> = (0..32)
            .map(|i| {
                let frequency = 500_000f64.powf(-2.0 * f64::from(i) / 64.0);
                llama3_divisor(frequency, 8.0, 1.0, 4.0, 8192.0) as f32
            })
            .collect();
        let load = |values: &[f32]| {
            tiny_llama()
                .f32_tensor("rope_freqs.weight", &[32], values)
                .open()
                .llama3_scaling(500_000.0, 64)
        };
        let expected = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        };
        assert_eq!(load(&divisors).unwrap(), expected);
        let mut other = divisors;
        other[16] *= 1.1;
        assert!(load(&other).unwrap_err().is_refusal());
    }
}
