//! A layer whose entries lie beside those of the same layer of other caches, so that all take a token in the same launches.

use super::LayerCache;
use crate::cache::arena::{Arena, Entries, Held, Keeping, Member, Shared};
use crate::cache::store::{Prefix, Store};
use crate::ops::Nans;
use crate::phase::Phase;
use crate::plan::LayerEvictions;
use crate::policy::{Protect, TokenRule};
use crate::shape::LayerShape;
use burn::tensor::{Tensor, s};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a layer has in an arena.
#[derive(Debug)]
pub struct Joined {
    member: Member,
    /// Whose statistic the sums are.
    sums_of: Option<Phase>,
}

impl Joined {
    pub fn len(&self) -> usize {
        self.member.len()
    }

    pub fn kv_bytes(&self, shape: LayerShape) -> usize {
        let shared = self.shared_bytes(shape).map_or(0, |(_, bytes)| bytes);
        self.own_kv_bytes(shape).saturating_add(shared)
    }

    /// The same without those that it shares with others.
    pub fn own_kv_bytes(&self, shape: LayerShape) -> usize {
        self.member.slots().saturating_mul(slot_bytes(shape))
    }

    /// Where those are that it shares, and their bytes.
    pub fn shared_bytes(&self, shape: LayerShape) -> Option<(usize, usize)> {
        let lent = self.member.lent()?;
        let bytes = lent.slots().saturating_mul(slot_bytes(shape));
        Some((Arc::as_ptr(lent) as usize, bytes))
    }

    /// Where the slots are, the bytes of those that nobody has, and of those side by side at most.
    pub fn free_bytes(&self, shape: LayerShape) -> (usize, [usize; 2]) {
        let place = Arc::as_ptr(self.member.arena()) as usize;
        let free = self.member.free_slots();
        (
            place,
            free.map(|slots| slots.saturating_mul(slot_bytes(shape))),
        )
    }

    /// Of the positions and the sums.
    pub fn aux_bytes(&self) -> usize {
        self.member.aux_bytes()
    }

    /// How many scores of evictions were NaN since it joined.
    pub fn nans(&self) -> Option<Nans> {
        self.member.nans().map(Nans::OnDevice)
    }
}

/// Of a key and a value.
fn slot_bytes(shape: LayerShape) -> usize {
    let vectors = shape.head_dim.saturating_mul(2);
    vectors.saturating_mul(shape.dtype.size())
}

/// A copy lies by itself, but for the entries that it shares.
impl Clone for LayerCache {
    fn clone(&self) -> Self {
        let mut copy = Self {
            rules: self.rules.clone(),
            facts: self.facts.clone(),
            softcap: self.softcap,
            spans: self.spans.clone(),
            needs: self.needs,
            expected: self.expected,
            store: self.store.clone(),
            heads: self.heads.clone(),
            part: self.part,
            order: self.order.clone(),
            queries: self.queries.clone(),
            states: self.states.clone(),
            scores: self.scores.clone(),
            seen: self.seen,
            shift: self.shift,
            heads_agree: self.heads_agree,
            nans: self.nans.clone(),
            moving: self.moving,
            ..Self::new(self.layer, self.shape, &self.device)
        };
        if let Some(joined) = &self.joined {
            copy.take_back(joined);
        }
        copy
    }
}

impl LayerCache {
    /// The layer by itself, if it has no heads of their own.
    pub(super) fn apart(&self) -> Cow<'_, Self> {
        match self.joined {
            Some(_) => Cow::Owned(self.clone()),
            None => Cow::Borrowed(self),
        }
    }

    /// Brings the entries back that lie beside others.
    pub(in crate::cache) fn leave(&mut self) {
        self.heads.iter_mut().for_each(Self::leave);
        if let Some(joined) = self.joined.take() {
            self.take_back(&joined);
        }
    }

    fn take_back(&mut self, joined: &Joined) {
        let Some(entries) = joined.member.entries() else {
            return;
        };
        let Entries {
            keys,
            values,
            positions,
            sums,
        } = entries;
        let len = positions.dims()[2];
        let capacity = match self.rules.as_ref().and_then(|rules| rules.decode.as_ref()) {
            Some(eviction) => eviction.budget.saturating_add(1),
            None => len,
        };
        self.store = Some(Store::of((keys, values, positions), capacity));
        if let (Some(phase), Some(sums)) = (joined.sums_of, sums) {
            self.states.of_mut(phase).entries.push(sums);
        }
        self.states.extend_to(len);
        if let Some(nans) = joined.nans() {
            self.remember_nans(nans);
        }
    }

    /// The layer's parts that lie in arenas: itself, or its heads.
    fn parts_mut(&mut self) -> &mut [Self] {
        match self.heads.is_empty() {
            true => std::slice::from_mut(self),
            false => &mut self.heads,
        }
    }

    /// Whether the next token can be taken together with other sequences.
    pub(in crate::cache) fn joins(&self) -> bool {
        match self.heads.is_empty() {
            true => self.keeping().is_some(),
            false => {
                let waits = |head: &Self| head.is_undivided() || head.keeping().is_none();
                self.shape.batch == 1 && !self.heads.iter().any(waits)
            }
        }
    }

    /// What is done with a token, if it is one of the things that an arena does, and whose sums it changes.
    fn keeping(&self) -> Option<(Keeping, Option<Phase>)> {
        let rules = self.rules.as_ref()?;
        let simple = rules.kv.is_none()
            && self.shape.batch == 1
            && !self.needs.position_order
            && self.states.behind().is_none()
            && self.len() > 0;
        let decode = rules.decode.as_ref();
        if let Some(window) = rules.window {
            // It holds the latest entries, of which the oldest leaves, and the next token sees all of them.
            let keeping = Keeping {
                rule: Some(TokenRule::Positions),
                budget: self.most_entries(),
                protect: Protect::default(),
            };
            let keeps = decode.is_none() && rules.prefill.is_none() && window > 1;
            return (simple && keeps && self.len() <= keeping.budget).then_some((keeping, None));
        }
        if !simple || decode.is_some_and(|eviction| self.divides(eviction)) {
            return None;
        }
        let (rule, phase) = self.token_rule(rules)?;
        let budget = decode.map_or(usize::MAX, |eviction| eviction.budget);
        // Until the next eviction, for which it leaves.
        let waits = rules.every > 1 && decode.is_some();
        if waits && self.len() >= budget {
            return None;
        }
        let sums = |rule: &TokenRule| matches!(rule, TokenRule::Sums { .. });
        let rule = rule.filter(|rule| !waits || sums(rule));
        let protect = decode.map(|eviction| eviction.policy.protect(eviction.budget));
        let sums = rule.as_ref().is_some_and(sums).then_some(phase);
        let keeping = Keeping {
            rule,
            budget,
            protect: protect.unwrap_or_default(),
        };
        let evicts = decode.is_some() && !waits;
        // Kernels that evict here know of no spans.
        if evicts && self.spans.count() > 0 {
            return None;
        }
        let known = self.joined.is_some() || self.states.fit(sums, evicts);
        (known && self.len() <= budget).then_some((keeping, sums))
    }

    /// What is done with the scores of a token, and in whose state.
    fn token_rule(&self, rules: &LayerEvictions) -> Option<(Option<TokenRule>, Phase)> {
        let of = |phase| match rules.of(phase) {
            Some(eviction) => eviction.policy.token_rule().map(Some),
            None => Some(None),
        };
        let (prefill, decode) = (of(Phase::Prefill)?, of(Phase::Decode)?);
        let sums = |rule: Option<TokenRule>| matches!(rule, Some(TokenRule::Sums { .. }));
        match (prefill, decode) {
            (_, Some(TokenRule::Forgets)) if rules.every <= 1 => None,
            (own, None) => Some((own.filter(|_| sums(own)), Phase::Prefill)),
            (own, Some(_)) if sums(own) && !self.states.shared => None,
            (_, Some(TokenRule::MeanOfHeads)) if !self.heads_agree || self.part.is_some() => {
                Some((Some(TokenRule::MeanOfGroup), Phase::Decode))
            }
            (_, rule) => Some((rule, Phase::Decode)),
        }
    }

    /// An arena for this layer.
    pub(in crate::cache) fn new_arena(&self) -> Shared {
        Arena::new(self.shape.head_dim, &self.device)
    }

    /// The arena that the layer lies in.
    pub(in crate::cache) fn arena(&self) -> Option<&Shared> {
        let first = self.heads.first().unwrap_or(self);
        first.joined.as_ref().map(|joined| joined.member.arena())
    }

    /// The entries that it lets others share in an arena: all of them, or nothing.
    fn lends(&self, keeping: &Keeping) -> Option<&Arc<Prefix>> {
        let store = self.store.as_ref()?;
        let prefix = store.prefix().filter(|_| keeping.shares());
        prefix.filter(|prefix| prefix.len() == store.len())
    }

    /// The slots that the layer needs in an arena, 0 if it lies there. What it shares counts if it is not among the `known`, to
    /// which it then belongs.
    pub(in crate::cache) fn slots_wanted(
        &self,
        arena: &Shared,
        known: &mut BTreeSet<usize>,
    ) -> usize {
        if self.arena().is_some_and(|own| Arc::ptr_eq(own, arena)) {
            return 0;
        }
        let parts = match self.heads.is_empty() {
            true => std::slice::from_ref(self),
            false => &self.heads,
        };
        let wanted = parts.iter().map(|part| {
            let Some((keeping, _)) = part.keeping() else {
                return 0;
            };
            let prefix = part.lends(&keeping);
            let shared = prefix.map_or(0, |prefix| prefix.len());
            let own = keeping.capacity(part.len().saturating_sub(shared));
            let new = prefix.filter(|prefix| known.insert(Arc::as_ptr(prefix) as usize));
            let slots = own.saturating_add(new.map_or(0, |prefix| prefix.len()));
            slots.saturating_mul(part.shape.kv_heads)
        });
        wanted.fold(0, usize::saturating_add)
    }

    /// Brings the entries into an arena. Returns whether it has room for them.
    pub(in crate::cache) fn join(&mut self, arena: &Shared) -> bool {
        let mut parts = self.parts_mut().iter_mut();
        parts.all(|part| part.join_alone(arena))
    }

    fn join_alone(&mut self, arena: &Shared) -> bool {
        let there = |joined: &Joined| Arc::ptr_eq(joined.member.arena(), arena);
        if self.joined.as_ref().is_some_and(there) {
            return true;
        }
        self.leave();
        self.states.settle();
        let Some((keeping, sums_of)) = self.keeping() else {
            return false;
        };
        let Some(store) = self.store.as_ref() else {
            return false;
        };
        let held = Held {
            kv_heads: self.shape.kv_heads,
            len: store.len(),
            seen: self.seen,
            dtype: self.shape.dtype,
        };
        let prefix = self.lends(&keeping);
        let lends = prefix.is_some();
        let Some(member) = Member::join(arena, &held, keeping, prefix) else {
            return false;
        };
        let sums = sums_of.and_then(|phase| self.states.of_mut(phase).entries.pop());
        // What is shared is brought there with the first that joins.
        if !lends {
            member.fill(Entries {
                keys: store.keys(),
                values: store.values(),
                positions: store.positions(),
                sums,
            });
        }
        let before = store.kv_bytes();
        self.store = None;
        let joined = Joined { member, sums_of };
        let both = before.saturating_add(joined.kv_bytes(self.shape));
        self.moving = self.moving.max(both);
        self.joined = Some(joined);
        true
    }

    /// What lies in an arena, head by head if the heads lie by themselves.
    pub(in crate::cache) fn members(&mut self) -> impl Iterator<Item = &mut Member> {
        let joined = self.parts_mut().iter_mut().map(|part| &mut part.joined);
        joined.flatten().map(|joined| &mut joined.member)
    }

    /// Notes a token with the queries `q [1, heads, 1, head_dim]` that the arena has taken.
    pub(in crate::cache) fn took(&mut self, q: &Tensor<4>) {
        let group = self.shape.group();
        self.seen = self.seen.saturating_add(1);
        if self.heads.is_empty() {
            return self.took_alone(q);
        }
        for (head, part) in self.heads.iter_mut().enumerate() {
            part.seen = part.seen.saturating_add(1);
            let first = head.saturating_mul(group);
            part.took_alone(&q.clone().slice(s![.., first..first.saturating_add(group)]));
        }
    }

    fn took_alone(&mut self, q: &Tensor<4>) {
        if self.needs.queries > 0 {
            self.queries.remember(q, self.needs.queries);
        }
        let decode = self.rules.as_ref().and_then(|rules| rules.decode.as_ref());
        let evicted = self
            .joined
            .as_ref()
            .is_some_and(|own| own.member.has_evicted());
        if let Some(eviction) = decode.filter(|_| evicted) {
            self.heads_agree &= eviction.policy.same_for_all_heads();
        }
    }
}
