use super::{Allocator, Basis, LayerStat, Note, Online, by_claims};
use crate::Result;
use crate::policy::{LayerView, Needs};
use crate::{Error, ops};
use burn::tensor::Tensor;

/// Budgets in proportion to `H^spatial · V^temporal` of each layer (CAKE, arXiv 2503.12491). `H` is the entropy −Σ a ln a
/// of the attention that the last `window` queries pay to everything before them; `V` is the variance of that attention
/// over these queries, summed over entries and heads. Layers are cut again as later layers claim their part, so that the
/// total is never exceeded.
#[derive(Debug)]
pub struct CakeAllocator {
    /// How many of the latest queries are looked at.
    pub window: usize,
    /// The exponent of the entropy, 1/τ₁ in the paper.
    pub spatial: f64,
    /// The exponent of the variance, 1/τ₂ in the paper.
    pub temporal: f64,
}

impl Allocator for CakeAllocator {
    fn name(&self) -> &str {
        "cake"
    }

    fn summary(&self) -> &str {
        "by entropy and variance of the last queries' attention in each layer (CAKE, arXiv 2503.12491)"
    }

    fn basis(&self) -> Basis {
        Basis::Layers
    }

    fn implied_by(&self) -> Option<&'static str> {
        Some("cake")
    }

    fn split(&self, total: usize, prompt: usize, layers: &[LayerStat]) -> Vec<usize> {
        by_claims(total, layers, |_| prompt)
    }

    fn online(&self) -> Option<&dyn Online> {
        Some(self)
    }
}

impl Online for CakeAllocator {
    fn needs(&self) -> Needs {
        Needs {
            queries: self.window,
            ..Needs::default()
        }
    }

    fn note(&self, view: &LayerView<'_>, _scores: &Tensor<3>) -> Result<Note> {
        let attention = view.window_attention(self.window)?; // [batch, kv_heads, group, window, entries]
        let [batch, kv_heads, _, window, entries] = attention.dims();
        let note = |claim: f64| Note {
            entries,
            rows: batch.saturating_mul(kv_heads),
            values: vec![claim as f32],
        };
        let old = entries.saturating_sub(window);
        if old == 0 {
            return Ok(note(0.0));
        }
        // After a prompt the entries are in order of position.
        let attention = attention.narrow(4, 0, old);
        let logarithms = attention.clone().clamp_min(1e-30).log();
        let entropy = attention.clone().mul(logarithms).sum().neg();
        let mean = attention.clone().mean_dim(3);
        let variance = attention.sub(mean).square().sum();
        let variance = variance.div_scalar(window.saturating_sub(1).max(1) as f32);
        let both: Vec<f32> = Tensor::cat(vec![entropy, variance], 0)
            .try_into_vec_as()
            .map_err(ops::read_error)?;
        let [entropy, variance] = both[..] else {
            return Err(Error::Failed(
                "the cake allocator's claim is no pair".into(),
            ));
        };
        let claim = f64::from(entropy.max(0.0)).powf(self.spatial)
            * f64::from(variance).powf(self.temporal);
        match claim.is_finite() {
            true => Ok(note(claim)),
            false => Err(Error::NotFinite(format!(
                "layer {}: the cake allocator's claim is {claim}",
                view.layer
            ))),
        }
    }

    fn budgets(
        &self,
        total: usize,
        layers: &[LayerStat],
        notes: &[Note],
        to_come: usize,
    ) -> Vec<usize> {
        // The layers so far may not need all of it yet.
        let room = layers
            .iter()
            .zip(notes)
            .map(|(layer, note)| layer.least.max(note.entries));
        let total = match to_come {
            0 => total,
            _ => total.min(room.fold(0, usize::saturating_add)),
        };
        let claimed = |(layer, note): (&LayerStat, &Note)| LayerStat {
            sensitivity: note.values.iter().copied().map(f64::from).sum(),
            ..*layer
        };
        let claimed: Vec<LayerStat> = layers.iter().zip(notes).map(claimed).collect();
        by_claims(total, &claimed, |layer| {
            notes.get(layer).map_or(0, |note| note.entries)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAKE: CakeAllocator = CakeAllocator {
        window: 32,
        spatial: 1.0,
        temporal: 1.0,
    };

    fn budgets(total: usize, claims: &[f32], to_come: usize) -> Vec<usize> {
        let layer = LayerStat {
            share: 1.0,
            least: 32,
            sensitivity: 0.0,
        };
        let note = |&claim: &f32| Note {
            entries: 400,
            rows: 3,
            values: vec![claim],
        };
        let notes: Vec<Note> = claims.iter().map(note).collect();
        CAKE.budgets(total, &vec![layer; claims.len()], &notes, to_come)
    }

    #[test]
    fn claims_divide_the_total() {
        // Beside 32 in each there are 204, and the last layer is full at 400.
        assert_eq!(budgets(300, &[1.0, 2.0, 1.0], 0), [83, 134, 83]);
        assert_eq!(budgets(500, &[1.0, 1.0, 98.0], 0), [50, 50, 400]);
    }

    #[test]
    fn earlier_layers_shrink_as_others_come() {
        assert_eq!(budgets(600, &[1.0], 2), [400]);
        assert_eq!(budgets(600, &[1.0, 1.0], 1), [300, 300]);
        assert_eq!(budgets(600, &[1.0, 1.0, 1.0], 0), [200, 200, 200]);
    }
}
