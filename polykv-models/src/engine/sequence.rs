//! Answers that are being generated, and a token for all of them in one pass.

use super::request::{Answer, EngineEvent, Probability, Request, RequestId, Token};
use crate::generate::Held;
use crate::generate::{AnswerText, Finish, explained, make_room};
use crate::load::LoadedModel;
use crate::rows;
use crate::sample::{Sampler, SamplingParams, log_probabilities};
use burn::tensor::{Int, Tensor, TensorData};
use polykv_core::{Error, KvCache, Result, ops};

/// An answer that is being generated.
#[derive(Debug)]
pub(super) struct Sequence<'m> {
    pub id: RequestId,
    pub cache: KvCache,
    model: &'m LoadedModel,
    choice: usize,
    sampler: Sampler,
    text: AnswerText<'m>,
    /// The prompt and the answer so far.
    history: Vec<u32>,
    tokens: Vec<u32>,
    most_tokens: usize,
    packed: bool,
    logprobs: Option<usize>,
    keep: bool,
    /// The last token that was chosen, which the cache has not been given.
    pending: Option<u32>,
    finish: Option<Finish>,
}

/// What a sequence made of logits.
pub(super) type Events = Vec<(RequestId, EngineEvent)>;

impl<'m> Sequence<'m> {
    /// # Errors
    /// Parameters of the sampling that are out of range.
    pub fn new(
        model: &'m LoadedModel,
        id: RequestId,
        choice: usize,
        request: &Request,
        cache: KvCache,
        history: Vec<u32>,
    ) -> Result<Self> {
        let options = &request.options;
        let sampling = SamplingParams {
            seed: options.sampling.seed.wrapping_add(choice as u64),
            ..options.sampling.clone()
        };
        Ok(Self {
            id,
            cache,
            model,
            choice,
            sampler: Sampler::new(sampling)?.with_guide(options.guide.clone()),
            text: AnswerText::new(&model.tokenizer, &options.stop),
            history,
            tokens: Vec::new(),
            most_tokens: options.max_new_tokens,
            packed: options.packed,
            logprobs: request.logprobs,
            keep: request.keep,
            pending: None,
            finish: (options.max_new_tokens == 0).then_some(Finish::Length),
        })
    }

    pub fn is_done(&self) -> bool {
        self.finish.is_some()
    }

    /// Chooses a token from the logits of the next one.
    ///
    /// # Errors
    /// Logits that are not finite, and an error of the tokenizer or of the cache.
    pub fn choose(&mut self, logits: &[f32], events: &mut Events) -> Result<()> {
        let chosen = self.sampler.sample(logits, &self.history);
        let id = chosen.map_err(|error| explained(error, &self.cache))?;
        self.pending = Some(id);
        if self.model.eos_tokens.contains(&id) {
            self.finish = Some(Finish::Stop);
            return Ok(());
        }
        self.tokens.push(id);
        self.history.push(id);
        let text = self.text.push(id)?;
        let probability = self.logprobs.map(|count| {
            let (logprob, top) = log_probabilities(logits, id, count);
            Probability { logprob, top }
        });
        let token = Token {
            choice: self.choice,
            id,
            text,
            probability,
        };
        events.push((self.id, EngineEvent::Token(token)));
        let context = self.model.model.config().max_positions;
        if self.packed {
            make_room(&mut self.cache, 1, context)?;
        }
        let mut next = self.cache.next_positions().into_iter();
        let full = next.any(|next| next >= context);
        self.finish = match () {
            () if self.text.stopped() || self.sampler.is_complete() => Some(Finish::Stop),
            () if full || self.tokens.len() == self.most_tokens => Some(Finish::Length),
            () => None,
        };
        Ok(())
    }

    /// The sequence, if it is to be kept.
    pub fn held(mut self) -> Option<Box<Held>> {
        let given = self.cache.seen().min(self.history.len());
        self.history.truncate(given);
        self.keep.then(|| {
            Box::new(Held {
                cache: self.cache,
                tokens: self.history,
                pending: self.pending,
            })
        })
    }

    /// # Errors
    /// An error of the tokenizer, and scores that were NaN.
    pub fn end(mut self, events: &mut Events) -> Result<()> {
        let id = self.id;
        let answer = Answer {
            choice: self.choice,
            text: self.text.finish()?,
            finish: self.finish.unwrap_or(Finish::Cancelled),
            cache: self.cache.report()?,
            tokens: std::mem::take(&mut self.tokens),
            held: self.held(),
        };
        events.push((id, EngineEvent::Done(Box::new(answer))));
        Ok(())
    }
}

/// The logits after the last token of each sequence, one after the other, and why a sequence's are not to be used.
///
/// # Errors
/// An error of the model, which is nobody's own.
pub(super) fn step(
    model: &LoadedModel,
    sequences: &mut [Sequence<'_>],
) -> Result<(Vec<f32>, Vec<Option<Error>>)> {
    let lm = &*model.model;
    let last = sequences.iter().map(|s| s.history.last().copied());
    let ids: Vec<i64> = last.map(|id| id.map_or(0, i64::from)).collect();
    let positions = sequences.iter().map(|s| s.cache.next_positions());
    let positions: Vec<usize> = positions.flatten().collect();
    let rope = lm.rope_of_rows(&positions, 1);
    let ids = TensorData::new(ids, [sequences.len(), 1]);
    let ids = Tensor::<2, Int>::from_data(ids, lm.device());
    let caches = sequences.iter_mut().map(|sequence| &mut sequence.cache);
    let mut caches: Vec<&mut KvCache> = caches.collect();
    let (logits, failed) = rows::decode_each(lm, ids, &rope, &mut caches)?;
    let logits = logits.try_into_vec_as().map_err(ops::read_error)?;
    Ok((logits, failed))
}
