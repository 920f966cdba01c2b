//! Layers with a sliding window: what has left it goes before any policy is asked.

use super::LayerCache;
use crate::cache::slots::PIECE;
use crate::facts::{first_seen, most_entries};
use crate::ops::{self, Mask, Places, Protected};
use crate::{Error, Result};
use burn::tensor::{Int, Tensor};
use std::ops::Range;

impl LayerCache {
    /// The most entries that the layer holds between two tokens because of its window.
    pub(super) fn most_entries(&self) -> usize {
        most_entries(self.facts.window)
    }

    /// The first position that the next token sees.
    pub(super) fn oldest(&self) -> usize {
        first_seen(self.facts.window, self.seen)
    }

    /// The mask of attention by the latest queries.
    pub(super) fn mask(&self) -> Mask {
        let window = self.facts.window.filter(|&window| window < self.seen);
        let places = self
            .store
            .as_ref()
            .zip(window)
            .map(|(store, window)| Places {
                positions: store.positions(),
                seen: self.seen,
                window: Some(window),
            });
        Mask {
            softcap: self.softcap,
            places,
        }
    }

    /// A chunk of a prompt in the parts in which the layer takes it: a window bounds how many entries there are at a time.
    pub(super) fn pieces(&self, tokens: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let piece = match self.facts.window {
            Some(_) => PIECE,
            None => tokens,
        };
        let starts = (0..tokens).step_by(piece.max(1));
        starts.map(move |start| start..tokens.min(start.saturating_add(piece)))
    }

    /// Drops what no token to come sees, so that `tokens` more entries fit into the slots of the layer's window; the slots that
    /// stay, if there were others.
    pub(super) fn make_room(&mut self, tokens: usize) -> Result<Option<Tensor<3, Int>>> {
        let Some(store) = &self.store else {
            return Ok(None);
        };
        let (capacity, most) = (store.capacity(), self.most_entries());
        let full =
            capacity >= most.saturating_add(PIECE) && capacity < self.len().saturating_add(tokens);
        match full {
            true => self.keep_latest(most, capacity).map(Some),
            false => Ok(None),
        }
    }

    /// Drops all but the latest entries that the window leaves, if there are more.
    pub(in crate::cache) fn leave_window(&mut self) -> Result<()> {
        if self.is_divided() {
            return self.heads.iter_mut().try_for_each(Self::leave_window);
        }
        let most = self.most_entries();
        match self.len() > most {
            true => self.keep_latest(most, most.saturating_add(1)).map(|_| ()),
            false => Ok(()),
        }
    }

    /// Keeps the entries with the `count` latest positions of each head, in storage for `capacity`. All heads keep equally
    /// many; where a head has fewer in its window, others stay which no token sees.
    fn keep_latest(&mut self, count: usize, capacity: usize) -> Result<Tensor<3, Int>> {
        let Some(positions) = self.positions() else {
            return Err(Error::Failed("a window over an empty cache".into()));
        };
        let nothing = Protected::nothing(self.seen);
        let (slots, _) = ops::choose(positions.clone().float(), positions, nothing, count)?;
        self.keep_slots(slots.clone(), capacity);
        Ok(slots)
    }

    /// Overwrites each head's oldest entry by the newest: what a full window does without a policy.
    pub(super) fn replace_oldest(&mut self, key: Tensor<4>, value: Tensor<4>) {
        let Some(positions) = self.positions() else {
            return;
        };
        let nothing = Protected::nothing(self.seen);
        let (victim, _) = ops::drop_lowest(positions.clone().float(), positions, nothing);
        self.overwrite(victim, key, value);
    }
}

/// Runs the `pieces` of queries, keys and values `[batch, .., tokens, head_dim]` and puts the outputs together.
pub(super) fn in_pieces(
    pieces: impl Iterator<Item = Range<usize>>,
    tensors: [Tensor<4>; 3],
    run: &mut dyn FnMut([Tensor<4>; 3]) -> Result<Tensor<4>>,
) -> Result<Tensor<4>> {
    let tokens = tensors[0].dims()[2];
    let mut outputs = Vec::new();
    for piece in pieces {
        if piece.len() == tokens {
            return run(tensors);
        }
        let part = |t: Tensor<4>| t.narrow(2, piece.start, piece.len());
        outputs.push(run(tensors.clone().map(part))?);
    }
    Ok(Tensor::cat(outputs, 2))
}
