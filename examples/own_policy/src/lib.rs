//! A policy that PolyKV does not ship: every `stride`-th position stays before the others, which is what a sparse
//! attention pattern would look at.

use polykv::burn::tensor::Tensor;
use polykv::policy::{LayerView, NamedPolicy, Params, Policies, Policy, Protect, State};
use polykv::testing::{Head, Oracle};
use polykv::{Registry, Result};
use serde::{Deserialize, Serialize};

/// Every `stride`-th position first, of these and of the others the latest; the last `recent` entries always.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Strided {
    /// Distance of the positions that stay, at least 1.
    pub stride: usize,
    /// The latest entries that stay whatever their position.
    pub recent: usize,
}

impl Default for Strided {
    fn default() -> Self {
        Self {
            stride: 8,
            recent: 4,
        }
    }
}

impl NamedPolicy for Strided {
    const NAME: &'static str = "strided";
    const SUMMARY: &'static str = "every n-th position and the latest";
    const SOURCE: Option<&'static str> = None;
    const VARIANTS: &'static [&'static str] = &["{stride: 3}", "{stride: 2, recent: 1}"];

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        let policy: Self = params.read()?;
        match (1..=1024).contains(&policy.stride) && policy.recent <= 1024 {
            true => Ok(policy),
            false => Err("stride from 1 to 1024, recent from 0 to 1024".into()),
        }
    }
}

impl Policy for Strided {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        Params::of(self)
    }

    fn protect(&self, _budget: usize) -> Protect {
        Protect {
            sinks: 0,
            recent: self.recent,
        }
    }

    fn same_for_all_heads(&self) -> bool {
        true
    }

    /// `[batch, kv_heads, entries]`, higher stays: the position, and for every `stride`-th one far more.
    fn score(&self, _state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        let positions = view.positions.clone().float();
        let stride = self.stride as f32;
        let rest = positions.clone() - (positions.clone() / stride).floor() * stride;
        let chosen = rest.lower_elem(0.5);
        Ok(positions.clone().mask_where(chosen, positions + 1e6))
    }

    fn oracle(&self) -> Option<&dyn Oracle> {
        Some(self)
    }
}

/// The same in 64 bits on the host, which the harness of PolyKV compares every device with.
impl Oracle for Strided {
    fn scores(&self, head: &Head<'_>) -> Vec<f64> {
        let score = |position: usize| match position % self.stride {
            0 => position as f64 + 1e6,
            _ => position as f64,
        };
        head.entries()
            .iter()
            .map(|entry| score(entry.position))
            .collect()
    }
}

/// What PolyKV ships, and this crate's policy.
///
/// # Errors
/// A name that is taken.
pub fn registry() -> Result<Registry> {
    let mut registry = Registry::default();
    registry.register::<Strided>()?;
    Ok(registry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use polykv::{DeviceSpec, PlanFile};

    #[test]
    fn the_policy_passes_the_harness_of_polykv() {
        let registry = registry().unwrap();
        let device = DeviceSpec::Cpu.open().unwrap();
        polykv::testing::check(&registry.policies, Strided::NAME, &device).unwrap();
    }

    #[test]
    fn plan_files_name_it_beside_others() {
        let file = PlanFile::from_yaml(include_str!("../plan.yaml")).unwrap();
        let plan = file.build(&registry().unwrap()).unwrap();
        assert_eq!(plan.layers[0].prefill.policy().unwrap().name(), "strided");
        let error = file.build(&Registry::default()).unwrap_err().to_string();
        assert!(error.contains("'strided'"), "{error}");
    }
}
