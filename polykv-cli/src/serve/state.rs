//! What the handlers share.

use super::fault::Fault;
use super::plans::Plans;
use super::sessions::Sessions;
use super::worker::Worker;
use polykv::models::LoadedModel;
use polykv::models::guide::Guides;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// A server that has a model.
#[derive(Debug)]
pub struct Ready {
    /// The model's name in requests and answers.
    pub name: String,
    pub model: Arc<LoadedModel>,
    pub plans: Plans,
    pub worker: Worker,
    pub sessions: Sessions,
    /// Tokens of a chat's answer, if the request does not say how many.
    pub max_new_tokens: usize,
    /// Seconds since 1970 when the model was loaded.
    pub since: u64,
    /// What answers that follow a schema need of the model, from the first request for one on.
    pub guides: OnceLock<Guides>,
}

impl Ready {
    /// # Errors
    /// A tokenizer whose tokens stand for bytes that are not known.
    pub fn guides(&self) -> Result<&Guides, Fault> {
        if let Some(guides) = self.guides.get() {
            return Ok(guides);
        }
        // Of two that come first at the same time, one is dropped.
        let guides = Guides::new(&self.model)?;
        Ok(self.guides.get_or_init(|| guides))
    }

    /// # Errors
    /// Texts of so many bytes that their tokens exceed the model's context whatever they are.
    pub fn check_fits<'a>(&self, texts: impl Iterator<Item = &'a str>) -> Result<(), Fault> {
        let most = self.model.model.config().max_positions;
        let least: usize = texts
            .map(|text| self.model.tokenizer.least_tokens(text))
            .sum();
        match least > most {
            false => Ok(()),
            true => Err(Fault::body(format!(
                "the prompt has at least {least} tokens; allowed: at most {most}, the model's context"
            ))),
        }
    }
}

/// The server as handlers see it.
#[derive(Debug)]
pub struct State {
    pub ready: OnceLock<Arc<Ready>>,
    pub draining: AtomicBool,
    pub api_key: Option<String>,
    pub max_body: u64,
}

impl State {
    /// # Errors
    /// A server that is loading its model, or that is about to end.
    pub fn ready(&self) -> Result<&Arc<Ready>, Fault> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(Fault::not_now("the server is about to end"));
        }
        match self.ready.get() {
            None => Err(Fault::not_now("the model is being loaded")),
            Some(ready) if !ready.worker.is_alive() => Err(Fault::ended()),
            Some(ready) => Ok(ready),
        }
    }
}
