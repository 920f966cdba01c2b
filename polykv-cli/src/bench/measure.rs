//! One timed run of one test.

use polykv::models::{CausalLm, PrefillOptions};
use polykv::{CacheReport, Error, KvCache, LayerCache, Result, ops};
use std::fmt;
use std::time::{Duration, Instant};

use burn::tensor::{Int, Tensor, TensorData};

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// The prefill of a prompt.
    Prefill { tokens: usize },
    /// Decoding after a prompt of `depth` tokens; a prompt has one at least.
    Decode { tokens: usize, depth: usize },
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefill { tokens } => write!(f, "pp{tokens}"),
            Self::Decode { tokens, depth } => write!(f, "tg{tokens}@d{depth}"),
        }
    }
}

impl Test {
    /// Tokens of the prompt.
    pub fn prompt(&self) -> usize {
        match *self {
            Self::Prefill { tokens } => tokens,
            Self::Decode { depth, .. } => depth.max(1),
        }
    }

    /// Tokens that go through the model.
    pub fn positions(&self) -> usize {
        self.prompt().saturating_add(self.steps())
    }

    fn steps(&self) -> usize {
        match *self {
            Self::Prefill { .. } => 0,
            Self::Decode { tokens, .. } => tokens,
        }
    }

    /// The same with at most `most` tokens of prompt and two of decoding, to run once unmeasured.
    pub fn shortened(&self, most: usize) -> Self {
        match *self {
            Self::Prefill { tokens } => Self::Prefill {
                tokens: tokens.min(most),
            },
            Self::Decode { tokens, depth } => Self::Decode {
                tokens: tokens.min(2),
                depth: depth.min(most),
            },
        }
    }
}

/// What a run took.
pub struct Sample {
    /// Tokens of all sequences per second, of the prompt or of decoding.
    pub tok_s: f64,
    /// Seconds from the start of the prefill until the first token is known.
    pub ttft: f64,
    /// The cache after the last token.
    pub cache: CacheReport,
    /// Bytes of weights and kept entries that decoding read, per second; none for a prefill.
    pub bytes_per_second: Option<f64>,
}

/// Runs a test on an empty cache, and empties it again. Every token is read back and chosen greedily, as generation
/// does, so the device is waited for.
///
/// # Errors
/// What the model and the cache refuse.
pub fn run(
    model: &dyn CausalLm,
    cache: &mut KvCache,
    test: Test,
    chunk: usize,
    seed: u64,
) -> Result<Sample> {
    let batch = cache.shape().batch;
    let prompt = ids(
        random_ids(batch * test.prompt(), model.config().vocab_size, seed),
        batch,
        model,
    );
    let started = Instant::now();
    let mut options = PrefillOptions {
        chunk,
        ..PrefillOptions::default()
    };
    let mut next = greedy(model.prefill(prompt, cache, &mut options)?)?;
    let ttft = started.elapsed().as_secs_f64();
    let weights = model.bytes_per_token() as f64;
    let (mut decoding, mut read) = (Duration::ZERO, 0.0);
    for _ in 0..test.steps() {
        let started = Instant::now();
        next = greedy(model.decode(ids(next, batch, model), cache)?)?;
        decoding += started.elapsed();
        // Outside the clock.
        read += weights + entries_read(cache);
    }
    cache.check()?;
    let report = cache.report()?;
    cache.clear();
    let seconds = decoding.as_secs_f64().max(1e-9);
    let (tokens, seconds) = match test {
        Test::Prefill { tokens } => (tokens, ttft.max(1e-9)),
        Test::Decode { tokens, .. } => (tokens, seconds),
    };
    Ok(Sample {
        tok_s: (batch * tokens) as f64 / seconds,
        ttft,
        cache: report,
        bytes_per_second: (test.steps() > 0).then_some(read / seconds),
    })
}

fn ids(ids: Vec<i64>, batch: usize, model: &dyn CausalLm) -> Tensor<2, Int> {
    let dims = [batch, ids.len() / batch];
    Tensor::from_data(TensorData::new(ids, dims), model.device())
}

/// The most likely token of each sequence, from `[batch, vocab]`.
fn greedy(logits: Tensor<2>) -> Result<Vec<i64>> {
    let [_, vocab] = logits.dims();
    let values: Vec<f32> = logits.try_into_vec_as().map_err(ops::read_error)?;
    if values.iter().any(|value| value.is_nan()) {
        return Err(Error::Failed("a logit is NaN".into()));
    }
    let best = |row: &[f32]| {
        let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        best.map_or(0, |(id, _)| id as i64)
    };
    Ok(values.chunks_exact(vocab).map(best).collect())
}

/// Bytes of keys and values that the step which has just ended left, as the measure of what it read.
fn entries_read(cache: &KvCache) -> f64 {
    let cost = cache.cost();
    let layers = cache.layers().iter().enumerate();
    let bytes = |(layer, held): (usize, &LayerCache)| {
        held.entries() as f64 * cache.plan().entry_bytes(layer, &cost) as f64
    };
    layers.map(bytes).sum()
}

/// SplitMix64, modulo the vocabulary.
fn random_ids(count: usize, vocab: usize, seed: u64) -> Vec<i64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..count).map(|_| (next() % vocab as u64) as i64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_seeded_and_within_the_vocabulary() {
        let ids = random_ids(1000, 50, 3);
        assert_eq!(ids, random_ids(1000, 50, 3));
        assert_ne!(ids, random_ids(1000, 50, 4));
        assert!(ids.iter().all(|id| (0..50).contains(id)));
        assert!((0..50).all(|id| ids.contains(&id)));
    }

    #[test]
    fn names_and_lengths() {
        let test = Test::Decode {
            tokens: 128,
            depth: 0,
        };
        assert_eq!((test.to_string(), test.prompt()), ("tg128@d0".into(), 1));
        assert_eq!(test.positions(), 129);
        assert_eq!(Test::Prefill { tokens: 7 }.to_string(), "pp7");
    }
}
