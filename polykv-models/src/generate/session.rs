//! A generator that goes on in another process.

use super::{Generator, Held};
use crate::load::LoadedModel;
use polykv_core::{Plan, PlanFile, Result, Session};
use std::path::Path;

impl Generator {
    /// A generator that goes on from a session under `plan`, which must be the one of the session. `identity` names the model,
    /// its weights and their number format, as for [`Generator::save`].
    ///
    /// # Errors
    /// What [`Held::load`] refuses.
    pub fn resume(
        model: LoadedModel,
        plan: Plan,
        session: &Session,
        identity: &str,
    ) -> Result<Self> {
        let held = Held::load(&model, plan, session, identity)?;
        Ok(Self { model, held })
    }

    /// Goes on from a session instead of the sequence so far, which is left as it is where the session is refused.
    ///
    /// # Errors
    /// As for [`Generator::resume`].
    pub fn load(&mut self, session: &Session, identity: &str) -> Result<()> {
        let mut held = self.held.clone();
        held.cache.clear();
        held.read(&self.model, session, identity)?;
        self.held = held;
        Ok(())
    }

    /// Writes the sequence so far to a session's file, from which [`Generator::resume`] goes on; see [`Held::save`].
    ///
    /// # Errors
    /// What [`KvCache::save`](polykv_core::KvCache::save) refuses.
    pub fn save(&mut self, path: &Path, plan: &PlanFile, identity: &str) -> Result<usize> {
        self.held.save(path, plan, identity)
    }
}
