use super::{Allocator, Basis, LayerStat, Note, Online, by_claims};
use crate::Result;
use crate::ops;
use crate::policy::LayerView;
use burn::tensor::Tensor;

/// Budgets by the rank of each entry among the entries of all layers (as in DynamicKV, arXiv 2412.14838, and LAVa, arXiv
/// 2509.09754). Each layer's scores are divided by their sum; of all layers' entries together the highest fill the total,
/// and each layer's budget is the number of its entries among them. Until the last layer has been seen, each layer holds
/// at most `most` times the average budget.
///
/// Beyond the papers: what a policy protects is always among the highest and is left out of the sum. If a layer has
/// negative scores, all of its scores are first raised by the same amount, so that the lowest is 0. Entries are counted
/// over the heads and sequences together.
#[derive(Debug)]
pub struct DynamicAllocator {
    /// The most entries of a layer while others are still to come, in multiples of the average budget.
    pub most: usize,
}

impl Allocator for DynamicAllocator {
    fn name(&self) -> &str {
        "dynamic"
    }

    fn summary(&self) -> &str {
        "by a contest of all entries of all layers (as in DynamicKV, arXiv 2412.14838, and LAVa, arXiv 2509.09754)"
    }

    fn basis(&self) -> Basis {
        Basis::Layers
    }

    fn split(&self, total: usize, prompt: usize, layers: &[LayerStat]) -> Vec<usize> {
        by_claims(total, layers, |_| prompt)
    }

    fn online(&self) -> Option<&dyn Online> {
        Some(self)
    }
}

impl Online for DynamicAllocator {
    fn note(&self, view: &LayerView<'_>, scores: &Tensor<3>) -> Result<Note> {
        let [batch, kv_heads, entries] = scores.dims();
        let mask = view.protected.mask(view.positions.clone()).float();
        let read = |tensor: Tensor<3>| tensor.try_into_vec_as::<f32>().map_err(ops::read_error);
        let mut values = read(scores.clone())?;
        normalise(&mut values, &read(mask)?);
        Ok(Note {
            entries,
            rows: batch.saturating_mul(kv_heads),
            values,
        })
    }

    fn budgets(
        &self,
        total: usize,
        layers: &[LayerStat],
        notes: &[Note],
        to_come: usize,
    ) -> Vec<usize> {
        let both = layers.iter().zip(notes);
        if to_come > 0 {
            let all = layers.len().saturating_add(to_come);
            let most = self.most.saturating_mul(total.div_ceil(all.max(1)));
            return both
                .map(|(layer, note)| layer.least.max(note.entries.min(most)))
                .collect();
        }
        let rows = notes.first().map_or(1, |note| note.rows);
        let claimed: Vec<LayerStat> = layers
            .iter()
            .zip(wins(values(notes), total.saturating_mul(rows)))
            .map(|(layer, wins)| LayerStat {
                sensitivity: wins as f64,
                ..*layer
            })
            .collect();
        by_claims(total, &claimed, |layer| {
            notes.get(layer).map_or(0, |note| note.entries)
        })
    }
}

fn values(notes: &[Note]) -> impl Iterator<Item = &[f32]> {
    notes.iter().map(|note| note.values.as_slice())
}

/// Shares of a layer's sum, infinite where `protected` is 1.
fn normalise(scores: &mut [f32], protected: &[f32]) {
    let free = |(score, &protected): (&f32, &f32)| (protected < 0.5).then_some(f64::from(*score));
    let lowest = scores
        .iter()
        .zip(protected)
        .filter_map(free)
        .fold(0.0, f64::min);
    let sum: f64 = scores
        .iter()
        .zip(protected)
        .filter_map(free)
        .map(|score| score - lowest)
        .sum();
    for (score, &protected) in scores.iter_mut().zip(protected) {
        *score = match protected < 0.5 {
            true => ((f64::from(*score) - lowest) / sum.max(f64::MIN_POSITIVE)) as f32,
            false => f32::INFINITY,
        };
    }
}

/// How many of the `total` highest scores of all groups each group has; of equal scores those of earlier groups come first.
pub(crate) fn wins<'a>(groups: impl Iterator<Item = &'a [f32]>, total: usize) -> Vec<usize> {
    let mut wins = Vec::new();
    let mut all: Vec<(f32, usize)> = Vec::new();
    for (group, scores) in groups.enumerate() {
        all.extend(scores.iter().map(|&score| (score, group)));
        wins.push(0usize);
    }
    let best_first = |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if total < all.len() {
        all.select_nth_unstable_by(total, best_first);
        all.truncate(total);
    }
    for (_, group) in all {
        if let Some(wins) = wins.get_mut(group) {
            *wins = wins.saturating_add(1);
        }
    }
    wins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_become_shares() {
        let mut scores = [1.0, 3.0, 9.0];
        normalise(&mut scores, &[0.0, 0.0, 1.0]);
        assert_eq!(scores, [0.25, 0.75, f32::INFINITY]);
        let mut negative = [-3.0, -1.0, -2.0];
        normalise(&mut negative, &[0.0; 3]);
        assert_eq!(negative, [0.0, 2.0 / 3.0, 1.0 / 3.0]);
        let mut nothing = [0.0, 0.0];
        normalise(&mut nothing, &[0.0; 2]);
        assert_eq!(nothing, [0.0, 0.0]);
    }

    #[test]
    fn the_highest_win_whatever_their_layer() {
        let note = |values: [f32; 3], entries| Note {
            entries,
            rows: 1,
            values: values.to_vec(),
        };
        let notes = [note([0.5, 0.3, 0.2], 3), note([0.9, 0.1, 0.0], 3)];
        assert_eq!(wins(values(&notes), 3), [2, 1]);
        assert_eq!(wins(values(&notes), 9), [3, 3]);
        let layers = [LayerStat {
            share: 1.0,
            least: 0,
            sensitivity: 0.0,
        }; 2];
        let dynamic = DynamicAllocator { most: 10 };
        assert_eq!(dynamic.budgets(3, &layers, &notes, 0), [2, 1]);
        let wide = [note([0.5, 0.3, 0.2], 300)];
        assert_eq!(dynamic.budgets(3, &layers[..1], &wide, 1), [20]);
        assert_eq!(dynamic.budgets(3, &layers[..1], &notes[..1], 1), [3]);
    }
}
