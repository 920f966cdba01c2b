//! The memory of a cache, computed from a plan and a shape.

use super::Spans;
use super::cascade::Cascade;
use super::slots::{PIECE, SLACK, slots_for};
use super::store::LEAST_SHARED;
use crate::budget::EntryCost;
use crate::codes::Codes;
use crate::facts::most_entries;
use crate::ops::coded::Exact;
use crate::phase::Phase;
use crate::plan::{Eviction, LayerEvictions, Plan};
use crate::policy::Needs;
use crate::shape::LayerShape;
use crate::{Error, Result};

/// The computed memory of a cache; a [`CacheReport`](super::CacheReport) measures the same of one that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheEstimate {
    /// Bytes of keys and values over all layers after the last token.
    pub steady_bytes: usize,
    /// The most bytes of keys and values at any time, transient copies included.
    pub peak_bytes: usize,
    /// The most bytes of keys and values that each of several copies, made after the prompt, has for itself on the CPU after the
    /// last token. Layers that keep everything while they decode, as floats and without a window, share those of the prompt.
    pub copy_bytes: usize,
    /// Entries per KV head in each layer after the last token.
    pub kept: Vec<usize>,
}

impl CacheEstimate {
    /// The most bytes of keys and values of `count` copies together, made after the prompt, on the CPU after the last token.
    #[must_use]
    pub fn of_copies(&self, count: usize) -> usize {
        let apart = self.steady_bytes.saturating_mul(count);
        let own = self.copy_bytes.saturating_mul(count);
        apart.min(self.steady_bytes.saturating_add(own))
    }
}

impl Plan {
    /// The memory that a cache needs under this plan for a prompt of `prompt` tokens and `new_tokens` decoded ones, where an
    /// entry costs `cost`. An allocator that splits by what the layers do is given equal layers. Where evictions are some tokens
    /// apart ([`Plan::every`]), heads with budgets of their own are taken to hold all of them.
    ///
    /// # Errors
    /// What [`Plan::resolve`] refuses, and more bytes than fit in `usize`.
    pub fn estimate(
        &self,
        prompt: usize,
        new_tokens: usize,
        cost: &EntryCost,
    ) -> Result<CacheEstimate> {
        let resolved = self.resolve(prompt, cost)?;
        let mut sizes = Sizes::default();
        let mut layers = vec![
            Layer {
                size: cost.bytes,
                ..Layer::default()
            };
            resolved.layers.len()
        ];
        let mut cascade = Cascade::of(self.online.clone(), &resolved, &Spans::default())?;
        for (index, rules) in resolved.layers.iter().enumerate() {
            if let Some(layer) = layers.get_mut(index) {
                sizes.step(layer, |layer| layer.append(rules, prompt, prompt));
                sizes.pass_window(layer);
                sizes.cut(layer, most_entries(rules.window));
                if cascade.is_none() {
                    layer.divided = layer.len > rules.most(Phase::Prefill) && rules.same_division();
                    sizes.cut(layer, rules.most(Phase::Prefill));
                }
            }
            if let Some(cascade) = &mut cascade {
                let granted = cascade.add_equal_layer(prompt)?;
                for (layer, &budget) in layers.iter_mut().zip(granted) {
                    sizes.cut(layer, budget.unwrap_or(usize::MAX));
                }
            }
            if let Some(layer) = layers.get_mut(index) {
                let codes = self.layers.get(index).and_then(|layer| layer.kv);
                sizes.code(layer, cost.bytes_in(codes), cost.bytes_beside(codes));
            }
        }
        // What copies share, and the slots that each has for more instead.
        let (mut shared, mut slots) = (0usize, 0usize);
        for (layer, rules) in layers.iter().zip(&resolved.layers) {
            if rules.shares() && !layer.divided && layer.len >= LEAST_SHARED {
                shared = shared.saturating_add(layer.len.saturating_mul(cost.bytes));
                slots = slots.saturating_add(SLACK.saturating_mul(cost.bytes));
            }
        }
        let online = cascade.map(|cascade| cascade.decode_budgets());
        let online = online.transpose()?.unwrap_or_default();
        let spans = Spans::default();
        for token in 1..=new_tokens {
            for (index, rules) in resolved.layers.iter().enumerate() {
                let Some(layer) = layers.get_mut(index) else {
                    continue;
                };
                sizes.step(layer, |layer| layer.append(rules, 1, 0));
                let budget = online.get(index).copied().flatten();
                let most = rules.most(Phase::Decode);
                let most = budget.map_or(most, |budget| budget.min(most));
                // Heads that get budgets of their own move to slots of their own.
                let divides = rules.decode.as_ref().is_some_and(Eviction::divides);
                let moves = divides && !layer.divided;
                layer.divided |= divides && layer.len > most;
                let window = most_entries(rules.window);
                let together = rules.every > 1 && most < window && !moves && !layer.divided;
                match layer.len == most.saturating_add(1) && !moves && !together {
                    // One entry too many is overwritten in place.
                    true => layer.len = most,
                    false => {
                        sizes.cut(layer, window);
                        let over = layer.len > most;
                        sizes.cut(layer, most);
                        if let Some(eviction) = rules.decode.as_ref().filter(|_| over && together) {
                            let budget = most;
                            let eviction = Eviction {
                                budget,
                                ..eviction.clone()
                            };
                            layer.len = rules.stay(&eviction, &spans, prompt.saturating_add(token));
                        }
                    }
                }
            }
        }
        let bytes = |found: usize| match found < usize::MAX {
            true => Ok(found),
            false => {
                let allowed = format!("below {}", usize::MAX);
                Err(Error::budget("bytes of the cache", "more", allowed))
            }
        };
        let steady_bytes = bytes(sizes.bytes)?;
        let own = steady_bytes.saturating_sub(shared);
        Ok(CacheEstimate {
            steady_bytes,
            peak_bytes: bytes(sizes.peak)?,
            copy_bytes: own.saturating_add(slots),
            kept: layers.iter().map(|layer| layer.len).collect(),
        })
    }
}

/// Bytes per entry and KV head of a position, of its place in the order of positions, and of how far it was moved.
const PLACE_BYTES: usize = 8 + 8 + 4;

impl Plan {
    /// An upper estimate of what a cache holds beside keys and values when its layers hold `entries` entries each: bytes of
    /// positions, of what the policies remember ([`Policy::bytes_per_entry`](crate::Policy::bytes_per_entry)), and of the latest
    /// queries, for a sequence of `seen` tokens, all of which one layer may hold at a time.
    pub fn aux_estimate(&self, entries: &[usize], seen: usize, shape: LayerShape) -> usize {
        let of_entries = |count: usize, bytes: usize| {
            let bytes = bytes.saturating_add(PLACE_BYTES);
            [count, shape.batch, shape.kv_heads, bytes]
                .into_iter()
                .fold(1, usize::saturating_mul)
        };
        let queries = |count: usize| {
            let element = size_of::<f32>();
            [count, shape.batch, shape.heads, shape.head_dim, element]
                .into_iter()
                .fold(1, usize::saturating_mul)
        };
        let mut most_remembered = 0;
        let layers = self.layers.iter().zip(entries).map(|(layer, &count)| {
            let policies = Phase::BOTH
                .into_iter()
                .filter_map(|phase| layer.rule(phase).policy());
            let (mut needs, mut remembers) = (Needs::default(), 0usize);
            for policy in policies {
                needs = needs.union(policy.needs());
                remembers = remembers.saturating_add(policy.bytes_per_entry(shape));
            }
            most_remembered = most_remembered.max(remembers);
            // With room, so that they need not move at every token.
            let room = needs.queries.saturating_add((needs.queries / 4).max(1));
            let remembered = room.min(seen.saturating_mul(2).max(16));
            // Means and products of queries.
            let moments = match needs.rope {
                true => shape.head_dim.saturating_add(1).saturating_mul(2),
                false => 0,
            };
            // Mean and spread of the channels of keys in codes, and the places of entries in floats beside them, which are
            // fewer bytes than as many entries' positions.
            let channels = match layer.kv {
                Some(_) => of_entries(1, shape.head_dim.saturating_mul(size_of::<[f32; 2]>())),
                None => 0,
            };
            let exact = if layer.kv == Some(Codes::Q4) {
                Exact::COUNT
            } else {
                0
            };
            let channels = channels.saturating_add(of_entries(exact, 0));
            of_entries(count.saturating_add(1), remembers)
                .saturating_add(channels)
                .saturating_add(queries(remembered.saturating_add(moments)))
        });
        let layers = layers.fold(0, usize::saturating_add);
        layers.saturating_add(of_entries(seen, most_remembered))
    }
}

/// Bytes of all layers.
#[derive(Default)]
struct Sizes {
    bytes: usize,
    peak: usize,
}

impl Sizes {
    /// While a layer changes size, old and new exist side by side.
    fn step(&mut self, layer: &mut Layer, change: impl FnOnce(&mut Layer)) {
        let before = layer.bytes();
        change(layer);
        let transient = if layer.bytes() == before { 0 } else { before };
        self.replace(before, layer.bytes(), transient);
    }

    /// A layer whose window the prompt has passed has moved its entries to the front of a copy.
    fn pass_window(&mut self, layer: &Layer) {
        if layer.len > layer.slots {
            self.peak = self.peak.max(self.bytes.saturating_add(layer.bytes()));
        }
    }

    /// The best `most` entries move to a store with one more slot.
    fn cut(&mut self, layer: &mut Layer, most: usize) {
        if layer.len > most {
            let before = layer.bytes();
            (layer.len, layer.slots) = (most, most.saturating_add(1));
            self.replace(before, layer.bytes(), before);
        }
    }

    /// A layer keeps its entries in another format from now on: `size` bytes each, and `beside` for all.
    fn code(&mut self, layer: &mut Layer, size: usize, beside: usize) {
        self.step(layer, |layer| (layer.size, layer.beside) = (size, beside));
    }

    fn replace(&mut self, before: usize, after: usize, transient: usize) {
        self.bytes = self.bytes.saturating_sub(before).saturating_add(after);
        self.peak = self.peak.max(self.bytes.saturating_add(transient));
    }
}

#[derive(Clone, Copy, Default)]
struct Layer {
    len: usize,
    slots: usize,
    /// Bytes of a slot, and of what there is beside the slots.
    size: usize,
    beside: usize,
    /// Whether the heads have the budgets that they keep while decoding.
    divided: bool,
}

impl Layer {
    fn bytes(&self) -> usize {
        let slots = self.slots.saturating_mul(self.size);
        slots.saturating_add(self.beside)
    }

    fn append(&mut self, rules: &LayerEvictions, tokens: usize, expected: usize) {
        let len = self.len.saturating_add(tokens);
        if len > self.slots {
            self.slots = slots_for(rules, self.len, tokens.min(PIECE), expected);
        }
        self.len = len;
    }
}
