//! Budgets that depend on what the layers do with the prompt: layers are cut in steps until all have had it.

use super::{KvCache, Spans};
use crate::allocate::{self, Allocator, LayerStat, Note, Online};
use crate::apportion::{capped, largest_remainder};
use crate::facts::most_entries;
use crate::phase::Phase;
use crate::plan::Resolved;
use crate::{Error, Result};
use std::sync::Arc;

/// The budgets of one prompt's layers while it runs through them.
#[derive(Clone, Debug)]
pub(super) struct Cascade {
    allocator: Arc<dyn Allocator>,
    /// The least budget of each layer, per phase; `None` for a phase that keeps everything there.
    least: [Vec<Option<usize>>; 2],
    /// The most entries that the window of each layer holds.
    most: Vec<usize>,
    /// Entries of all layers together, per phase.
    totals: [usize; 2],
    /// What the allocator remembers of the layers so far.
    notes: Vec<Note>,
    /// Entries that each layer so far holds; `None` for one that keeps everything after the prompt.
    held: Vec<Option<usize>>,
}

impl Cascade {
    /// The cascade of a plan whose allocator splits by what the layers do; `None` for any other plan.
    pub fn of(
        allocator: Option<Arc<dyn Allocator>>,
        resolved: &Resolved,
        spans: &Spans,
    ) -> Result<Option<Self>> {
        let Some(allocator) = allocator.filter(|allocator| allocator.online().is_some()) else {
            return Ok(None);
        };
        let most: Vec<usize> = resolved
            .layers
            .iter()
            .map(|layer| most_entries(layer.window))
            .collect();
        let least = |phase| {
            let layers = resolved.layers.iter().zip(&most);
            let layers = layers.map(|(layer, &most)| match layer.of(phase) {
                Some(eviction) => {
                    let count = |protect| spans.count_with(protect);
                    let least = allocate::least_budget_of(&*eviction.policy, count)?;
                    Ok(Some(least.min(most)))
                }
                None => Ok(None),
            });
            layers.collect::<Result<Vec<_>>>()
        };
        Ok(Some(Self {
            allocator,
            least: [least(Phase::Prefill)?, least(Phase::Decode)?],
            most,
            totals: Phase::BOTH.map(|phase| resolved.total(phase)),
            notes: Vec::new(),
            held: Vec::new(),
        }))
    }

    pub fn online(&self) -> Result<&dyn Online> {
        self.allocator.online().ok_or_else(|| {
            let name = self.allocator.name();
            Error::Failed(format!("allocator {name} does not look at layers"))
        })
    }

    /// Adds the next layer. Returns the entries that each layer so far may hold; `None` for one that keeps everything.
    pub fn add_layer(&mut self, note: Note) -> Result<&[Option<usize>]> {
        let [least, _] = &self.least;
        let evicts = least.get(self.notes.len()).copied().flatten();
        self.held.push(evicts.map(|_| note.entries));
        self.notes.push(note);
        let wanted = self.budgets(Phase::Prefill)?;
        shrink(&mut self.held, &wanted);
        Ok(&self.held)
    }

    /// Adds a layer that is like all others after `tokens` tokens, but for its window, for estimates without a model.
    pub fn add_equal_layer(&mut self, tokens: usize) -> Result<&[Option<usize>]> {
        let entries = tokens.min(self.most.get(self.notes.len()).copied().unwrap_or(tokens));
        self.add_layer(Note {
            entries,
            rows: 1,
            values: (1..=entries).map(|rank| 1.0 / rank as f32).collect(),
        })
    }

    /// The budgets of the layers so far in a phase.
    fn budgets(&self, phase: Phase) -> Result<Vec<Option<usize>>> {
        let ([prefill, decode], [prefill_total, decode_total]) = (&self.least, self.totals);
        let (least, total) = match phase {
            Phase::Prefill => (prefill, prefill_total),
            Phase::Decode => (decode, decode_total),
        };
        let seen = self.notes.len();
        let mut stats = Vec::new();
        let mut notes = Vec::new();
        for (least, note) in least.iter().zip(&self.notes) {
            if let Some(least) = *least {
                stats.push(LayerStat {
                    share: 1.0,
                    least,
                    sensitivity: 0.0,
                });
                notes.push(note.clone());
            }
        }
        let to_come = least.iter().skip(seen).flatten().count();
        let split = self.online()?.budgets(total, &stats, &notes, to_come);
        let evicts: Vec<Option<usize>> = least.iter().take(seen).copied().collect();
        Ok(self.within_windows(&evicts, &split))
    }

    /// A budget for each layer that evicts, none for the others; what a window does not hold goes to the other layers.
    fn within_windows(&self, evicts: &[Option<usize>], split: &[usize]) -> Vec<Option<usize>> {
        let evicting = evicts
            .iter()
            .zip(&self.most)
            .filter(|(evicts, _)| evicts.is_some());
        let most: Vec<usize> = evicting.map(|(_, &most)| most).collect();
        let mut split = capped(split, &most, 0).into_iter();
        let budget = |evicts: &Option<usize>| evicts.and_then(|_| split.next());
        evicts.iter().map(budget).collect()
    }

    /// The budgets of the decode phase once all layers have been added. If both phases evict in the same layers, the budgets
    /// are what the layers hold, and the rest of the total is split evenly: nothing is evicted while everything fits. That is
    /// unless the policy of the decode phase protects more in a layer than it then would hold.
    pub fn decode_budgets(&self) -> Result<Vec<Option<usize>>> {
        let [prefill, decode] = self
            .least
            .each_ref()
            .map(|least| least.iter().map(Option::is_some));
        let [total, decode_total] = self.totals;
        if total != decode_total || !prefill.eq(decode) {
            return self.budgets(Phase::Decode);
        }
        let layers = self.held.iter().flatten().count();
        let held = self
            .held
            .iter()
            .flatten()
            .fold(0, |sum: usize, held| sum.saturating_add(*held));
        let surplus = total.saturating_sub(held);
        let more = largest_remainder(surplus, &vec![1.0; layers]);
        let held = self.held.iter().flatten().zip(more);
        let budgets: Vec<usize> = held.map(|(held, more)| held.saturating_add(more)).collect();
        let [_, least] = &self.least;
        let mut both = budgets.iter().zip(least.iter().flatten());
        if both.any(|(budget, least)| budget < least) {
            return self.budgets(Phase::Decode);
        }
        Ok(self.within_windows(&self.held, &budgets))
    }

    fn is_done(&self) -> bool {
        let [least, _] = &self.least;
        self.notes.len() == least.len()
    }
}

impl KvCache {
    /// Cuts a layer and those before it, while budgets still depend on the layers to come.
    pub(super) fn trim_in_steps(&mut self, layer: usize, mut cascade: Cascade) -> Result<()> {
        let note = self.run(layer, |cache| cache.describe_to(cascade.online()?))?;
        let granted = cascade.add_layer(note)?.to_vec();
        for (layer, entries) in granted.into_iter().enumerate() {
            if let Some(entries) = entries {
                self.run(layer, |cache| cache.cut_to(entries))?;
            }
        }
        if !cascade.is_done() {
            self.cascade = Some(cascade);
            return Ok(());
        }
        let decode = cascade.decode_budgets()?;
        let budgets = cascade.held.iter().zip(decode);
        for (layer, (prefill, decode)) in self.layers.iter_mut().zip(budgets) {
            layer.set_budgets(*prefill, decode);
        }
        Ok(())
    }
}

/// Lowers what each layer holds to what it should hold. Evicted entries do not come back, so that a layer may hold less than
/// it should by rounding; the layers after it get the difference.
fn shrink(held: &mut [Option<usize>], wanted: &[Option<usize>]) {
    let mut spare = 0usize;
    for (held, wanted) in held.iter_mut().zip(wanted) {
        if let (Some(held), Some(wanted)) = (held, wanted) {
            let most = wanted.saturating_add(spare);
            let granted = (*held).min(most);
            spare = most.saturating_sub(granted);
            *held = granted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::shrink;

    #[test]
    fn what_a_layer_cannot_take_back_goes_to_the_next() {
        let mut held = [Some(10), None, Some(20), Some(60)];
        shrink(&mut held, &[Some(11), None, Some(19), Some(15)]);
        assert_eq!(held, [Some(10), None, Some(20), Some(15)]);
        // The layer at hand has all its entries.
        shrink(&mut held, &[Some(12), None, Some(20), Some(13)]);
        assert_eq!(held, [Some(10), None, Some(20), Some(15)]);
    }
}
