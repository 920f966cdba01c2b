//! What an engine is asked for, and what it answers.

use super::room::Need;
use crate::generate::Held;
use crate::generate::{Finish, GenerateOptions};
use polykv_core::{CacheReport, Error, Plan, Spans};
use std::fmt;

/// Names a request of an engine.
pub type RequestId = u64;

/// Limits of an [`Engine`](super::Engine).
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Bytes that caches, their statistics and the hidden states of prompts may take together; `None` sets no limit.
    pub kv_memory: Option<u64>,
    /// The most requests that wait.
    pub queue: usize,
    /// The most sequences at a time.
    pub rows: usize,
    /// The most choices of a request.
    pub most_choices: usize,
    /// Tokens of a prompt that go through a layer before everybody else gets a token.
    pub chunk: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            kv_memory: None,
            queue: 64,
            rows: 64,
            most_choices: 16,
            chunk: 256,
        }
    }
}

/// A prompt and what is wanted after it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// The plan of the sequence's cache, with as many layers as the model.
    pub plan: Plan,
    /// Positions that no policy evicts.
    pub protect: Spans,
    /// How to generate; [`GenerateOptions::chunk`] is the engine's own.
    pub options: GenerateOptions,
    /// How many answers are wanted. They share the prompt, and answer `i` has the seed `i` above that of the options.
    pub choices: usize,
    /// How many of the most likely tokens to tell of with every token; `None` tells no probabilities at all.
    pub logprobs: Option<usize>,
    /// Whether to tell which tokens of the sequence the cache kept of the prompt.
    pub kept: bool,
    /// The sequence that the prompt follows, under the same plan; its pending token is run before the prompt.
    pub after: Option<Box<Held>>,
    /// Whether the sequence is given back with the answer, of which there is then one.
    pub keep: bool,
}

impl Request {
    /// A request for one answer, without probabilities or protected positions.
    #[must_use]
    pub fn new(prompt: Vec<u32>, plan: Plan, options: GenerateOptions) -> Self {
        Self {
            prompt,
            plan,
            protect: Spans::default(),
            options,
            choices: 1,
            logprobs: None,
            kept: false,
            after: None,
            keep: false,
        }
    }

    /// The position of the prompt's first token.
    pub(super) fn position(&self) -> usize {
        let Some(held) = &self.after else {
            return 0;
        };
        let next = held.cache.next_positions().first().copied().unwrap_or(0);
        next.saturating_add(usize::from(held.pending.is_some()))
    }
}

/// A request that was not taken, and why.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// The request as it was.
    pub request: Box<Request>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.refusal.fmt(f)
    }
}

impl std::error::Error for Refused {}

/// Why a request was not taken.
#[derive(Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// It is malformed, or the model cannot do it.
    Invalid(Error),
    /// It needs more memory than there will ever be.
    Never {
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that all requests have together.
        limit: u64,
    },
    /// It needs more memory than there is beside what the engine's caller holds, see
    /// [`Engine::set_aside`](super::Engine::set_aside).
    Held {
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that are left.
        left: u64,
    },
    /// As many requests are waiting as may.
    Full {
        /// Requests that are waiting.
        waiting: usize,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(error) => error.fmt(f),
            Self::Never { needed, limit } => write!(
                f,
                "request: memory is {needed} bytes for its cache, statistics and hidden states; allowed: at most {limit}, \
                 the memory of all requests"
            ),
            Self::Held { needed, left } => write!(
                f,
                "request: memory is {needed} bytes for its cache, statistics and hidden states; allowed: at most {left} now, \
                 beside sequences that are held"
            ),
            Self::Full { waiting } => write!(
                f,
                "queue: requests that wait are {waiting}, as many as may; allowed: one later"
            ),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Invalid(error)
    }
}

/// What a request has come to.
#[derive(Debug)]
#[non_exhaustive]
pub enum EngineEvent {
    /// The prompt has run, and its cache is trimmed.
    Prompt(Box<Prompted>),
    /// A token of an answer.
    Token(Token),
    /// An answer has ended. The request has ended with its last answer.
    Done(Box<Answer>),
    /// The request has failed; there are no more events of it.
    Failed {
        /// Why.
        error: Error,
        /// The sequence as it was before the request, if that was to be kept and is still there.
        held: Option<Box<Held>>,
    },
}

/// A prompt that has run.
#[derive(Clone, Debug)]
pub struct Prompted {
    /// What the cache holds of it.
    pub cache: CacheReport,
    /// For every token the share of layers and KV heads that kept it, if that was asked for.
    pub kept: Option<Vec<f32>>,
}

/// A token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Of which answer, from 0.
    pub choice: usize,
    /// The token's id.
    pub id: u32,
    /// The text that became certain with it; empty while a character or a stop text may be coming.
    pub text: String,
    /// What the model gave it, if that was asked for.
    pub probability: Option<Probability>,
}

/// The probability of a token before any parameter of the sampling.
#[derive(Clone, Debug, PartialEq)]
pub struct Probability {
    /// The natural logarithm of the token's probability.
    pub logprob: f32,
    /// The most likely tokens with theirs, best first.
    pub top: Vec<(u32, f32)>,
}

/// The end of an answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Which answer, from 0.
    pub choice: usize,
    /// The text that was held back until the end.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Its tokens, an end token excluded.
    pub tokens: Vec<u32>,
    /// What its cache holds.
    pub cache: CacheReport,
    /// The sequence, if the request asked for it.
    pub held: Option<Box<Held>>,
}

/// What an engine does and holds at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineStats {
    /// Requests that wait.
    pub waiting: usize,
    /// Prompts that are running.
    pub prompts: usize,
    /// Sequences that decode.
    pub sequences: usize,
    /// Bytes of keys and values; what answers to one prompt share counts once.
    pub kv_bytes: usize,
    /// Of these, bytes that several sequences share or may come to share.
    pub kv_shared_bytes: usize,
    /// Of these, bytes of free slots that the sequences share on a GPU.
    pub kv_free_bytes: usize,
    /// Of these, bytes of the free slots that lie side by side, the most of each layer.
    pub kv_free_run_bytes: usize,
    /// Bytes that keys and values of the same tokens would take without eviction.
    pub full_bytes: usize,
    /// Bytes that are set aside for the requests that have begun.
    pub reserved_bytes: u64,
    /// Tokens of prompts so far.
    pub prompt_tokens: u64,
    /// Generated tokens so far.
    pub new_tokens: u64,
}

/// A request in the queue.
#[derive(Debug)]
pub(super) struct Waiting {
    pub id: RequestId,
    pub request: Request,
    pub need: Need,
}
