mod attend;
mod evict;
mod heads;
mod joined;
mod measure;
mod nans;
mod pack;
mod repeat;
mod session;
mod shared;
mod window;

pub(super) use nans::first_nan;
pub(super) use session::Resumed;

use self::joined::Joined;
use super::order::Order;
use super::queries::Queries;
use super::slots::slots_for;
use super::spans::Spans;
use super::states::States;
use super::store::Store;
use crate::facts::LayerFacts;
use crate::ops::{Nans, Protected};
use crate::phase::Phase;
use crate::plan::LayerEvictions;
use crate::policy::{Appended, LayerView, Needs, Policy};
use crate::shape::LayerShape;
use crate::{Error, Result};
use burn::tensor::{Device, Tensor};
use window::in_pieces;

/// The cache of one layer, read-only outside of this crate; a [`KvCache`](super::KvCache) changes it.
///
/// While decoding under a budget of `b` entries the layer has `b + 1` slots: the new token takes the free slot, attention
/// runs over all entries, and the entry with the lowest score is overwritten by the newest. Tensors keep their shapes from
/// then on. Where evictions are `k` tokens apart ([`Plan::every`](crate::Plan::every)) an eviction leaves `k` slots free. A layer
/// with a window holds what the next token sees and no more, under any budget.
///
/// Between prompts a layer may keep its entries in codes ([`LayerPlan::kv`](crate::plan::LayerPlan::kv)): they are floats of the
/// cache's type while a prompt runs through the layer, and coded after the eviction at its end.
///
/// Under a policy that gives the KV heads budgets of their own ([`Policy::heads`]) each head has as many slots as it needs from
/// the first such eviction on.
#[derive(Debug)]
pub struct LayerCache {
    layer: usize,
    shape: LayerShape,
    device: Device,
    rules: Option<LayerEvictions>,
    facts: LayerFacts,
    softcap: Option<f64>,
    spans: Spans,
    needs: Needs,
    /// Tokens of the announced prompt that have not been appended yet.
    expected: usize,
    store: Option<Store>,
    /// The entries instead, while they lie beside those of other caches.
    joined: Option<Joined>,
    /// The heads of the sequences, row by row, once they have budgets of their own; the layer then holds nothing itself.
    heads: Vec<LayerCache>,
    /// Which KV head of its layer this is, if it is one.
    part: Option<usize>,
    order: Order,
    /// At least the latest `needs.queries`.
    queries: Queries,
    states: States,
    /// The scores of the entries, `[batch, kv_heads, entries]`, while the layer may be cut by them again.
    scores: Option<Tensor<3>>,
    seen: usize,
    /// How far the positions of the next tokens have been moved down.
    shift: usize,
    /// Whether all KV heads hold the same positions in the same slots.
    heads_agree: bool,
    /// Whether scores have been NaN since this was last asked.
    nans: Nans,
    /// The most bytes of old and new keys and values side by side since this was last asked.
    moving: usize,
}

impl LayerCache {
    pub(super) fn new(layer: usize, shape: LayerShape, device: &Device) -> Self {
        Self {
            layer,
            shape,
            device: device.clone(),
            rules: None,
            facts: LayerFacts::default(),
            softcap: None,
            spans: Spans::default(),
            needs: Needs::default(),
            expected: 0,
            store: None,
            joined: None,
            heads: Vec::new(),
            part: None,
            order: Order::default(),
            queries: Queries::default(),
            states: States::default(),
            scores: None,
            seen: 0,
            shift: 0,
            heads_agree: true,
            nans: Nans::Known(false),
            moving: 0,
        }
    }

    #[cfg(all(test, feature = "flex"))]
    pub(super) fn addresses(&self) -> Option<[usize; 2]> {
        self.store.as_ref().map(Store::addresses)
    }

    fn len(&self) -> usize {
        let store = self.store.as_ref().map(Store::len);
        let own = store.or_else(|| self.joined.as_ref().map(Joined::len));
        let own = own.unwrap_or(0);
        self.heads.iter().map(Self::len).fold(own, usize::max)
    }

    pub(super) fn begin(
        &mut self,
        rules: LayerEvictions,
        facts: LayerFacts,
        softcap: Option<f64>,
        spans: Spans,
        tokens: usize,
    ) {
        self.leave();
        let evictions = Phase::BOTH.into_iter().filter_map(|phase| rules.of(phase));
        let needs = evictions.map(|eviction| eviction.policy.needs());
        self.needs = needs.fold(Needs::default(), Needs::union);
        self.states.shared = rules.same_policy();
        self.rules = Some(rules);
        self.facts = facts;
        self.softcap = softcap;
        self.spans = spans;
        self.announce(tokens);
        self.begin_heads(tokens);
    }

    /// Gathers what an allocator needs beside what the policies need.
    pub(super) fn add_needs(&mut self, needs: Needs) {
        self.needs = self.needs.union(needs);
        self.heads.iter_mut().for_each(|part| part.add_needs(needs));
    }

    pub(super) fn reserve(&mut self, tokens: usize) {
        self.leave();
        self.heads.iter_mut().for_each(|part| part.reserve(tokens));
        let evicts = self
            .rules
            .as_ref()
            .is_some_and(|rules| rules.decode.is_some());
        let most = self.most_entries().saturating_add(1);
        let wanted = self.len().saturating_add(tokens).min(most);
        if let Some(store) = self.store.as_mut().filter(|_| !evicts) {
            store.prepare();
            if !store.has_room(wanted.saturating_sub(store.len())) {
                store.resize(wanted);
            }
        }
    }

    /// Announces the tokens of a prompt without changing the evictions. Slots are allocated when the layer is given its first
    /// tokens: for all layers at once they would be the full cache.
    pub(super) fn announce(&mut self, tokens: usize) {
        self.expected = tokens;
        self.heads.iter_mut().for_each(|part| part.announce(tokens));
    }

    pub(super) fn prefill(
        &mut self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        let rules = self.rules()?;
        let tokens = self.check_shapes(&q, &k, &v)?;
        if self.is_divided() {
            return self.prefill_heads([q, k, v]);
        }
        if let Some(store) = &mut self.store {
            store.decode(self.shape.dtype);
        }
        let (k, v) = (self.stored(k), self.stored(v));
        in_pieces(self.pieces(tokens), [q, k, v], &mut |[q, k, v]| {
            let tokens = q.dims()[2];
            self.make_room(tokens)?;
            let appended = self.append(&rules, &q, [k, v], true);
            self.states.append(&rules, &appended)?;
            let (output, _) = self.attend(&rules, q, false)?;
            self.states.settle();
            Ok(output)
        })
    }

    /// Drops what has left the window, and evicts down to the prefill budget.
    pub(super) fn end_prompt(&mut self) -> Result<()> {
        self.leave_window()?;
        if self.is_divided() {
            return self.end_prompt_of_heads();
        }
        match self.rules()?.prefill {
            Some(eviction) if self.divides(&eviction) => {
                self.divide(Phase::Prefill, &eviction, None)
            }
            Some(eviction) if eviction.budget < self.len() => {
                self.compact(Phase::Prefill, &eviction, eviction.budget, None)
            }
            _ => Ok(()),
        }
    }

    /// Takes what keys in codes are relative to from all keys of a prompt, before the eviction at its end.
    pub(super) fn measure_channels(&mut self) {
        self.heads.iter_mut().for_each(Self::measure_channels);
        let coded = self.rules.as_ref().is_some_and(|rules| rules.kv.is_some());
        if let Some(store) = self.store.as_mut().filter(|_| coded) {
            store.measure_channels();
        }
    }

    /// Brings the entries after a prompt into the codes that the plan states, if it states any; copies share them if it does not.
    pub(super) fn code(&mut self) {
        self.heads.iter_mut().for_each(Self::code);
        let (Some(store), Some(rules)) = (&mut self.store, &self.rules) else {
            return;
        };
        match rules.kv {
            Some(codes) => store.code(codes),
            None if rules.shares() => store.lend(),
            None => {}
        }
    }

    pub(super) fn decode(&mut self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Result<Tensor<4>> {
        let rules = self.rules()?;
        let tokens = self.check_shapes(&q, &k, &v)?;
        if tokens != 1 {
            return Err(Error::shape("decode", "tokens", tokens, 1));
        }
        if self.is_divided() {
            return self.decode_heads([q, k, v]);
        }
        let store = self.store.as_ref();
        let with_attention =
            self.facts.window.is_none() && store.is_some_and(|store| store.attends_new(&q));
        // A single entry is rounded where it is written.
        let appended = self.append(&rules, &q, [k.clone(), v.clone()], !with_attention);
        self.states.append(&rules, &appended)?;
        let most = rules.most(Phase::Decode);
        // What has left a full window needs no policy.
        let eviction = rules
            .decode
            .as_ref()
            .filter(|eviction| eviction.budget < self.most_entries());
        let len = self.len().saturating_add(usize::from(with_attention));
        let over = eviction.filter(|eviction| len > eviction.budget);
        let (output, row) = match with_attention {
            true => self.attend_new(&rules, q, [k.clone(), v.clone()], over.is_some())?,
            false => self.attend(&rules, q, over.is_some())?,
        };
        match (over, self.len().saturating_sub(most)) {
            (_, 0) => {}
            (None, 1) => self.replace_oldest(k, v),
            (None, _) => self.leave_window()?,
            (Some(eviction), 1) if rules.every <= 1 && !self.divides(eviction) => {
                self.replace(eviction, row, k, v)?;
            }
            (Some(eviction), _) => {
                let len = self.len();
                self.leave_window()?;
                // The row is of the entries before.
                let row = row.filter(|_| self.len() == len);
                match self.divides(eviction) {
                    true => self.divide(Phase::Decode, eviction, row)?,
                    false => {
                        let stay = rules.stay(eviction, &self.spans, self.seen);
                        if self.len() > eviction.budget {
                            self.compact(Phase::Decode, eviction, stay, row)?;
                        }
                    }
                }
            }
        }
        self.states.settle();
        Ok(output)
    }

    fn rules(&self) -> Result<LayerEvictions> {
        self.rules.clone().ok_or_else(|| {
            let found = "tokens before any prompt";
            Error::order("cache", "call", found, "KvCache::prompt first")
        })
    }

    fn check_shapes(&self, q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>) -> Result<usize> {
        let LayerShape {
            batch,
            heads,
            kv_heads,
            head_dim,
            ..
        } = self.shape;
        let tokens = q.dims()[2];
        for (name, found, wanted) in [
            ("q", q.dims(), [batch, heads, tokens, head_dim]),
            ("k", k.dims(), [batch, kv_heads, tokens, head_dim]),
            ("v", v.dims(), [batch, kv_heads, tokens, head_dim]),
        ] {
            if found != wanted || tokens == 0 {
                let place = format!("layer {}", self.layer);
                let (found, wanted) = (format!("{found:?}"), format!("{wanted:?}, no empty axis"));
                return Err(Error::shape(
                    place,
                    format!("shape of {name}"),
                    found,
                    wanted,
                ));
            }
        }
        Ok(tokens)
    }

    /// Keys or values in the type that the cache stores.
    fn stored(&self, entries: Tensor<4>) -> Tensor<4> {
        match entries.dtype() == self.shape.dtype {
            true => entries,
            false => entries.cast(self.shape.dtype),
        }
    }

    /// Appends new entries without telling the policies; makes room only unless it is to `write` them.
    fn append(
        &mut self,
        rules: &LayerEvictions,
        q: &Tensor<4>,
        [k, v]: [Tensor<4>; 2],
        write: bool,
    ) -> Appended {
        let (before, tokens) = (self.len(), q.dims()[2]);
        let values = v.clone();
        let capacity = slots_for(rules, before, tokens, self.expected);
        if let Some(store) = &mut self.store {
            store.prepare();
        }
        match &mut self.store {
            Some(store) if store.has_room(tokens) => {}
            Some(store) => {
                let old = store.own_kv_bytes();
                store.resize(capacity);
                self.moving = self.moving.max(old.saturating_add(store.kv_bytes()));
            }
            None => self.store = Some(Store::new(self.shape, capacity, &self.device)),
        }
        if let Some(store) = self.store.as_mut().filter(|_| write) {
            store.append([k, v], self.seen);
        }
        self.order.append(tokens);
        self.states.append_behind(tokens, self.shift);
        if self.needs.queries > 0 {
            self.queries.remember(q, self.needs.queries);
        }
        let first = self.seen;
        self.seen = first.saturating_add(tokens);
        self.expected = self.expected.saturating_sub(tokens);
        Appended {
            layer: self.layer,
            first_head: self.part.unwrap_or(0),
            shape: self.shape,
            before,
            positions: first..self.seen,
            to_come: self.expected,
            queries: q.clone(),
            values,
            facts: self.facts.clone(),
            device: self.device.clone(),
        }
    }

    fn view(
        &self,
        phase: Phase,
        policy: &dyn Policy,
        budget: usize,
        row: Option<Tensor<4>>,
    ) -> Result<LayerView<'_>> {
        let store = self
            .store
            .as_ref()
            .ok_or_else(|| Error::Failed("eviction from an empty cache".into()))?;
        let (stored_keys, stored_values) = store.stored();
        Ok(LayerView {
            phase,
            layer: self.layer,
            first_head: self.part.unwrap_or(0),
            shape: self.shape,
            seen: self.seen,
            budget,
            protected: self.protected(policy, budget),
            facts: &self.facts,
            softcap: self.softcap,
            heads_agree: self.heads_agree,
            stored_keys,
            stored_values,
            positions: store.positions(),
            queries: self.queries.latest(self.needs.queries),
            row,
            order: self.order.as_ref(),
        })
    }

    fn protected(&self, policy: &dyn Policy, budget: usize) -> Protected<'_> {
        let (protect, spans) = self.spans.join(policy.protect(budget));
        Protected {
            protect,
            spans,
            seen: self.seen,
            oldest: self.oldest(),
        }
    }
}
