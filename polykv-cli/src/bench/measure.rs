//! One timed run of one test.

use polykv::models::{CausalLm, PrefillOptions, decode_rows};
use polykv::{CacheReport, Error, KvCache, LayerCache, Result, ops};
use std::fmt;
use std::time::{Duration, Instant};

use burn::tensor::{Int, Tensor, TensorData};

/// What is timed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// The prefill of a prompt.
    Prefill { tokens: usize },
    /// Decoding after prompts of `depths` tokens; a prompt has one at least. Sequences of different depths decode together.
    Decode { tokens: usize, depths: Vec<usize> },
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefill { tokens } => write!(f, "pp{tokens}"),
            Self::Decode { tokens, depths } => {
                let depths: Vec<String> = depths.iter().map(usize::to_string).collect();
                write!(f, "tg{tokens}@d{}", depths.join("+"))
            }
        }
    }
}

impl Test {
    /// Tokens of each of the prompts.
    pub fn prompts(&self) -> Vec<usize> {
        match self {
            Self::Prefill { tokens } => vec![*tokens],
            Self::Decode { depths, .. } => depths.iter().map(|&depth| depth.max(1)).collect(),
        }
    }

    /// Tokens of the longest sequence.
    pub fn positions(&self) -> usize {
        let longest = self.prompts().into_iter().max().unwrap_or(0);
        longest.saturating_add(self.steps())
    }

    fn steps(&self) -> usize {
        match *self {
            Self::Prefill { .. } => 0,
            Self::Decode { tokens, .. } => tokens,
        }
    }

    /// The same with at most `most` tokens of prompt and two of decoding, to run once unmeasured.
    pub fn shortened(&self, most: usize) -> Self {
        match self {
            Self::Prefill { tokens } => Self::Prefill {
                tokens: *tokens.min(&most),
            },
            Self::Decode { tokens, depths } => Self::Decode {
                tokens: *tokens.min(&2),
                depths: depths.iter().map(|depth| *depth.min(&most)).collect(),
            },
        }
    }
}

/// What a run took.
pub struct Sample {
    /// Tokens of all sequences per second, of the prompt or of decoding.
    pub tok_s: f64,
    /// Seconds from the start of the prefill until the first token is known, of all sequences.
    pub ttft: f64,
    /// The caches after the last token, one for sequences of the same depth and else one for each.
    pub caches: Vec<CacheReport>,
    /// Bytes of weights and kept entries that decoding read, per second; none for a prefill.
    pub bytes_per_second: Option<f64>,
}

/// Runs a test on copies of an empty cache. Every token is read back and chosen greedily, as generation does, so the device is
/// waited for.
///
/// # Errors
/// What the model and the cache refuse.
pub fn run(
    model: &dyn CausalLm,
    empty: &KvCache,
    test: &Test,
    chunk: usize,
    seed: u64,
) -> Result<Sample> {
    let prompts = test.prompts();
    let mut sequences = Sequences {
        model,
        caches: vec![empty.clone(); prompts.len()],
    };
    let batch = empty.shape().batch;
    let count: usize = prompts.iter().sum();
    let random = random_ids(batch * count, model.config().vocab_size, seed);
    let started = Instant::now();
    let mut next = sequences.prefill(&random, &prompts, chunk)?;
    let ttft = started.elapsed().as_secs_f64();
    let weights = model.bytes_per_token() as f64;
    let (mut decoding, mut read) = (Duration::ZERO, 0.0);
    for _ in 0..test.steps() {
        let started = Instant::now();
        next = sequences.decode(next)?;
        decoding += started.elapsed();
        // Outside the clock.
        read += weights + sequences.caches.iter().map(entries_read).sum::<f64>();
    }
    let mut caches = sequences.caches;
    caches.iter_mut().try_for_each(KvCache::check)?;
    let seconds = decoding.as_secs_f64().max(1e-9);
    let (tokens, seconds) = match *test {
        Test::Prefill { tokens } => (batch * tokens, ttft.max(1e-9)),
        Test::Decode { tokens, .. } => (batch * prompts.len() * tokens, seconds),
    };
    Ok(Sample {
        tok_s: tokens as f64 / seconds,
        ttft,
        caches: caches
            .iter_mut()
            .map(KvCache::report)
            .collect::<Result<_>>()?,
        bytes_per_second: (test.steps() > 0).then_some(read / seconds),
    })
}

/// Sequences of one depth in one cache, or one sequence of each depth in a cache of its own.
struct Sequences<'a> {
    model: &'a dyn CausalLm,
    caches: Vec<KvCache>,
}

impl Sequences<'_> {
    /// The first tokens after the prompts, which take their ids from `random` in order.
    fn prefill(&mut self, mut random: &[i64], prompts: &[usize], chunk: usize) -> Result<Vec<i64>> {
        let mut next = Vec::new();
        for (cache, tokens) in self.caches.iter_mut().zip(prompts) {
            let batch = cache.shape().batch;
            let (own, rest) = random.split_at(batch * tokens);
            random = rest;
            let mut options = PrefillOptions {
                chunk,
                ..PrefillOptions::default()
            };
            let own = ids(own.to_vec(), batch, self.model);
            next.extend(greedy(self.model.prefill(own, cache, &mut options)?)?);
        }
        Ok(next)
    }

    fn decode(&mut self, tokens: Vec<i64>) -> Result<Vec<i64>> {
        if let [cache] = self.caches.as_mut_slice() {
            let batch = cache.shape().batch;
            return greedy(self.model.decode(ids(tokens, batch, self.model), cache)?);
        }
        let tokens: Vec<u32> = tokens.into_iter().map(|id| id as u32).collect();
        let mut rows: Vec<&mut KvCache> = self.caches.iter_mut().collect();
        greedy(decode_rows(self.model, &tokens, &mut rows)?)
    }
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
        let decode = |depths: &[usize]| Test::Decode {
            tokens: 128,
            depths: depths.to_vec(),
        };
        let test = decode(&[0]);
        assert_eq!(
            (test.to_string(), test.prompts()),
            ("tg128@d0".into(), vec![1])
        );
        assert_eq!(test.positions(), 129);
        let test = decode(&[20, 0, 700]);
        assert_eq!(test.to_string(), "tg128@d20+0+700");
        assert_eq!((test.prompts(), test.positions()), (vec![20, 1, 700], 828));
        assert_eq!(test.shortened(32).prompts(), [20, 1, 32]);
        assert_eq!(Test::Prefill { tokens: 7 }.to_string(), "pp7");
    }
}
