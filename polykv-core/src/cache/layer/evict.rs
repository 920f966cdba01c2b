//! Carrying out an eviction in one layer.

use super::LayerCache;
use crate::allocate::{Note, Online};
use crate::ops::{self, Nans, Protected, StepScores};
use crate::phase::Phase;
use crate::plan::Eviction;
use crate::policy::{LayerView, Merge, Policy, Split};
use crate::{Error, Result};
use burn::tensor::{Bool, Int, Tensor};

/// Scores under which entries that have left the layer's window go before all others.
fn left_last(scores: Tensor<3>, view: &LayerView<'_>) -> Tensor<3> {
    match view.left() {
        Some(left) => scores.mask_fill(left, f32::MIN),
        None => scores,
    }
}

/// Which of the entries in `slots [batch, kv_heads, count]` have left the layer's window, if any can have.
fn left_of(view: &LayerView<'_>, slots: &Tensor<3, Int>) -> Option<Tensor<3, Bool>> {
    let oldest = Some(view.protected.oldest).filter(|&oldest| oldest > 0)?;
    let positions = view.positions.clone().gather(2, slots.clone());
    Some(positions.lower_elem(oldest as i64))
}

impl LayerCache {
    /// Keeps the best `budget` entries, in order of position, with one free slot beside the budget of the eviction.
    pub(super) fn compact(
        &mut self,
        phase: Phase,
        eviction: &Eviction,
        budget: usize,
        row: Option<Tensor<4>>,
    ) -> Result<()> {
        let policy = &eviction.policy;
        let view = self.view(phase, &**policy, budget, row)?;
        let scores = left_last(policy.score(self.states.of(phase), &view)?, &view);
        let (positions, protected) = (view.positions.clone(), view.protected);
        let chosen = ops::choose(scores, positions, protected, budget);
        let (slots, nans) = chosen.map_err(|error| self.refused(phase, error))?;
        let mut merge = None;
        if policy.merges(phase) {
            let evicted = self.order.rest(&slots, self.len())?;
            let split = Split {
                kept: slots.clone(),
                left: left_of(&view, &evicted),
                evicted,
            };
            let mut state = self.states.of(phase).clone();
            merge = policy.merge(&mut state, &view, &split)?;
            drop(view);
            *self.states.of_mut(phase) = state;
        }
        self.remember_nans(nans);
        // What goes to slots goes before they change; what goes to all that stay, when they lie side by side.
        let (now, later) = match merge {
            Some(merge) if merge.slots.is_some() => (Some(merge), None),
            other => (None, other),
        };
        self.merge(now);
        self.keep(&**policy, slots, eviction.budget);
        self.merge(later);
        Ok(())
    }

    /// What an allocator remembers of the whole layer. Keeps the scores for [`LayerCache::cut_to`].
    pub(in crate::cache) fn describe_to(&mut self, online: &dyn Online) -> Result<Note> {
        self.leave_window()?;
        let rules = self.rules()?;
        let (phase, eviction) = match (&rules.prefill, &rules.decode) {
            (Some(eviction), _) => (Phase::Prefill, Some(eviction)),
            (None, eviction) => (Phase::Decode, eviction.as_ref()),
        };
        let Some(Eviction { policy, budget }) = eviction else {
            return Ok(Note {
                entries: self.len(),
                rows: self.shape.batch.saturating_mul(self.shape.kv_heads),
                values: Vec::new(),
            });
        };
        let view = self.view(phase, &**policy, *budget, None)?;
        let scores = left_last(policy.score(self.states.of(phase), &view)?, &view);
        let note = online.note(&view, &scores)?;
        drop(view);
        self.scores = (phase == Phase::Prefill).then_some(scores);
        Ok(note)
    }

    /// Cuts the layer to its best `budget` entries by the scores that [`LayerCache::describe_to`] kept.
    pub(in crate::cache) fn cut_to(&mut self, budget: usize) -> Result<()> {
        let rules = self.rules()?;
        let (Some(scores), Some(eviction)) = (self.scores.take(), &rules.prefill) else {
            return Ok(());
        };
        if budget >= self.len() {
            self.scores = Some(scores);
            return Ok(());
        }
        let Some(positions) = self.positions() else {
            return Ok(());
        };
        let protected = self.protected(&*eviction.policy, budget);
        let chosen = ops::choose(scores.clone(), positions, protected, budget);
        let (slots, nans) = chosen.map_err(|error| self.refused(Phase::Prefill, error))?;
        self.remember_nans(nans);
        self.scores = Some(scores.gather(2, slots.clone()));
        self.keep(&*eviction.policy, slots, budget);
        Ok(())
    }

    /// Fixes the budgets that an allocator found, and forgets the scores.
    pub(in crate::cache) fn set_budgets(&mut self, prefill: Option<usize>, decode: Option<usize>) {
        self.scores = None;
        if let Some(rules) = &mut self.rules {
            for (eviction, budget) in [(&mut rules.prefill, prefill), (&mut rules.decode, decode)] {
                if let (Some(eviction), Some(budget)) = (eviction, budget) {
                    eviction.budget = budget;
                }
            }
        }
    }

    /// Keeps the entries in `slots`, with one slot beside the budget.
    fn keep(&mut self, policy: &dyn Policy, slots: Tensor<3, Int>, budget: usize) {
        self.heads_agree &= policy.same_for_all_heads();
        self.keep_slots(slots, budget.saturating_add(1));
    }

    /// Keeps the entries in `slots` and the statistics about them, in storage for `capacity`.
    pub(super) fn keep_slots(&mut self, slots: Tensor<3, Int>, capacity: usize) {
        self.states.keep(&slots);
        if let Some(store) = &mut self.store {
            let before = store.kv_bytes();
            store.keep(slots, capacity);
            self.moving = self.moving.max(before.saturating_add(store.kv_bytes()));
        }
        self.order.reset();
    }

    fn refused(&self, phase: Phase, error: Error) -> Error {
        match error {
            Error::NotFinite(_) => Error::NotFinite(self.nan_reason()),
            other => Error::Failed(format!("layer {}, {phase}: {other}", self.layer)),
        }
    }

    /// One entry goes, without waiting for the device: the newest takes its slot.
    pub(super) fn replace(
        &mut self,
        eviction: &Eviction,
        row: Option<Tensor<4>>,
        key: Tensor<4>,
        value: Tensor<4>,
    ) -> Result<()> {
        let len = self.len();
        let policy = &eviction.policy;
        // The view must be gone before the store is written: only unshared tensors are written in place.
        let stay = len.saturating_sub(1);
        let view = self.view(Phase::Decode, &**policy, stay, row)?;
        let scores = policy.step_scores(self.states.of(Phase::Decode), &view)?;
        let scores = match view.left() {
            None => scores,
            Some(_) => StepScores::Given(left_last(scores.tensor(&view.positions), &view)),
        };
        let latest = scores.latest();
        let agree = self.heads_agree && policy.same_for_all_heads();
        if !policy.merges(Phase::Decode) {
            let spans = view.protected.spans.to_vec();
            let protected = Protected {
                spans: &spans,
                ..view.protected
            };
            drop(view);
            self.heads_agree = agree;
            let position = self.seen.saturating_sub(1);
            if let Some(store) = &mut self.store {
                let before = std::mem::replace(&mut self.nans, Nans::Known(false));
                let (victim, nans, statistics) =
                    store.evict(scores, protected, before, [key, value], position);
                self.nans = nans;
                let own = self.states.of_mut(Phase::Decode);
                let statistics = statistics
                    .filter(|_| latest.is_some_and(|latest| own.take_statistics(&latest)));
                self.follow(&victim, len);
                if let Some(statistics) = statistics {
                    self.states.of_mut(Phase::Decode).put_statistics(statistics);
                }
            }
            return Ok(());
        }
        let (positions, protected) = (view.positions.clone(), view.protected);
        let scores = scores.tensor(&positions);
        let (victim, nans) = ops::drop_lowest(scores, positions, protected);
        let split = Split {
            kept: self.order.without(&victim, len, self.shape),
            left: left_of(&view, &victim),
            evicted: victim.clone(),
        };
        let mut state = self.states.of(Phase::Decode).clone();
        let merge = policy.merge(&mut state, &view, &split)?;
        drop(view);
        self.heads_agree = agree;
        *self.states.of_mut(Phase::Decode) = state;
        // Here what stays does not lie side by side.
        self.merge(merge.map(|merge| Merge {
            slots: merge.slots.or(Some(split.kept)),
            ..merge
        }));
        self.remember_nans(nans);
        // The newest entry moves next, with what it may have received.
        if let Some(store) = &self.store {
            let (key, value) = store.last();
            self.overwrite(victim, key, value);
        }
        Ok(())
    }

    /// Moves the newest entry, with its statistics, into the slot `victim [batch, kv_heads, 1]`.
    pub(super) fn overwrite(&mut self, victim: Tensor<3, Int>, key: Tensor<4>, value: Tensor<4>) {
        self.follow(&victim, self.len());
        if let Some(store) = &mut self.store {
            store.replace(victim, key, value, self.seen.saturating_sub(1));
        }
    }

    /// Statistics and the order of positions follow the newest of `len` entries into the slot `victim`.
    fn follow(&mut self, victim: &Tensor<3, Int>, len: usize) {
        self.states.replace(victim);
        if self.needs.position_order {
            self.order.replace(victim.clone(), len, self.shape);
        }
    }

    fn merge(&mut self, merge: Option<Merge>) {
        if let (Some(store), Some(merge)) = (&mut self.store, merge) {
            store.merge(merge);
        }
    }
}
