//! Attention over one layer's entries, and what policies are told of it.

use super::LayerCache;
use crate::ops::{self, AttentionBlock};
use crate::plan::LayerEvictions;
use crate::{Error, Result};
use burn::tensor::Tensor;

impl LayerCache {
    /// Writes the entry that there is room for, and attends with its query as [`LayerCache::attend`] does.
    pub(super) fn attend_new(
        &mut self,
        rules: &LayerEvictions,
        q: Tensor<4>,
        new: [Tensor<4>; 2],
        want_row: bool,
    ) -> Result<(Tensor<4>, Option<Tensor<4>>)> {
        let (mask, position) = (self.mask(), self.seen.saturating_sub(1));
        let Some(store) = &mut self.store else {
            return Err(Error::Failed("attention over an empty cache".into()));
        };
        let (output, block) = store.attend_new(q, new, position, &mask);
        if self.needs.attention {
            self.states.observe(rules, &block)?;
        }
        Ok((output, want_row.then(|| block.last_row())))
    }

    /// The attention output, and the last query's attention row if `want_row`.
    pub(super) fn attend(
        &mut self,
        rules: &LayerEvictions,
        q: Tensor<4>,
        want_row: bool,
    ) -> Result<(Tensor<4>, Option<Tensor<4>>)> {
        let Some(store) = &self.store else {
            return Err(Error::Failed("attention over an empty cache".into()));
        };
        let mask = self.mask();
        if q.dims()[2] == 1 {
            let (output, block) = store.attend(q, &mask);
            if self.needs.attention {
                self.states.observe(rules, &block)?;
            }
            return Ok((output, want_row.then(|| block.last_row())));
        }
        let (keys, values) = (store.keys(), store.values());
        if !want_row && !self.needs.attention {
            return Ok((ops::attend(q, keys, values, &mask, None)?, None));
        }
        let mut row = None;
        let states = &mut self.states;
        let mut observe = |block: &AttentionBlock| {
            row = want_row.then(|| block.last_row());
            states.observe(rules, block)
        };
        let output = match self.needs.column_sums {
            true => ops::attend_summed(q, keys, values, &mask, &mut observe)?,
            false => ops::attend(q, keys, values, &mask, Some(&mut observe))?,
        };
        Ok((output, row))
    }
}
