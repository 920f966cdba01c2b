//! A sequence between two requests.

use crate::generate::session;
use crate::load::LoadedModel;
use polykv_core::{KvCache, Plan, PlanFile, Result, Session, SessionInfo};
use std::path::Path;

/// A sequence that a later request goes on from: its cache, and its tokens.
#[derive(Clone, Debug)]
pub struct Held {
    pub(super) cache: KvCache,
    /// Those that the cache was given.
    pub(super) tokens: Vec<u32>,
    /// The last token of the answer, which the cache has not been given.
    pub(super) pending: Option<u32>,
}

impl Held {
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

    /// Writes the sequence to a session's file; see [`Generator::save`](crate::Generator::save). Returns the bytes of the file.
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
        session::write(&mut self.cache, path, &info)
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
        model.check_layers(&plan)?;
        let lm = &model.model;
        let mut cache = KvCache::new(plan, lm.cache_shape(1), lm.device())?;
        let (tokens, pending) = session::read(model, &mut cache, session, identity)?;
        Ok(Self {
            cache,
            tokens,
            pending,
        })
    }
}
