//! One model for many sequences: prompts run in slices, and between two slices every sequence that has had its prompt decodes
//! a token, all in one pass through the weights. Each sequence has a cache of its own, under a plan of its own.
//!
//! [`Engine::step`] does one such round and returns what it brought. There are no threads and no clock in it: whoever serves
//! several callers runs it in a loop.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

mod prefill;
mod request;
mod room;
mod sequence;

pub use crate::generate::Held;
pub use request::{
    Answer, EngineEvent, EngineOptions, EngineStats, Probability, Prompted, Refusal, Refused,
    Request, RequestId, Token,
};

use crate::generate::check_packs;
use crate::load::LoadedModel;
use crate::sample::Sampler;
use polykv_core::device::run_on;
use polykv_core::{Error, KvCache, Result};
use prefill::{Ended, Prefill};
use request::Waiting;
use room::{Need, Room};
use sequence::{Events, Sequence};
use std::collections::VecDeque;

/// Sequences whose products are computed together: as many as a GEMV takes, which reads the weights once for all of them.
const AT_ONCE: usize = 8;

/// A scheduler for the sequences of many callers over one model.
#[derive(Debug)]
pub struct Engine<'m> {
    model: &'m LoadedModel,
    options: EngineOptions,
    room: Room,
    waiting: VecDeque<Waiting>,
    /// Prompts that are running; the first one gets the next slice.
    prompts: VecDeque<Prefill>,
    sequences: Vec<Sequence<'m>>,
    next: RequestId,
    stats: EngineStats,
}

impl<'m> Engine<'m> {
    /// An engine without sequences.
    pub fn new(model: &'m LoadedModel, options: EngineOptions) -> Self {
        Self {
            model,
            room: Room::new(options.kv_memory),
            options,
            waiting: VecDeque::new(),
            prompts: VecDeque::new(),
            sequences: Vec::new(),
            next: 0,
            stats: EngineStats::default(),
        }
    }

    /// The model.
    pub fn model(&self) -> &'m LoadedModel {
        self.model
    }

    /// Takes a request, whose prompt begins when its memory is free.
    ///
    /// # Errors
    /// A request that is malformed, one that the memory could never hold, and any while the queue is full.
    pub fn submit(&mut self, request: Request) -> std::result::Result<RequestId, Refused> {
        let need = match self.check(&request) {
            Ok(need) => need,
            Err(refusal) => {
                let request = Box::new(request);
                return Err(Refused { refusal, request });
            }
        };
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.waiting.push_back(Waiting { id, request, need });
        Ok(id)
    }

    /// What a request needs, if it can be taken now.
    fn check(&self, request: &Request) -> std::result::Result<Need, Refusal> {
        let model = &self.model.model;
        let config = model.config();
        self.model.check_layers(&request.plan)?;
        Sampler::new(request.options.sampling.clone())?;
        if request.choices == 0 || request.choices > self.options.most_choices {
            let allowed = format!("1 to {}", self.options.most_choices);
            let found = request.choices;
            return Err(Error::invalid("request", "choices", found, allowed).into());
        }
        if request.keep && request.choices > 1 {
            let found = request.choices;
            return Err(
                Error::invalid("request that keeps its sequence", "choices", found, 1).into(),
            );
        }
        let (tokens, most) = (request.prompt.len(), config.max_positions);
        let room = most.saturating_sub(request.position());
        if tokens == 0 || tokens > room {
            let found = format!("{tokens} tokens");
            let allowed = match request.position() {
                0 => format!("1 to {most} tokens, the model's context"),
                before => format!("1 to {room}, after {before} tokens in a context of {most}"),
            };
            return Err(Error::invalid("prompt", "length", found, allowed).into());
        }
        let vocab = config.vocab_size;
        if let Some(id) = request.prompt.iter().find(|&&id| id as usize >= vocab) {
            let allowed = format!("below {vocab}");
            return Err(Error::invalid("prompt", "token id", id, allowed).into());
        }
        if request.options.packed {
            check_packs(config)?;
        }
        let need = room::need(&**model, request, self.options.chunk)?;
        if let Some(limit) = self.room.limit().filter(|&limit| need.prompt > limit) {
            let needed = need.prompt;
            return Err(Refusal::Never { needed, limit });
        }
        if let Some(left) = self.room.beside_aside().filter(|&left| need.prompt > left) {
            let needed = need.prompt;
            return Err(Refusal::Held { needed, left });
        }
        let waiting = self.waiting.len();
        let at_once = waiting == 0 && self.room.fits(need.prompt) && self.has_rows(request.choices);
        match waiting < self.options.queue || at_once {
            true => Ok(need),
            false => Err(Refusal::Full { waiting }),
        }
    }

    /// Whether there are rows for so many answers.
    fn has_rows(&self, choices: usize) -> bool {
        let coming = self.prompts.iter().map(Prefill::choices);
        let taken = coming.fold(self.sequences.len(), usize::saturating_add);
        // Who wants more rows than there are gets all of them.
        taken == 0 || taken.saturating_add(choices) <= self.options.rows
    }

    /// Forgets a request; its memory is free at once. There are no more events of it. Returns its sequence if that was to be
    /// kept: as it is, or as it was before a prompt that has not ended.
    pub fn cancel(&mut self, id: RequestId) -> Option<Box<Held>> {
        self.room.free(id);
        if let Some(at) = self.waiting.iter().position(|waiting| waiting.id == id) {
            return self.waiting.remove(at)?.request.after;
        }
        if let Some(at) = self.prompts.iter().position(|prompt| prompt.id == id) {
            return self.prompts.remove(at)?.before();
        }
        let mut held = None;
        while let Some(at) = self.sequences.iter().position(|one| one.id == id) {
            held = self.sequences.swap_remove(at).held();
        }
        held
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.prompts.is_empty() && self.sequences.is_empty()
    }

    /// Bytes that the caller holds itself, such as sequences between two requests; they count as taken.
    pub fn set_aside(&mut self, bytes: u64) {
        self.room.set_aside(bytes);
    }

    /// What the engine does and holds now.
    pub fn stats(&self) -> EngineStats {
        let caches = || self.sequences.iter().map(|sequence| &sequence.cache);
        let prompts = || self.prompts.iter().map(|prompt| prompt.cache());
        let all = || caches().chain(prompts());
        let held = KvCache::holdings(all());
        EngineStats {
            waiting: self.waiting.len(),
            prompts: self.prompts.len(),
            sequences: self.sequences.len(),
            kv_bytes: held.bytes,
            kv_shared_bytes: held.shared_bytes,
            kv_free_bytes: held.free_bytes,
            kv_free_run_bytes: held.free_run_bytes,
            full_bytes: all().map(KvCache::full_bytes).sum(),
            reserved_bytes: self.room.taken(),
            ..self.stats
        }
    }

    /// One round: begins the requests whose memory is free, runs one slice of a prompt, and decodes one token of every
    /// sequence. Returns what that brought, in order; an error ends the request that it is of.
    pub fn step(&mut self) -> Vec<(RequestId, EngineEvent)> {
        let device = self.model.model.device().clone();
        let mut events = Vec::new();
        run_on(&device, || {
            self.begin(&mut events);
            self.slice(&mut events);
            self.retire(&mut events);
            self.decode(&mut events);
            self.retire(&mut events);
        });
        events
    }

    /// Moves requests from the queue to the prompts, in order.
    fn begin(&mut self, events: &mut Events) {
        while let Some(first) = self.waiting.front() {
            let fits = self.room.fits(first.need.prompt);
            if !fits && self.prompts.is_empty() && self.sequences.is_empty() {
                // What is set aside has grown since it came, and nothing that runs will make room.
                let (id, needed) = (first.id, first.need.prompt);
                let left = self.room.beside_aside().unwrap_or(u64::MAX);
                let error = Error::Failed(Refusal::Held { needed, left }.to_string());
                let held = self.cancel(id);
                self.fail_with(id, error, held, events);
                continue;
            }
            if !fits || !self.has_rows(first.request.choices) {
                return;
            }
            let Some(waiting) = self.waiting.pop_front() else {
                return;
            };
            let id = waiting.id;
            self.room.take(id, waiting.need.prompt);
            match Prefill::begin(self.model, waiting, self.options.chunk) {
                Ok(prompt) => self.prompts.push_back(prompt),
                Err((error, held)) => self.fail_with(id, error, held, events),
            }
        }
    }

    /// A slice of the prompt whose turn it is.
    fn slice(&mut self, events: &mut Events) {
        let Some(mut prompt) = self.prompts.pop_front() else {
            return;
        };
        let id = prompt.id;
        match prompt.step(&*self.model.model) {
            Ok(false) => self.prompts.push_back(prompt),
            Ok(true) => {
                if let Err(error) = self.end_prompt(prompt, events) {
                    self.fail(id, error, events);
                }
            }
            Err(error) => {
                let held = prompt.before();
                self.fail_with(id, error, held, events);
            }
        }
    }

    /// From a prompt that has run to its answers, each with its first token.
    fn end_prompt(&mut self, prompt: Prefill, events: &mut Events) -> Result<()> {
        let Ended {
            id,
            request,
            need,
            mut cache,
            tokens,
            logits,
        } = prompt.end(&*self.model.model)?;
        let fed = request.prompt.len() as u64;
        self.stats.prompt_tokens = self.stats.prompt_tokens.saturating_add(fed);
        let prompted = Prompted {
            cache: cache.report()?,
            kept: match request.kept {
                true => Some(prefill::kept(&cache, tokens.len())?),
                false => None,
            },
        };
        events.push((id, EngineEvent::Prompt(Box::new(prompted))));
        self.room.take(id, need.steady);
        for choice in 0..request.choices {
            let cache = cache.clone();
            let tokens = tokens.clone();
            let mut sequence = Sequence::new(self.model, id, choice, &request, cache, tokens)?;
            if !sequence.is_done() {
                sequence.choose(&logits, events)?;
                self.stats.new_tokens = self.stats.new_tokens.saturating_add(1);
            }
            self.sequences.push(sequence);
        }
        Ok(())
    }

    /// A token of every answer. An error ends the request that it is of.
    fn decode(&mut self, events: &mut Events) {
        let (mut failed, mut new) = (Vec::new(), 0u64);
        let vocab = self.model.model.config().vocab_size;
        for sequences in self.sequences.chunks_mut(AT_ONCE) {
            let (logits, errors) = match sequence::step(self.model, sequences) {
                Ok(step) => step,
                // Nothing tells whose fault it is.
                Err(error) => {
                    let of = |s: &Sequence<'_>| (s.id, Error::Failed(error.to_string()));
                    failed.extend(sequences.iter().map(of));
                    continue;
                }
            };
            let rows = logits.chunks_exact(vocab).zip(errors);
            for (sequence, (logits, error)) in sequences.iter_mut().zip(rows) {
                match error.map_or_else(|| sequence.choose(logits, events), Err) {
                    Ok(()) => new = new.saturating_add(1),
                    Err(error) => failed.push((sequence.id, error)),
                }
            }
        }
        self.stats.new_tokens = self.stats.new_tokens.saturating_add(new);
        for (id, error) in failed {
            self.fail(id, error, events);
        }
    }

    /// Ends the answers that have finished, and the requests of which none is left.
    fn retire(&mut self, events: &mut Events) {
        let sequences = std::mem::take(&mut self.sequences);
        let (done, going): (Vec<_>, Vec<_>) = sequences.into_iter().partition(Sequence::is_done);
        self.sequences = going;
        for sequence in done {
            let id = sequence.id;
            match sequence.end(events) {
                Ok(()) if self.sequences.iter().any(|other| other.id == id) => {}
                Ok(()) => self.room.free(id),
                Err(error) => self.fail(id, error, events),
            }
        }
    }

    /// Ends a request whose sequence an error has spoiled.
    fn fail(&mut self, id: RequestId, error: Error, events: &mut Events) {
        self.fail_with(id, error, None, events);
    }

    /// Ends a request with an error, of which it has one.
    fn fail_with(
        &mut self,
        id: RequestId,
        error: Error,
        held: Option<Box<Held>>,
        events: &mut Events,
    ) {
        self.cancel(id);
        let mut of_it = events.iter().filter(|(other, _)| *other == id);
        if !of_it.any(|(_, event)| matches!(event, EngineEvent::Failed { .. })) {
            events.push((id, EngineEvent::Failed { error, held }));
        }
    }
}
