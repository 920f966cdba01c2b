use super::{Appended, LayerView, NamedPolicy, Params, Policies, Policy, State};
use crate::Result;
use crate::random::splitmix;
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

/// Keeps random entries: the baseline that every policy must beat. The score of an entry is a hash of (seed, layer, head,
/// position), so that the same entries stay on every device and in every run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Random {
    /// The seed of the hash.
    pub seed: u64,
}

impl NamedPolicy for Random {
    const NAME: &'static str = "random";
    const SUMMARY: &'static str = "a seeded hash: the floor for every policy";
    const SOURCE: Option<&'static str> = None;
    const VARIANTS: &'static [&'static str] = &["{seed: 9}"];

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        params.read()
    }
}

impl Random {
    /// The hashes of appended entries, `[batch, kv_heads, tokens]`.
    pub(super) fn hashes(&self, appended: &Appended) -> Tensor<3> {
        let shape = appended.shape;
        let tokens = appended.positions.len();
        let mut values = Vec::with_capacity(shape.batch * shape.kv_heads * tokens);
        for _ in 0..shape.batch {
            for head in appended.first_head..appended.first_head + shape.kv_heads {
                let positions = appended.positions.clone();
                values.extend(positions.map(|position| self.hash(appended.layer, head, position)));
            }
        }
        let dims = [shape.batch, shape.kv_heads, tokens];
        Tensor::from_data(TensorData::new(values, dims), &appended.device)
    }

    /// The hash of an entry, in [0, 1) and exact in f32.
    pub(super) fn hash(&self, layer: usize, head: usize, position: usize) -> f32 {
        let mut x = self.seed;
        for word in [layer as u64, head as u64, position as u64] {
            x = splitmix(x ^ splitmix(word));
        }
        (x >> 40) as f32 / (1u64 << 24) as f32
    }
}

impl Policy for Random {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        Params::of(self)
    }

    // Positions are known on the host when entries arrive: hashing them there keeps 64-bit integers off devices that
    // have none.
    fn append(&self, state: &mut State, appended: &Appended) -> Result<()> {
        state.extend_with(self.hashes(appended));
        Ok(())
    }

    fn score(&self, state: &State, _view: &LayerView<'_>) -> Result<Tensor<3>> {
        Ok(state.entries[0].clone())
    }

    #[cfg(feature = "testing")]
    fn oracle(&self) -> Option<&dyn crate::testing::Oracle> {
        Some(self)
    }
}

#[cfg(feature = "testing")]
mod oracle {
    use super::*;
    use crate::testing::{Head, Oracle};

    impl Oracle for Random {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            let entries = head.entries().iter();
            entries
                .map(|entry| f64::from(self.hash(head.layer(), head.head(), entry.position)))
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_spread_and_depends_on_every_word() {
        let random = Random { seed: 7 };
        let mean = (0..1000).map(|p| random.hash(0, 0, p)).sum::<f32>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.05, "{mean}");
        let base = random.hash(1, 2, 3);
        for other in [
            random.hash(2, 2, 3),
            random.hash(1, 3, 3),
            random.hash(1, 2, 4),
            Random { seed: 8 }.hash(1, 2, 3),
        ] {
            assert_ne!(base, other);
        }
    }
}
