//! Sessions: a cache as a file, so that a sequence goes on in another process.
//!
//! A session is one safetensors file. Its tensors are the entries that the layers hold, without free slots, and what the
//! policies remember; the rest is JSON in the file's metadata. Such a file may come from anybody: everything in it is checked
//! against the file's size, the plan, the model's shape and itself before anything of it is used.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

mod codes;
pub(super) mod entries;
#[allow(
    clippy::arithmetic_side_effects,
    reason = "sizes of tensors that exist when a file is written"
)]
pub(super) mod file;
pub(super) mod meta;
pub(super) mod state;

use super::layer::Resumed;
use super::{KvCache, LayerCache, Spans, Stage};
use crate::facts::LayerFacts;
use crate::phase::Phase;
use crate::plan::{Eviction, LayerEvictions, PlanFile, Resolved, Rule, Share};
use crate::policy::Needs;
use crate::{Error, Result, files};
use entries::{LayerData, take_layer};
use file::{Reader, Writer};
use meta::{Meta, attention, check_range, dtype_name, ranges, same};
use std::path::Path;

/// The most bytes of a session's file; larger ones are refused.
const MAX_FILE_BYTES: u64 = 1 << 36;
/// Where the description stands in the metadata.
const KEY: &str = "polykv-session";
/// Windows and protected positions are at most this.
const LIMIT: usize = 1 << 40;
/// The tensor of token ids.
const TOKENS: &str = "tokens";

/// What the caller of a cache knows of a session, which the file keeps beside the cache.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// What identifies the model and the number formats of its weights. [`KvCache::load`] wants the same text.
    pub model: String,
    /// The cache's plan as a file states it, see [`PlanFile::of`], from which the plan can be built again.
    pub plan: PlanFile,
    /// The token ids that each row of the batch was given, from the first on; no rows if they are not to be kept.
    pub tokens: Vec<Vec<u32>>,
    /// Token ids that are to be fed next, one per row, such as the last sampled one; empty if there are none.
    pub pending: Vec<u32>,
}

/// A session's file in memory, checked as far as that goes without a plan and a model. [`KvCache::load`] makes a cache of it.
#[derive(Debug)]
pub struct Session {
    reader: Reader,
    meta: Meta,
    info: SessionInfo,
    /// One per layer, or one per head of a layer whose heads have budgets of their own.
    layers: Vec<Vec<LayerData>>,
}

impl Session {
    /// Reads a session's file.
    ///
    /// # Errors
    /// A file that cannot be read, is no regular file or has more than 64 GiB, and what [`Session::from_bytes`] refuses.
    pub fn read(path: &Path) -> Result<Self> {
        let content = files::read_capped(path, MAX_FILE_BYTES)?;
        Self::from_bytes(&path.display().to_string(), content)
    }

    /// Takes the content of a session's file; `place` names it in errors.
    ///
    /// # Errors
    /// What is no session or one of another version; tensors that are missing, unknown, of another shape or type than the
    /// description says, or not finite; positions that repeat or were never seen; numbers out of range. The error names the
    /// thing, the value found and the values allowed.
    pub fn from_bytes(place: &str, content: Vec<u8>) -> Result<Self> {
        let mut reader = Reader::new(place, content)?;
        let meta = Meta::parse(place, reader.description())?;
        let shape = meta.shape(place)?;
        let plan = meta.plan(place)?;
        let mut tokens = Vec::new();
        if reader.has(TOKENS) {
            let dims = [meta.batch, meta.seen].map(Some);
            let ids = reader.take_numbers(TOKENS, &dims)?;
            tokens = ids.chunks(meta.seen).map(<[u32]>::to_vec).collect();
        }
        let mut layers = Vec::new();
        for (layer, described) in meta.layers.iter().enumerate() {
            let given = [meta.seen, meta.shift];
            layers.push(take_layer(&mut reader, layer, described, shape, given)?);
        }
        reader.check_taken()?;
        let info = SessionInfo {
            model: meta.model.clone(),
            plan,
            tokens,
            pending: meta.pending.clone(),
        };
        Ok(Self {
            reader,
            meta,
            info,
            layers,
        })
    }

    /// What the caller of the saved cache knew.
    pub fn info(&self) -> &SessionInfo {
        &self.info
    }

    /// The number of sequences.
    pub fn batch(&self) -> usize {
        self.meta.batch
    }

    /// How many tokens each row was given.
    pub fn seen(&self) -> usize {
        self.meta.seen
    }

    /// Whether every layer holds all that its attention can still see, so that what follows is exactly what it would be
    /// without a budget, as far as nothing was merged.
    pub fn is_complete(&self) -> bool {
        let layers = self.layers.iter().zip(&self.meta.layers);
        layers.into_iter().all(|(data, meta)| {
            let most = crate::facts::most_entries(meta.window);
            data.iter()
                .all(|data| data.entries == self.meta.seen.min(most))
        })
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> usize {
        self.reader.size()
    }

    fn place(&self) -> &str {
        self.reader.place()
    }
}

impl KvCache {
    /// Writes the cache to a file, from which [`KvCache::load`] goes on as if nothing had happened: bit for bit on the same
    /// device. Only the entries that the layers hold are written, so that the file of a compressed cache is small. Whoever
    /// reads the file at the same time gets the old content or the new one. Returns its bytes.
    ///
    /// # Errors
    /// A cache that was given nothing, is within a prompt or a token, or holds numbers that are not finite; token ids that do
    /// not go with it; a device that cannot be read, and a folder that cannot be written.
    pub fn save(&mut self, path: &Path, info: &SessionInfo) -> Result<usize> {
        let content = self.to_session(info)?;
        files::write_whole(path, &content)?;
        Ok(content.len())
    }

    /// The content of the file that [`KvCache::save`] writes.
    ///
    /// # Errors
    /// Those of [`KvCache::save`] but for the folder.
    pub fn to_session(&mut self, info: &SessionInfo) -> Result<Vec<u8>> {
        self.check_ready("save")?;
        self.check()?;
        self.check_saved(info)?;
        let mut writer = Writer::default();
        if !info.tokens.is_empty() {
            let ids = info.tokens.concat();
            writer.add_numbers(TOKENS.into(), vec![self.shape.batch, self.seen()], ids);
        }
        let layers = self.layers.iter();
        let meta = Meta {
            version: meta::VERSION,
            model: info.model.clone(),
            plan: info.plan.to_yaml(),
            rules: self.plan.fingerprint(),
            attention: attention(self.facts.scale, self.facts.softcap),
            batch: self.shape.batch,
            heads: self.shape.heads,
            kv_heads: self.shape.kv_heads,
            head_dim: self.shape.head_dim,
            dtype: dtype_name(self.shape.dtype)?.into(),
            seen: self.seen(),
            first: self.first.clone(),
            shift: self.shift,
            spans: ranges(self.spans.ranges()),
            pending: info.pending.clone(),
            layers: layers
                .map(|layer| layer.save(&mut writer))
                .collect::<Result<_>>()?,
        };
        let text = serde_json::to_string(&meta)
            .map_err(|e| Error::Failed(format!("a session as JSON: {e}")))?;
        writer.finish(text)
    }

    fn check_saved(&self, info: &SessionInfo) -> Result<()> {
        let (batch, seen) = (self.shape.batch, self.seen());
        if seen == 0 {
            let found = "save before any token";
            return Err(Error::order("cache", "call", found, "after a prompt"));
        }
        if let Some(layer) = self.layers.iter().position(|layer| layer.seen() != seen) {
            let found = format!("save within a token, before layer {layer}");
            let allowed = "after all layers had the token";
            return Err(Error::order("cache", "call", found, allowed));
        }
        let refuse = |field: &str, found: String, allowed: String| {
            Err(Error::shape("session", field, found, allowed))
        };
        for (field, rows) in [
            ("tokens", info.tokens.len()),
            ("pending tokens", info.pending.len()),
        ] {
            if rows != 0 && rows != batch {
                let allowed = format!("none, or {batch}, the rows of the batch");
                return refuse(field, format!("of {rows} rows"), allowed);
            }
        }
        match info.tokens.iter().find(|row| row.len() != seen) {
            None => Ok(()),
            Some(row) => {
                let allowed = format!("{seen}, as many as the cache was given");
                refuse("tokens", row.len().to_string(), allowed)
            }
        }
    }

    /// Takes up the sequences of a session, after [`KvCache::set_facts`] has stated the model. The cache must be empty and
    /// have the plan and the shape of the one that was saved; `model` must be what [`SessionInfo::model`] was. First positions
    /// and protected ones are those of the session. After an error the cache is empty as before.
    ///
    /// # Errors
    /// A cache that is not empty; a session of another model, plan, shape or number format; statistics that the plan's
    /// policies do not keep, or budgets beyond the plan's. The error names the thing, the value found and the values allowed.
    pub fn load(&mut self, session: &Session, model: &str) -> Result<()> {
        self.check_ready("load")?;
        if self.seen() > 0 {
            let found = format!("load after {} tokens", self.seen());
            let allowed = "an empty cache, see KvCache::clear";
            return Err(Error::order("cache", "call", found, allowed));
        }
        self.check_same(session, model)?;
        let (place, meta) = (session.place(), &session.meta);
        let mut resolved = Resolved {
            layers: Vec::new(),
            tokens: meta.seen,
        };
        for layer in 0..meta.layers.len() {
            resolved.layers.push(self.rules_of(session, layer)?);
        }
        self.check_budgets(session, &resolved)?;
        self.facts.check(&resolved).map_err(|e| e.at(place))?;
        let online = self.plan.online.as_ref();
        let online = online.and_then(|allocator| allocator.online());
        let needs = online.map_or_else(Needs::default, |online| online.needs());
        let mut layers = Vec::new();
        let parts = meta.layers.iter().zip(&session.layers);
        for (index, ((meta, data), rules)) in parts.zip(resolved.layers).enumerate() {
            let mut layer = LayerCache::new(index, self.shape, &self.device);
            layer.resume(Resumed {
                reader: &session.reader,
                meta,
                data,
                seen: session.meta.seen,
                shift: session.meta.shift,
                rules,
                facts: self.facts.layer(index),
                softcap: self.facts.softcap,
                needs,
            })?;
            layers.push(layer);
        }
        self.layers = layers;
        self.first.clone_from(&meta.first);
        self.shift = meta.shift;
        self.spans = Spans::new(meta.spans.iter().map(|[start, end]| *start..*end));
        self.stage = Stage::Ready;
        self.cascade = None;
        self.peak_bytes = self.kv_bytes();
        Ok(())
    }

    /// # Errors
    /// Another model, plan, shape, number format or attention.
    fn check_same(&self, session: &Session, model: &str) -> Result<()> {
        let (place, meta) = (session.place(), &session.meta);
        let text = |text: &str| format!("'{text}'");
        same(place, "model", text(&meta.model), text(model))?;
        let layers = self.plan.layers.len();
        same(place, "layers", meta.layers.len(), layers)?;
        let shape = self.shape;
        for (field, found, cache) in [
            ("batch", meta.batch, shape.batch),
            ("heads", meta.heads, shape.heads),
            ("kv_heads", meta.kv_heads, shape.kv_heads),
            ("head_dim", meta.head_dim, shape.head_dim),
        ] {
            same(place, field, found, cache)?;
        }
        same(place, "dtype", &*meta.dtype, dtype_name(shape.dtype)?)?;
        let rules = self.plan.fingerprint();
        same(
            place,
            "fingerprint of the plan's rules",
            &meta.rules,
            &rules,
        )?;
        let own = attention(self.facts.scale, self.facts.softcap);
        same(place, "attention", &meta.attention, &own)?;
        for (layer, described) in meta.layers.iter().enumerate() {
            let LayerFacts { window, .. } = self.facts.layer(layer);
            let text = |window: Option<usize>| window.map_or("none".into(), |w| w.to_string());
            let field = format!("window of layer {layer}");
            same(place, &field, text(described.window), text(window))?;
        }
        Ok(())
    }

    /// The evictions of a layer: the plan's policies with the session's budgets.
    fn rules_of(&self, session: &Session, layer: usize) -> Result<LayerEvictions> {
        let described = session.meta.layers.get(layer);
        let of = |phase: Phase| {
            let planned = self.plan.layers.get(layer);
            let policy = planned.and_then(|planned| planned.policy(phase));
            let budget = described.and_then(|described| described.budget(phase));
            match (policy, budget) {
                (None, None) => Ok(None),
                (Some(policy), Some(budget)) => Ok(Some(Eviction { policy, budget })),
                (policy, budget) => {
                    let field = format!("{phase} budget of layer {layer}");
                    let found = budget.map_or("none".into(), |budget| budget.to_string());
                    let allowed = match policy {
                        Some(policy) => format!("one for policy {}", policy.name()),
                        None => "none, since the plan keeps everything there".into(),
                    };
                    Err(Error::invalid(session.place(), field, found, allowed))
                }
            }
        };
        Ok(LayerEvictions {
            prefill: of(Phase::Prefill)?,
            decode: of(Phase::Decode)?,
            window: self.facts.layer(layer).window,
            kv: self.plan.layers.get(layer).and_then(|layer| layer.kv),
            every: self.plan.every,
        })
    }

    /// # Errors
    /// Budgets that are more than what the plan can have given.
    fn check_budgets(&self, session: &Session, resolved: &Resolved) -> Result<()> {
        let place = session.place();
        for phase in Phase::BOTH {
            let mut stated = false;
            for (layer, rule) in self.plan.rules(phase).enumerate() {
                let budget = resolved.layers.get(layer).and_then(|own| own.budget(phase));
                if let (Rule::Evict { share, .. }, Some(budget)) = (rule, budget)
                    && let Share::Entries(entries) = *share
                {
                    stated = true;
                    let field = format!("{phase} budget of layer {layer}");
                    check_range(place, &field, budget, 1, entries)?;
                }
            }
            if !stated {
                // A ratio was taken of the tokens up to the end of the last prompt, which are no more.
                let total = self.plan.most_entries(session.meta.seen, &self.cost());
                let field = format!("{phase} budgets of all layers");
                check_range(place, &field, resolved.total(phase), 0, total)?;
            }
        }
        Ok(())
    }
}
