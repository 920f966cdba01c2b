//! Text generation: prefill, then one token after the other.

mod held;
mod packed;
mod session;
mod text;

use crate::causal_lm::PrefillOptions;
use crate::guide::Guide;
use crate::load::LoadedModel;
use crate::sample::{Sampler, SamplingParams};
pub use held::Held;
pub(crate) use packed::{check_packs, make_room};
use polykv_core::device::run_on;
use polykv_core::{CacheReport, Error, KvCache, Plan, Result, Spans, ops};
use serde::Serialize;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
pub(crate) use text::AnswerText;

/// Options of a generation.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// The most tokens to generate.
    pub max_new_tokens: usize,
    /// How tokens are chosen from the logits.
    pub sampling: SamplingParams,
    /// Texts at which generation ends; they are not part of the output.
    pub stop: Vec<String>,
    /// Tokens of the prompt per pass through a layer; see [`PrefillOptions::chunk`].
    pub chunk: usize,
    /// Whether the sequence goes on when it reaches the end of the model's context: keys that are kept move to consecutive
    /// positions, see [`KvCache::pack`].
    pub packed: bool,
    /// What the answer must follow, from its first token on.
    pub guide: Option<Box<dyn Guide>>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 128,
            sampling: SamplingParams::default(),
            stop: Vec::new(),
            chunk: PrefillOptions::CHUNK,
            packed: false,
            guide: None,
        }
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// An end token, a stop text, or the end of what a guide asks for.
    Stop,
    /// The limit of new tokens or the model's context.
    Length,
    /// The caller ended it.
    Cancelled,
}

/// A finished generation with what it took.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Generation {
    /// The text of the new tokens, up to a stop text.
    pub text: String,
    /// New tokens, an end token excluded.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt; the last token of an answer before it counts among them.
    pub prompt_tokens: usize,
    /// Why the generation ended.
    pub finish: Finish,
    /// Time to first token (TTFT): from the start of the prefill to the choice of the first token.
    pub ttft: Duration,
    /// The time from the first token to the last.
    pub decode_time: Duration,
    /// The number of decode steps in `decode_time`.
    pub decode_steps: usize,
    /// The cache after the last token.
    pub cache: CacheReport,
    /// The most bytes of hidden states that were held between layers during the prefill.
    pub activation_peak_bytes: usize,
}

impl Generation {
    /// Tokens of the prompt per second of the time to first token.
    #[must_use]
    pub fn prefill_tokens_per_second(&self) -> f64 {
        self.prompt_tokens as f64 / self.ttft.as_secs_f64().max(1e-9)
    }

    /// Decode steps per second; zero if fewer than two tokens were generated.
    #[must_use]
    pub fn decode_tokens_per_second(&self) -> f64 {
        self.decode_steps as f64 / self.decode_time.as_secs_f64().max(1e-9)
    }
}

/// Progress of a generation.
#[non_exhaustive]
pub enum Event<'a> {
    /// A layer has taken in the whole prompt.
    Prefill {
        /// Layers that are done.
        done: usize,
        /// Layers in all.
        total: usize,
    },
    /// The prompt has run and every layer is trimmed; the first token is not known yet.
    Prompt(&'a KvCache),
    /// The end of the model's context was met: the keys that are kept have moved to consecutive positions.
    Packed,
    /// New text, cut at character boundaries.
    Text(&'a str),
}

/// Takes the events of a generation; `Break` ends it, at the end of the prompt or after the token at hand.
pub type OnEvent<'a> = dyn FnMut(Event<'_>) -> ControlFlow<()> + Send + 'a;

/// A model with a cache under one plan.
#[derive(Debug)]
pub struct Generator {
    model: LoadedModel,
    held: Held,
}

impl Generator {
    /// A generator whose cache is empty and runs under `plan`, for one sequence.
    ///
    /// # Errors
    /// A plan with another number of layers, and what [`KvCache::new`] refuses.
    pub fn new(model: LoadedModel, plan: Plan) -> Result<Self> {
        let held = Held::new(&model, plan)?;
        Ok(Self { model, held })
    }

    /// The model.
    pub fn model(&self) -> &LoadedModel {
        &self.model
    }

    /// The cache, as it is after the last generation.
    pub fn cache(&self) -> &KvCache {
        &self.held.cache
    }

    /// The tokens that the cache was given so far, in order.
    pub fn tokens(&self) -> &[u32] {
        &self.held.tokens
    }

    /// The last token of the answer before, which is fed before the next prompt: it was chosen, and the cache has not been
    /// given it. An end token counts too. `None` at the start.
    pub fn pending(&self) -> Option<u32> {
        self.held.pending
    }

    /// Sets the positions that no policy evicts; see [`KvCache::protect`].
    pub fn protect(&mut self, spans: Spans) {
        self.held.cache.protect(spans);
    }

    /// Removes the sequence so far and the protected positions; the next prompt starts at position 0.
    pub fn clear(&mut self) {
        self.held.cache.clear();
        self.held.tokens.clear();
        self.held.pending = None;
    }

    /// Checks that generation can go on beyond the model's context, see [`GenerateOptions::packed`].
    ///
    /// # Errors
    /// A model whose frequencies depend on how long the context is, or that has layers without rotary positions; a policy that
    /// computes with them.
    pub fn check_packs(&mut self) -> Result<()> {
        let model = &self.model.model;
        check_packs(model.config())?;
        self.held.cache.set_facts(&model.facts());
        self.held.cache.check_packs()
    }

    /// The sequence so far, to come back to with [`Generator::back_to`]. It shares tensors with the cache until that changes
    /// them; from then on it holds what they held.
    #[must_use]
    pub fn mark(&self) -> Held {
        self.held.clone()
    }

    /// Goes back to a mark of this generator.
    pub fn back_to(&mut self, mark: Held) {
        self.held = mark;
    }

    /// Runs the token ids of `prompt` after the sequence so far, then generates. The cache keeps the state before the last
    /// token, which goes before the next prompt, so that another turn can follow.
    ///
    /// # Errors
    /// An empty prompt, one beyond the model's context, ids beyond its vocabulary, a plan that cannot be carried out
    /// at this length, NaN in logits or scores.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_event: &mut OnEvent<'_>,
    ) -> Result<Generation> {
        let device = self.model.model.device().clone();
        run_on(&device, || self.run(prompt, options, on_event))
    }

    fn run(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_event: &mut OnEvent<'_>,
    ) -> Result<Generation> {
        let model = &self.model.model;
        let vocab = model.config().vocab_size;
        if let Some(id) = prompt.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::invalid(
                "prompt",
                "token id",
                id,
                format!("below {vocab}"),
            ));
        }
        let sampler = Sampler::new(options.sampling.clone())?;
        let mut sampler = sampler.with_guide(options.guide.clone());
        let fed = match prompt {
            [] => Vec::new(),
            prompt => self
                .held
                .pending
                .into_iter()
                .chain(prompt.iter().copied())
                .collect(),
        };
        let mut wanted = ControlFlow::Continue(());
        if options.packed {
            check_packs(model.config())?;
            self.held.cache.set_facts(&model.facts());
            self.held.cache.check_packs()?;
            if make_room(
                &mut self.held.cache,
                fed.len(),
                model.config().max_positions,
            )? {
                wanted = on_event(Event::Packed);
            }
        }
        let mut history = [self.held.tokens.as_slice(), &fed].concat();
        let started = Instant::now();
        let mut progress = |done, total| {
            if wanted.is_continue() {
                wanted = on_event(Event::Prefill { done, total });
            }
        };
        let mut prefill = PrefillOptions {
            chunk: options.chunk,
            progress: Some(&mut progress),
            ..PrefillOptions::default()
        };
        let mut logits = model.prefill(self.model.ids(&fed), &mut self.held.cache, &mut prefill)?;
        self.held.tokens.extend_from_slice(&fed);
        self.held.pending = None;
        let activation_peak_bytes = prefill.activation_peak_bytes;
        if wanted.is_continue() {
            wanted = on_event(Event::Prompt(&self.held.cache));
        }
        let mut output = Output::new(&self.model, &options.stop);
        output.wanted = wanted;
        let mut tokens = Vec::new();
        let mut first = None;
        let mut finish = Finish::Length;
        while tokens.len() < options.max_new_tokens {
            if output.wanted.is_break() {
                finish = Finish::Cancelled;
                break;
            }
            let values: Vec<f32> = logits.try_into_vec_as().map_err(ops::read_error)?;
            let token = sampler
                .sample(&values, &history)
                .map_err(|error| explained(error, &self.held.cache))?;
            first.get_or_insert_with(Instant::now);
            self.held.pending = Some(token);
            if self.model.eos_tokens.contains(&token) {
                finish = Finish::Stop;
                break;
            }
            tokens.push(token);
            history.push(token);
            if output.push(token, on_event)? || sampler.is_complete() {
                finish = Finish::Stop;
                break;
            }
            let context = model.config().max_positions;
            if options.packed
                && make_room(&mut self.held.cache, 1, context)?
                && output.wanted.is_continue()
            {
                output.wanted = on_event(Event::Packed);
            }
            // Without a budget nothing was freed.
            let at_end = self
                .held
                .cache
                .next_positions()
                .iter()
                .any(|&next| next >= context);
            if at_end || tokens.len() == options.max_new_tokens {
                break;
            }
            logits = model.decode(self.model.ids(&[token]), &mut self.held.cache)?;
            self.held.tokens.push(token);
            self.held.pending = None;
        }
        // Waits for the device: a NaN score is an error of this generation, and time ends when all is computed.
        let cache = self.held.cache.report()?;
        let ended = Instant::now();
        let first = first.unwrap_or(ended);
        let end = self
            .held
            .pending
            .filter(|id| self.model.eos_tokens.contains(id));
        let steps = tokens.len() + usize::from(end.is_some());
        Ok(Generation {
            text: output.finish(on_event)?,
            prompt_tokens: fed.len(),
            finish,
            ttft: first - started,
            decode_time: ended - first,
            decode_steps: steps.saturating_sub(1),
            tokens,
            cache,
            activation_peak_bytes,
        })
    }
}

/// An error of the logits, with what the cache tells of its cause.
pub(crate) fn explained(error: Error, cache: &KvCache) -> Error {
    match cache.not_finite() {
        Ok(Some(cause)) => Error::NotFinite(format!("{error}; {cause}")),
        _ => error,
    }
}

/// What is shown of an answer.
struct Output<'a> {
    answer: AnswerText<'a>,
    text: String,
    /// Whether the caller wants more.
    wanted: ControlFlow<()>,
}

impl<'a> Output<'a> {
    fn new(model: &'a LoadedModel, stops: &[String]) -> Self {
        Self {
            answer: AnswerText::new(&model.tokenizer, stops),
            text: String::new(),
            wanted: ControlFlow::Continue(()),
        }
    }

    /// True at a stop text.
    fn push(&mut self, token: u32, on_event: &mut OnEvent<'_>) -> Result<bool> {
        let text = self.answer.push(token)?;
        self.emit(&text, on_event);
        Ok(self.answer.stopped())
    }

    fn finish(mut self, on_event: &mut OnEvent<'_>) -> Result<String> {
        let rest = self.answer.finish()?;
        self.emit(&rest, on_event);
        Ok(self.text)
    }

    fn emit(&mut self, text: &str, on_event: &mut OnEvent<'_>) {
        if !text.is_empty() && self.wanted.is_continue() {
            self.wanted = on_event(Event::Text(text));
        }
        self.text.push_str(text);
    }
}
