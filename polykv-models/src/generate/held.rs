//! A sequence between two generations.

use crate::load::LoadedModel;
use polykv_core::device::run_on;
use polykv_core::{Error, KvCache, Plan, PlanFile, Result, Session, SessionInfo};
use std::path::Path;

/// A sequence that a later generation goes on from: its cache, and its tokens.
#[derive(Clone, Debug)]
pub struct Held {
    pub(crate) cache: KvCache,
    /// Those that the cache was given.
    pub(crate) tokens: Vec<u32>,
    /// The last token of the answer, which the cache has not been given.
    pub(crate) pending: Option<u32>,
}

impl Held {
    /// A sequence without tokens.
    ///
    /// # Errors
    /// A plan with another number of layers, and what [`KvCache::new`] refuses.
    pub(super) fn new(model: &LoadedModel, plan: Plan) -> Result<Self> {
        model.check_layers(&plan)?;
        let lm = &model.model;
        Ok(Self {
            cache: KvCache::new(plan, lm.cache_shape(1), lm.device())?,
            tokens: Vec::new(),
            pending: None,
        })
    }

    /// The cache.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// The tokens that the cache was given, in order.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The last token of the answer, which is fed before the next prompt.
    pub fn pending(&self) -> Option<u32> {
        self.pending
    }

    /// Bytes of the cache with its statistics.
    pub fn bytes(&self) -> u64 {
        let (kv, aux) = (self.cache.kv_bytes(), self.cache.aux_bytes());
        kv.saturating_add(aux) as u64
    }

    /// Writes the sequence to a session's file, from which [`Held::load`] goes on; see [`KvCache::save`]. `plan` is what states
    /// the plan, `identity` what identifies the model, its weights and their number format. Returns the bytes of the file.
    ///
    /// # Errors
    /// What [`KvCache::save`] refuses.
    pub fn save(&mut self, path: &Path, plan: &PlanFile, identity: &str) -> Result<usize> {
        let info = SessionInfo {
            model: identity.to_string(),
            plan: plan.clone(),
            tokens: vec![self.tokens.clone()],
            pending: self.pending.into_iter().collect(),
        };
        let device = self.cache.device().clone();
        run_on(&device, || self.cache.save(path, &info))
    }

    /// The sequence of a session under `plan`, which must be the session's.
    ///
    /// # Errors
    /// A session of several sequences or without its token ids, ids beyond the vocabulary, and what [`KvCache::load`] refuses.
    pub fn load(
        model: &LoadedModel,
        plan: Plan,
        session: &Session,
        identity: &str,
    ) -> Result<Self> {
        let mut held = Self::new(model, plan)?;
        held.read(model, session, identity)?;
        Ok(held)
    }

    /// Reads the one sequence of a session in; this one must be empty.
    ///
    /// # Errors
    /// As for [`Held::load`].
    pub(super) fn read(
        &mut self,
        model: &LoadedModel,
        session: &Session,
        identity: &str,
    ) -> Result<()> {
        let model = &model.model;
        let info = session.info();
        let [tokens] = info.tokens.as_slice() else {
            let found = format!("of {} sequences", info.tokens.len());
            let allowed = "of one sequence";
            return Err(Error::invalid("session", "token ids", found, allowed));
        };
        let vocab = model.config().vocab_size;
        let mut ids = tokens.iter().chain(&info.pending);
        if let Some(id) = ids.find(|&&id| id as usize >= vocab) {
            let allowed = format!("below {vocab}");
            return Err(Error::invalid("session", "token id", id, allowed));
        }
        self.cache.set_facts(&model.facts());
        run_on(model.device(), || self.cache.load(session, identity))?;
        self.tokens.clone_from(tokens);
        self.pending = info.pending.first().copied();
        Ok(())
    }
}
