//! A layer into a session's file and back.

use super::LayerCache;
use crate::cache::order::Order;
use crate::cache::queries::Queries;
use crate::cache::session::entries::{LayerData, VectorData};
use crate::cache::session::file::{Reader, Writer};
use crate::cache::session::meta::{LayerMeta, StateMeta, check_range, ranges};
use crate::cache::session::state;
use crate::cache::spans::Spans;
use crate::cache::store::Store;
use crate::codes::Codes;
use crate::facts::LayerFacts;
use crate::ops::read_error;
use crate::phase::Phase;
use crate::plan::{Eviction, LayerEvictions};
use crate::policy::{Appended, Needs, State};
use crate::{Error, LayerShape, Result};
use burn::tensor::{DType, Int, Tensor, TensorData};

/// What a layer is resumed from: its part of a session, and what the plan and the model say.
pub(in crate::cache) struct Resumed<'a> {
    pub reader: &'a Reader,
    pub meta: &'a LayerMeta,
    /// One, or one per head of `meta.heads`.
    pub data: &'a [LayerData],
    pub seen: usize,
    pub shift: usize,
    pub rules: LayerEvictions,
    pub facts: LayerFacts,
    pub softcap: Option<f64>,
    /// What is gathered beside what the policies need.
    pub needs: Needs,
}

impl LayerCache {
    /// Adds the layer's tensors to a session's file and describes the rest.
    ///
    /// # Errors
    /// A layer that holds nothing, a device that cannot be read, and numbers of a type that sessions do not hold.
    pub(in crate::cache) fn save(&self, writer: &mut Writer<'_>) -> Result<LayerMeta> {
        let name = format!("layer.{}", self.layer);
        let Some(rules) = self.rules.as_ref().filter(|_| self.is_divided()) else {
            return self.save_as(&name, writer);
        };
        let heads = self.heads.iter().enumerate();
        Ok(LayerMeta {
            window: self.facts.window,
            prefill_budget: rules.budget(Phase::Prefill),
            decode_budget: rules.budget(Phase::Decode),
            spans: ranges(self.spans.ranges()),
            heads: heads
                .map(|(index, part)| part.save_as(&format!("{name}.head.{index}"), writer))
                .collect::<Result<_>>()?,
            ..LayerMeta::default()
        })
    }

    /// Adds the tensors under names that start with `prefix`.
    fn save_as(&self, prefix: &str, writer: &mut Writer<'_>) -> Result<LayerMeta> {
        if self.joined.is_some() {
            return self.clone().save_as(prefix, writer);
        }
        let (Some(store), Some(rules)) = (&self.store, &self.rules) else {
            return Err(Error::Failed(format!("layer {} holds nothing", self.layer)));
        };
        let name = |what: &str| format!("{prefix}.{what}");
        let coded = store.codes();
        match coded {
            None => {
                writer.add(name("keys"), store.keys())?;
                writer.add(name("values"), store.values())?;
            }
            Some(coded) => {
                for (what, all) in [("keys", &coded.keys), ("values", &coded.values)] {
                    let held = all.first(store.len());
                    writer.add_numbers(name(what), held.dims().to_vec(), held.numbers()?);
                }
                if let Some(channels) = &coded.keys.channels {
                    writer.add(name("channels.mean"), channels.mean.clone())?;
                    writer.add(name("channels.scale"), channels.scale.clone())?;
                }
                if let Some(exact) = &coded.exact {
                    writer.add(name("exact.keys"), exact.keys.clone())?;
                    writer.add(name("exact.values"), exact.values.clone())?;
                    let [rows, heads, count, _] = exact.keys.dims();
                    let slots: Vec<i64> =
                        exact.slots.clone().try_into_vec_as().map_err(read_error)?;
                    let slots = slots.into_iter().map(|slot| slot as u32).collect();
                    writer.add_numbers(name("exact.slots"), vec![rows, heads, count], slots);
                }
            }
        }
        let positions: Vec<i64> = store.positions().try_into_vec_as().map_err(read_error)?;
        let positions: Option<Vec<u32>> = positions.iter().map(|&p| p.try_into().ok()).collect();
        let positions = positions.ok_or_else(|| {
            Error::Failed(format!("layer {} holds positions below 0", self.layer))
        })?;
        let LayerShape {
            batch, kv_heads, ..
        } = self.shape;
        let dims = vec![batch, kv_heads, store.len()];
        writer.add_numbers(name("positions"), dims, positions);
        let queries = self.queries.latest(self.needs.queries);
        let remembered = queries.as_ref().map_or(0, |queries| queries.dims()[2]);
        if let Some(queries) = queries {
            writer.add(name("queries"), queries)?;
        }
        if let Some(behind) = self.states.behind() {
            writer.add(name("behind"), behind)?;
        }
        for phase in Phase::BOTH {
            state::add(writer, &name(&phase.to_string()), self.states.own(phase))?;
        }
        let channels = coded.and_then(|coded| coded.keys.channels.as_ref());
        let exact = coded.and_then(|coded| coded.exact.as_ref());
        Ok(LayerMeta {
            window: self.facts.window,
            capacity: store.capacity(),
            kv: coded.map(|coded| coded.keys.codes),
            channels: channels.map_or(0, |channels| channels.count),
            next: exact.map_or(0, |exact| exact.next),
            prefill_budget: rules.budget(Phase::Prefill),
            decode_budget: rules.budget(Phase::Decode).filter(|_| !self.is_undivided()),
            spans: ranges(self.spans.ranges()),
            ordered: self.order.as_ref().is_some(),
            heads_agree: self.heads_agree,
            queries: remembered,
            prefill: StateMeta::of(self.states.own(Phase::Prefill)),
            decode: StateMeta::of(self.states.own(Phase::Decode)),
            heads: Vec::new(),
        })
    }

    /// Makes an empty layer what a session says.
    ///
    /// # Errors
    /// What does not fit the layer's policies: remembered queries, the order of positions, statistics.
    pub(in crate::cache) fn resume(&mut self, from: Resumed<'_>) -> Result<()> {
        if !from.meta.heads.is_empty() {
            return self.resume_heads(from);
        }
        let Resumed { reader, meta, .. } = from;
        let [data] = from.data else {
            return Err(Error::Failed("a layer of several parts".into()));
        };
        let place = reader.place();
        let layer = self.layer;
        let spans = meta.spans.iter().map(|[start, end]| *start..*end);
        self.begin(from.rules, from.facts, from.softcap, Spans::new(spans), 0);
        self.add_needs(from.needs);
        self.seen = from.seen;
        self.shift = from.shift;

        let queries = self.needs.queries.min(self.seen);
        let field = format!("queries of layer {layer}");
        check_range(place, &field, meta.queries, queries, queries)?;
        if self.needs.position_order && !meta.ordered && !data.is_ascending() {
            let field = format!("order of layer {layer}");
            let allowed = "kept, since its slots are not in order of position";
            return Err(Error::invalid(place, field, "not kept", allowed));
        }
        let rules = self.rules()?;
        if meta.kv != rules.kv {
            let text = |codes: Option<Codes>| codes.map_or("none", Codes::name);
            let field = format!("codes of layer {layer}");
            let allowed = format!("{}, as the plan states", text(rules.kv));
            return Err(Error::invalid(place, field, text(meta.kv), allowed));
        }
        for phase in Phase::BOTH {
            let state = data.state(phase).state(reader, &self.device)?;
            let kept = rules.of(phase);
            let kept = kept.filter(|_| phase == Phase::Prefill || !self.states.shared);
            let checked = match kept {
                Some(eviction) => {
                    let like = self.like(eviction)?;
                    eviction.policy.accepts(&state, &like, self.seen)
                }
                None => state.check_like(&State::default(), 0),
            };
            checked.map_err(|found| {
                let field = format!("{phase} state of layer {layer}");
                let allowed = match kept {
                    Some(eviction) => format!("what policy {} keeps", eviction.policy.name()),
                    None => "nothing, since no policy keeps one".into(),
                };
                Error::invalid(place, field, found, allowed)
            })?;
            self.states.set(phase, state);
        }

        let dims = [self.shape.batch, self.shape.kv_heads, data.entries];
        let numbers = |numbers: Vec<i64>| {
            Tensor::<3, Int>::from_data(TensorData::new(numbers, dims), &self.device)
        };
        let positions = numbers(data.positions.iter().map(|&p| i64::from(p)).collect());
        if meta.ordered {
            self.order = Order::of(numbers(data.order()));
        }
        if let Some(behind) = &data.behind {
            self.states
                .set_behind(state::tensor(reader, behind, &self.device)?);
        }
        if let Some(queries) = &data.queries {
            self.queries = Queries::of(state::tensor(reader, queries, &self.device)?);
        }
        let capacity = capacity(meta.capacity, data.entries);
        self.store = Some(match &data.vectors {
            VectorData::Floats([keys, values]) => {
                let keys = state::tensor(reader, keys, &self.device)?;
                let values = state::tensor(reader, values, &self.device)?;
                Store::of((keys, values, positions), capacity)
            }
            VectorData::Codes(codes) => {
                let entries =
                    codes.entries(reader, layer, self.shape, data.entries, &self.device)?;
                Store::of_codes(entries, positions, capacity)
            }
        });
        self.heads_agree = meta.heads_agree;
        Ok(())
    }

    fn resume_heads(&mut self, from: Resumed<'_>) -> Result<()> {
        let spans = from.meta.spans.iter().map(|[start, end]| *start..*end);
        let spans = Spans::new(spans);
        self.begin(from.rules, from.facts, from.softcap, spans, 0);
        self.add_needs(from.needs);
        (self.seen, self.shift) = (from.seen, from.shift);
        self.heads_agree = false;
        let rules = self.rules()?;
        let divides = [&rules.prefill, &rules.decode].into_iter().flatten();
        if !divides.into_iter().any(|eviction| self.divides(eviction)) {
            let field = format!("heads of layer {}", self.layer);
            let allowed = "none, since the plan's policies treat them alike";
            let found = from.meta.heads.len();
            return Err(Error::invalid(from.reader.place(), field, found, allowed));
        }
        let shape = self.shape.of_head();
        let mut heads = Vec::new();
        for (index, (meta, data)) in from.meta.heads.iter().zip(from.data).enumerate() {
            let head = index.checked_rem(self.shape.kv_heads).unwrap_or(0);
            let mut part = Self::new(self.layer, shape, &self.device);
            part.part = Some(head);
            part.resume(Resumed {
                reader: from.reader,
                meta,
                data: std::slice::from_ref(data),
                seen: from.seen,
                shift: from.shift,
                rules: self.resumed_rules(&rules, meta, from.reader.place())?,
                facts: self.head_facts(head),
                softcap: from.softcap,
                needs: from.needs,
            })?;
            heads.push(part);
        }
        self.heads = heads;
        Ok(())
    }

    /// A head's evictions: those of its layer with its own decode budget.
    fn resumed_rules(
        &self,
        rules: &LayerEvictions,
        meta: &LayerMeta,
        place: &str,
    ) -> Result<LayerEvictions> {
        let mut own = self.head_rules().unwrap_or_default();
        if let (Some(decode), Some(budget)) = (&mut own.decode, meta.decode_budget) {
            let most = rules.budget(Phase::Decode).unwrap_or(0);
            let most = most.saturating_mul(self.shape.kv_heads);
            let field = format!("decode budget of a head of layer {}", self.layer);
            check_range(place, &field, budget, 1, most)?;
            decode.budget = budget;
        }
        Ok(own)
    }

    /// What a policy remembers of the latest token alone.
    fn like(&self, eviction: &Eviction) -> Result<State> {
        let LayerShape {
            batch,
            heads,
            kv_heads,
            head_dim,
            dtype,
        } = self.shape;
        let zeros =
            |heads, dtype| Tensor::<4>::zeros([batch, heads, 1, head_dim], (&self.device, dtype));
        let mut state = State::default();
        let appended = Appended {
            layer: self.layer,
            first_head: self.part.unwrap_or(0),
            shape: self.shape,
            before: 0,
            positions: self.seen.saturating_sub(1)..self.seen,
            to_come: 0,
            queries: zeros(heads, DType::F32),
            values: zeros(kv_heads, dtype),
            facts: self.facts.clone(),
            device: self.device.clone(),
        };
        eviction.policy.append(&mut state, &appended)?;
        Ok(state)
    }
}

/// The slots of a layer that had `stated` of them: as many, but no more than a layer has that grows by itself. What
/// [`KvCache::reserve`](crate::KvCache::reserve) added is not worth memory that the file does not justify.
fn capacity(stated: usize, entries: usize) -> usize {
    let slack = 16.max(entries / 32);
    stated.clamp(entries, entries.saturating_add(slack).saturating_add(1))
}
