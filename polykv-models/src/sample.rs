//! Choosing the next token from the model's logits.

mod params;

pub use params::SamplingParams;

use crate::guide::Guide;
use polykv_core::{Error, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

/// Chooses tokens from logits, with a seeded random number generator.
/// The steps run in this order: the guide, bias and penalties, top-k, softmax with temperature, top-p (nucleus sampling, Holtzman et
/// al. 2019, arXiv 1904.09751), min-p (arXiv 2407.01082), draw.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: StdRng,
    /// How often each token was chosen, if a penalty asks for it.
    chosen: HashMap<u32, u32>,
    guide: Option<Box<dyn Guide>>,
    /// Whether the guide's answer is complete.
    complete: bool,
}

/// A token id with its logit, later its probability.
type Scored = (u32, f32);

impl Sampler {
    /// A sampler with the given parameters.
    ///
    /// # Errors
    /// A parameter that is out of range.
    pub fn new(params: SamplingParams) -> Result<Self> {
        params.validate()?;
        let rng = StdRng::seed_from_u64(params.seed);
        Ok(Self {
            params,
            rng,
            chosen: HashMap::new(),
            guide: None,
            complete: false,
        })
    }

    /// A sampler that chooses only what `guide` allows.
    #[must_use]
    pub fn with_guide(self, guide: Option<Box<dyn Guide>>) -> Self {
        Self { guide, ..self }
    }

    /// Whether the guide's answer is complete with the last token; never without a guide.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Chooses a token id from `logits`, one per token of the vocabulary.
    /// `history` holds the ids of the prompt and of the tokens so far; only the repeat penalty reads it, and it ignores
    /// ids outside the vocabulary. A logit of minus infinity excludes its token. Among equal logits the greedy choice
    /// takes the lowest id.
    ///
    /// # Errors
    /// A logit that is NaN or plus infinity, logits that exclude every token, and a guide that cannot go on.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32> {
        check(logits)?;
        let Some(guide) = &mut self.guide else {
            return self.free(logits, history);
        };
        let mut allowed = logits.to_vec();
        guide.mask(&mut allowed)?;
        let id = self.free(&allowed, history)?;
        if let Some(guide) = &mut self.guide {
            self.complete = guide.push(id)?;
        }
        Ok(id)
    }

    fn free(&mut self, logits: &[f32], history: &[u32]) -> Result<u32> {
        if self.params.temperature == 0.0 && self.params.leaves_logits() {
            return most_likely(logits);
        }
        let id = self.choose(logits, history)?;
        if self.params.frequency_penalty != 0.0 || self.params.presence_penalty != 0.0 {
            let count = self.chosen.entry(id).or_default();
            *count = count.saturating_add(1);
        }
        Ok(id)
    }

    fn choose(&mut self, logits: &[f32], history: &[u32]) -> Result<u32> {
        let mut candidates: Vec<Scored> = (0..).zip(logits.iter().copied()).collect();
        self.penalise(&mut candidates, history);
        candidates.retain(|(_, logit)| *logit > f32::NEG_INFINITY);
        let Some(best) = candidates.iter().copied().min_by(by_rank) else {
            return Err(nothing_to_choose());
        };
        if self.params.temperature == 0.0 {
            return Ok(best.0);
        }
        if let Some(k) = self.params.top_k
            && k < candidates.len()
        {
            candidates.select_nth_unstable_by(k - 1, by_rank);
            candidates.truncate(k);
        }
        for candidate in &mut candidates {
            candidate.1 = ((candidate.1 - best.1) / self.params.temperature).exp();
        }
        self.keep_top_p(&mut candidates);
        // The weights are relative to the best token, whose weight is 1, so min-p compares directly.
        let floor = self.params.min_p.unwrap_or(0.0);
        candidates.retain(|(_, weight)| *weight >= floor);
        Ok(self.draw(&candidates, best.0))
    }

    fn penalise(&self, candidates: &mut [Scored], history: &[u32]) {
        let mut add = |id: u32, by: f32| {
            if let Some((_, logit)) = candidates.get_mut(id as usize) {
                *logit = (*logit + by).min(f32::MAX);
            }
        };
        for &(id, bias) in &self.params.logit_bias {
            add(id, bias);
        }
        for (&id, &count) in &self.chosen {
            let times = self.params.frequency_penalty * count as f32;
            add(id, -(times + self.params.presence_penalty));
        }
        let penalty = self.params.repeat_penalty;
        if penalty == 1.0 {
            return;
        }
        let start = history.len().saturating_sub(self.params.repeat_last_n);
        let recent: HashSet<u32> = history[start..].iter().copied().collect();
        for id in recent {
            if let Some((_, logit)) = candidates.get_mut(id as usize) {
                // Away from zero for negative logits, so that a penalty above 1 always lowers. Clamped, because
                // the product of finite numbers can be infinite.
                let new = if *logit > 0.0 {
                    *logit / penalty
                } else {
                    *logit * penalty
                };
                *logit = new.min(f32::MAX);
            }
        }
    }

    fn keep_top_p(&self, candidates: &mut Vec<Scored>) {
        if self.params.top_p == 1.0 {
            return;
        }
        let target = f64::from(self.params.top_p) * total(candidates);
        // The few most likely tokens are nearly always enough, and sorting the whole vocabulary takes milliseconds.
        let mut sorted = 256;
        loop {
            if sorted < candidates.len() {
                candidates.select_nth_unstable_by(sorted - 1, by_rank);
            }
            sorted = sorted.min(candidates.len());
            candidates[..sorted].sort_unstable_by(by_rank);
            let mut sum = 0.0;
            let reached = candidates[..sorted].iter().position(|(_, weight)| {
                sum += f64::from(*weight);
                sum >= target
            });
            if let Some(last) = reached {
                candidates.truncate(last + 1);
                return;
            }
            if sorted == candidates.len() {
                return;
            }
            sorted *= 8;
        }
    }

    fn draw(&mut self, candidates: &[Scored], fallback: u32) -> u32 {
        let mut left = self.rng.random::<f64>() * total(candidates);
        for (id, weight) in candidates {
            left -= f64::from(*weight);
            if left < 0.0 {
                return *id;
            }
        }
        // Rounding can leave a remainder after the last token.
        fallback
    }
}

/// The logarithm of a token's probability, and the `count` most likely tokens with theirs, best first.
pub(crate) fn log_probabilities(logits: &[f32], id: u32, count: usize) -> (f32, Vec<Scored>) {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - best).exp())
        .sum();
    let total = f64::from(best) + sum.ln();
    let of = |logit: f32| (f64::from(logit) - total) as f32;
    let mut top: Vec<Scored> = (0..).zip(logits.iter().copied()).collect();
    if count < top.len() {
        top.select_nth_unstable_by(count, by_rank);
        top.truncate(count);
    }
    top.sort_unstable_by(by_rank);
    for (_, logit) in &mut top {
        *logit = of(*logit);
    }
    let own = logits.get(id as usize).copied();
    (of(own.unwrap_or(f32::NEG_INFINITY)), top)
}

/// The lowest id of those with the highest logit, without a list of a whole vocabulary.
fn most_likely(logits: &[f32]) -> Result<u32> {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in (0..).zip(logits) {
        if logit > best.1 {
            best = (id, logit);
        }
    }
    match best.1 > f32::NEG_INFINITY {
        true => Ok(best.0),
        false => Err(nothing_to_choose()),
    }
}

fn nothing_to_choose() -> Error {
    Error::Failed("no token has a finite logit".into())
}

fn check(logits: &[f32]) -> Result<()> {
    let broken = logits
        .iter()
        .position(|x| x.is_nan() || *x == f32::INFINITY);
    if let Some(id) = broken {
        let reason = format!(
            "the logit of token {id} is {}; allowed: finite numbers",
            logits[id]
        );
        return Err(Error::Failed(reason));
    }
    Ok(())
}

/// Higher values first, lower ids first among equals.
fn by_rank(a: &Scored, b: &Scored) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

fn total(candidates: &[Scored]) -> f64 {
    candidates
        .iter()
        .map(|(_, weight)| f64::from(*weight))
        .sum()
}

#[cfg(test)]
mod tests;
