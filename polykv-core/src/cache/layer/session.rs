//! A layer into a session's file and back.

use super::LayerCache;
use crate::cache::order::Order;
use crate::cache::queries::Queries;
use crate::cache::session::entries::LayerData;
use crate::cache::session::file::{Reader, Writer};
use crate::cache::session::meta::{LayerMeta, StateMeta, check_range, ranges};
use crate::cache::session::state;
use crate::cache::spans::Spans;
use crate::cache::store::Store;
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
    pub data: &'a LayerData,
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
        let (Some(store), Some(rules)) = (&self.store, &self.rules) else {
            return Err(Error::Failed(format!("layer {} holds nothing", self.layer)));
        };
        let name = |what: &str| format!("layer.{}.{what}", self.layer);
        writer.add(name("keys"), store.keys())?;
        writer.add(name("values"), store.values())?;
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
        Ok(LayerMeta {
            window: self.facts.window,
            capacity: store.capacity(),
            prefill_budget: rules.budget(Phase::Prefill),
            decode_budget: rules.budget(Phase::Decode),
            spans: ranges(self.spans.ranges()),
            ordered: self.order.as_ref().is_some(),
            heads_agree: self.heads_agree,
            queries: remembered,
            prefill: StateMeta::of(self.states.own(Phase::Prefill)),
            decode: StateMeta::of(self.states.own(Phase::Decode)),
        })
    }

    /// Makes an empty layer what a session says.
    ///
    /// # Errors
    /// What does not fit the layer's policies: remembered queries, the order of positions, statistics.
    pub(in crate::cache) fn resume(&mut self, from: Resumed<'_>) -> Result<()> {
        let Resumed {
            reader, meta, data, ..
        } = from;
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
        let entries = (
            state::tensor(reader, &data.keys, &self.device)?,
            state::tensor(reader, &data.values, &self.device)?,
            positions,
        );
        self.store = Some(Store::of(entries, capacity(meta.capacity, data.entries)));
        self.heads_agree = meta.heads_agree;
        Ok(())
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
