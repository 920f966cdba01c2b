//! A sequence that goes on in another process.

use super::Generator;
use crate::load::LoadedModel;
use polykv_core::device::run_on;
use polykv_core::{Error, KvCache, Plan, PlanFile, Result, Session, SessionInfo};
use std::path::Path;

impl Generator {
    /// A generator that goes on from a session under `plan`, which must be the one of the session. `identity` names the model,
    /// its weights and their number format, as for [`Generator::save`].
    ///
    /// # Errors
    /// A session of several sequences or without its token ids, ids beyond the vocabulary, and what
    /// [`KvCache::load`] refuses.
    pub fn resume(
        model: LoadedModel,
        plan: Plan,
        session: &Session,
        identity: &str,
    ) -> Result<Self> {
        let mut generator = Self::new(model, plan)?;
        generator.load(session, identity)?;
        Ok(generator)
    }

    /// Goes on from a session instead of the sequence so far, which is left as it is where the session is refused.
    ///
    /// # Errors
    /// As for [`Generator::resume`].
    pub fn load(&mut self, session: &Session, identity: &str) -> Result<()> {
        let mut cache = self.cache.clone();
        cache.clear();
        let (tokens, pending) = read(&self.model, &mut cache, session, identity)?;
        self.cache = cache;
        self.tokens = tokens;
        self.pending = pending;
        Ok(())
    }

    /// Writes the sequence so far to a session's file, from which [`Generator::resume`] goes on; see [`KvCache::save`]. `plan` is
    /// what states the plan, `identity` what identifies the model, its weights and their number format. Returns the bytes of the
    /// file.
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
        write(&mut self.cache, path, &info)
    }
}

/// Writes a session's file.
///
/// # Errors
/// What [`KvCache::save`] refuses.
pub(crate) fn write(cache: &mut KvCache, path: &Path, info: &SessionInfo) -> Result<usize> {
    let device = cache.device().clone();
    run_on(&device, || cache.save(path, info))
}

/// Reads the one sequence of a session into an empty cache. Returns its tokens and the one that the cache has not been given.
///
/// # Errors
/// A session of several sequences or without its token ids, ids beyond the vocabulary, and what [`KvCache::load`] refuses.
pub(crate) fn read(
    model: &LoadedModel,
    cache: &mut KvCache,
    session: &Session,
    identity: &str,
) -> Result<(Vec<u32>, Option<u32>)> {
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
    cache.set_facts(&model.facts());
    run_on(model.device(), || cache.load(session, identity))?;
    Ok((tokens.clone(), info.pending.first().copied()))
}
