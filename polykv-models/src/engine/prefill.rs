//! A prompt that runs slice by slice, so that others get their tokens in between.

use super::request::{Request, RequestId, Waiting};
use super::room::Need;
use crate::causal_lm::CausalLm;
use crate::generate::Held;
use crate::load::LoadedModel;
use crate::repetition::{self, Chunk};
use polykv_core::{Error, KvCache, Prompt, Result, ops};

/// A request whose prompt is running.
#[derive(Debug)]
pub(super) struct Prefill {
    pub id: RequestId,
    request: Request,
    need: Need,
    prompt: Prompt<KvCache>,
    /// All tokens of the sequence so far.
    tokens: Vec<u32>,
    /// The sequence as it was, if it is to be kept.
    before: Option<Box<Held>>,
    /// The hidden states of each chunk, with its positions.
    chunks: Vec<Chunk>,
    /// The parts of the prompt's repetition, if a policy asks for it.
    parts: Vec<Chunk>,
    /// The chunk that goes through the layer next; those of the repetition come after the prompt's.
    next: usize,
}

/// A request whose prompt has run.
pub(super) struct Ended {
    pub id: RequestId,
    pub request: Request,
    pub need: Need,
    pub cache: KvCache,
    /// All tokens of the sequence so far.
    pub tokens: Vec<u32>,
    /// Of the first token.
    pub logits: Vec<f32>,
}

impl Prefill {
    /// # Errors
    /// A plan that cannot be carried out, with the sequence as it was if that is to be kept.
    pub fn begin(
        model: &LoadedModel,
        mut waiting: Waiting,
        chunk: usize,
    ) -> std::result::Result<Self, (Error, Option<Box<Held>>)> {
        let before = waiting.request.after.take();
        // The copy goes on behind what both share.
        let after = before.clone();
        let before = before.filter(|_| waiting.request.keep);
        Self::after(model, waiting, after, before.clone(), chunk).map_err(|error| (error, before))
    }

    fn after(
        model: &LoadedModel,
        waiting: Waiting,
        after: Option<Box<Held>>,
        before: Option<Box<Held>>,
        chunk: usize,
    ) -> Result<Self> {
        let Waiting { id, request, need } = waiting;
        let lm = &*model.model;
        let (mut cache, mut tokens, pending) = match after {
            Some(held) => (held.cache, held.tokens, held.pending),
            None => {
                let plan = request.plan.clone();
                let cache = KvCache::new(plan, lm.cache_shape(1), lm.device())?;
                (cache, Vec::new(), None)
            }
        };
        cache.set_facts(&lm.facts());
        if tokens.is_empty() {
            cache.protect(request.protect.clone());
        }
        if request.options.packed {
            cache.check_packs()?;
        }
        let starts = cache.next_positions();
        let mut first = starts.first().copied().unwrap_or(0);
        let fed: Vec<u32> = pending.into_iter().chain(request.prompt.clone()).collect();
        tokens.extend_from_slice(&fed);
        let prompt = Prompt::new(cache, fed.len())?;
        let parts = match prompt.layers_to_repeat() {
            0 => Vec::new(),
            _ => repetition::parts(lm, &model.ids(&fed), &starts),
        };
        let chunks = fed.chunks(chunk.max(1)).map(|ids| {
            let positions = first..first.saturating_add(ids.len());
            first = positions.end;
            (lm.embed(model.ids(ids)), lm.rope(positions))
        });
        Ok(Self {
            id,
            need,
            prompt,
            chunks: chunks.collect(),
            parts,
            next: 0,
            request,
            tokens,
            before,
        })
    }

    /// The sequence as it was, if it is to be kept.
    pub fn before(self) -> Option<Box<Held>> {
        self.before
    }

    pub fn choices(&self) -> usize {
        self.request.choices
    }

    pub fn cache(&self) -> &KvCache {
        self.prompt.cache()
    }

    /// Runs one chunk through one layer; whether that was the last one.
    ///
    /// # Errors
    /// An error of the model or of the cache.
    pub fn step(&mut self, model: &dyn CausalLm) -> Result<bool> {
        let (layer, prompt) = (self.prompt.layer(), &mut self.prompt);
        let given = self.chunks.len();
        let all = match layer < prompt.layers_to_repeat() {
            true => given.saturating_add(self.parts.len()),
            false => given,
        };
        let repeats = self.next >= given;
        let mut chunks = self.chunks.iter_mut().chain(&mut self.parts);
        if let Some((x, rope)) = chunks.nth(self.next).filter(|_| self.next < all) {
            *x = model.layer(layer, x.clone(), rope, &mut |q, k, v| match repeats {
                true => prompt.repeat(layer, q, k, v),
                false => prompt.attend(layer, q, k, v),
            })?;
            self.next = self.next.saturating_add(1);
        }
        if self.next == all {
            self.prompt.end_layer(layer)?;
            self.next = 0;
        }
        Ok(self.prompt.is_complete())
    }

    /// # Errors
    /// An error of the cache, and a device that cannot be read.
    pub fn end(self, model: &dyn CausalLm) -> Result<Ended> {
        let cache = self.prompt.finish()?;
        let (last, _) = self
            .chunks
            .into_iter()
            .next_back()
            .ok_or_else(|| Error::Failed("a prompt without chunks".into()))?;
        let tokens = last.dims()[1];
        let logits = model.head(last.narrow(1, tokens.saturating_sub(1), 1));
        Ok(Ended {
            id: self.id,
            request: self.request,
            need: self.need,
            cache,
            tokens: self.tokens,
            logits: logits.try_into_vec_as().map_err(ops::read_error)?,
        })
    }
}

/// For every token of a prompt the share of layers and KV heads that hold it.
///
/// # Errors
/// A device that cannot be read.
pub(super) fn kept(cache: &KvCache, tokens: usize) -> Result<Vec<f32>> {
    let mut counts = vec![0.0f32; tokens];
    let mut heads = 0usize;
    for layer in cache.layers() {
        let Some(positions) = layer.positions() else {
            continue;
        };
        heads = heads.saturating_add(positions.dims()[1]);
        let positions: Vec<i64> = positions.try_into_vec_as().map_err(ops::read_error)?;
        for position in positions {
            let place = usize::try_from(position).ok();
            if let Some(count) = place.and_then(|place| counts.get_mut(place)) {
                *count += 1.0;
            }
        }
    }
    let all = heads.max(1) as f32;
    Ok(counts.into_iter().map(|count| count / all).collect())
}
