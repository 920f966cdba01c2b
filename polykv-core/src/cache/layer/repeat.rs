//! The repetition of a prompt: queries whose attention policies observe, and whose own entries do not stay.

use super::LayerCache;
use crate::ops::{self, AttentionBlock, Mask, Places};
use crate::phase::Phase;
use crate::{Error, Result};
use burn::tensor::{Int, Tensor};

impl LayerCache {
    /// Whether a policy of this layer asks for the repetition of the announced prompt. A policy of the prefill does not if
    /// nothing is evicted at its end.
    pub(in crate::cache) fn wants_repetition(&self) -> bool {
        let Some(rules) = self.rules.as_ref().filter(|_| self.needs.repetition) else {
            return false;
        };
        let entries = self.len().saturating_add(self.expected);
        Phase::BOTH.into_iter().any(|phase| {
            let wants = rules
                .of(phase)
                .filter(|rule| rule.policy.needs().repetition);
            wants.is_some_and(|rule| phase == Phase::Decode || rule.budget < entries)
        })
    }

    /// Attention of one part of the repetition over the entries and the part's own, which are gone afterwards.
    pub(in crate::cache) fn repeat(
        &mut self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        let rules = self.rules()?;
        self.check_shapes(&q, &k, &v)?;
        if self.is_divided() {
            return self.in_heads([q, k, v], |part, [q, k, v]| part.repeat(q, k, v));
        }
        let (keys, values, mask) = self.with_behind(k, v)?;
        if !self.wants_repetition() {
            return ops::attend(q, keys, values, &mask, None);
        }
        let states = &mut self.states;
        let mut observe = |block: &AttentionBlock| states.observe_repetition(&rules, block);
        ops::attend(q, keys, values, &mask, Some(&mut observe))
    }

    /// [`LayerCache::repeat`] by a leader, whose followers' policies are told.
    pub(in crate::cache) fn repeat_for(
        &mut self,
        followers: &mut [&mut LayerCache],
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        self.check_shapes(&q, &k, &v)?;
        let (keys, values, mask) = self.with_behind(k, v)?;
        let mut observe = |block: &AttentionBlock| {
            followers.iter_mut().try_for_each(|follower| {
                let rules = follower.rules()?;
                follower.states.observe_repetition(&rules, block)
            })
        };
        ops::attend(q, keys, values, &mask, Some(&mut observe))
    }

    /// The layer's keys and values with others behind them, and the mask of queries at their positions.
    fn with_behind(&self, k: Tensor<4>, v: Tensor<4>) -> Result<(Tensor<4>, Tensor<4>, Mask)> {
        let Some(store) = &self.store else {
            return Err(Error::Failed("attention over an empty cache".into()));
        };
        let [batch, kv_heads, tokens, _] = k.dims();
        let seen = self.seen.saturating_add(tokens);
        let window = self.facts.window.filter(|&window| window < seen);
        let places = window.map(|window| {
            let new = Tensor::<1, Int>::arange(self.seen as i64..seen as i64, &self.device);
            let held = store.positions();
            let new = new.cast(held.dtype()).reshape([1, 1, tokens]);
            Places {
                positions: Tensor::cat(vec![held, new.expand([batch, kv_heads, tokens])], 2),
                seen,
                window: Some(window),
            }
        });
        let (k, v) = (self.stored(k), self.stored(v));
        let keys = Tensor::cat(vec![store.keys(), k], 2);
        let values = Tensor::cat(vec![store.values(), v], 2);
        let softcap = self.softcap;
        Ok((keys, values, Mask { softcap, places }))
    }
}
