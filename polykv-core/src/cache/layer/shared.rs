//! One layer of a prompt that several caches share: the leader holds the entries, its followers only what their
//! policies remember.

use super::LayerCache;
use super::window::in_pieces;
use crate::cache::queries::Queries;
use crate::ops::{self, AttentionBlock};
use crate::phase::Phase;
use crate::plan::LayerEvictions;
use crate::shape::LayerShape;
use crate::{Error, Result};
use burn::tensor::{Device, Tensor};

impl LayerCache {
    /// The leader of a prompt of `tokens` tokens, which keeps everything and gathers what any of `followers` needs.
    pub(in crate::cache) fn leader<'a>(
        layer: usize,
        shape: LayerShape,
        device: &Device,
        tokens: usize,
        followers: impl Iterator<Item = &'a LayerCache>,
    ) -> Self {
        let mut leader = Self::new(layer, shape, device);
        for follower in followers {
            leader.needs = leader.needs.union(follower.needs);
            leader.facts = follower.facts.clone();
            leader.softcap = follower.softcap;
        }
        leader.rules = Some(LayerEvictions {
            window: leader.facts.window,
            ..LayerEvictions::default()
        });
        leader.announce(tokens);
        leader
    }

    /// A text that is equal for layers which evict the same entries of the same prompt, and go on alike.
    pub(in crate::cache) fn rules_key(&self) -> String {
        let of = |phase| {
            let eviction = self.rules.as_ref().and_then(|rules| rules.of(phase));
            eviction.map_or_else(String::new, |eviction| {
                format!("{} {}", eviction.policy.key(), eviction.budget)
            })
        };
        let rules = self.rules.as_ref();
        let more = rules.map(|rules| (rules.kv, rules.every));
        format!("{} {more:?}", Phase::BOTH.map(of).join("; "))
    }

    /// Attention of a chunk of the prompt. The followers' policies are given what they would be given alone.
    pub(in crate::cache) fn attend_for(
        &mut self,
        followers: &mut [&mut LayerCache],
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        let rules = self.rules()?;
        let tokens = self.check_shapes(&q, &k, &v)?;
        let (k, v) = (self.stored(k), self.stored(v));
        in_pieces(self.pieces(tokens), [q, k, v], &mut |piece| {
            self.attend_piece(&rules, followers, piece)
        })
    }

    fn attend_piece(
        &mut self,
        rules: &LayerEvictions,
        followers: &mut [&mut LayerCache],
        [q, k, v]: [Tensor<4>; 3],
    ) -> Result<Tensor<4>> {
        let tokens = q.dims()[2];
        if let Some(kept) = self.make_room(tokens)? {
            let followers = followers.iter_mut();
            followers.for_each(|follower| follower.states.keep(&kept));
        }
        let appended = self.append(rules, &q, [k, v], true);
        for follower in followers.iter_mut() {
            let rules = follower.rules()?;
            follower.states.append(&rules, &appended)?;
        }
        let mask = self.mask();
        let (keys, values) = match &self.store {
            Some(store) => (store.keys(), store.values()),
            None => return Err(Error::Failed("attention over an empty cache".into())),
        };
        if !self.needs.attention {
            return ops::attend(q, keys, values, &mask, None);
        }
        let mut observe = |block: &AttentionBlock| {
            followers.iter_mut().try_for_each(|follower| {
                let rules = follower.rules()?;
                follower.states.observe(&rules, block)
            })
        };
        match self.needs.column_sums {
            true => ops::attend_summed(q, keys, values, &mask, &mut observe),
            false => ops::attend(q, keys, values, &mask, Some(&mut observe)),
        }
    }

    /// Copies the leader's entries and queries; the policies' states stay this follower's.
    pub(in crate::cache) fn copy_entries(&mut self, leader: &LayerCache) {
        self.store = leader.store.clone();
        self.order = leader.order.clone();
        let latest = leader.queries.latest(self.needs.queries);
        self.queries = latest.map(Queries::of).unwrap_or_default();
        self.seen = leader.seen;
        self.expected = 0;
        self.moving = leader.moving;
    }
}
