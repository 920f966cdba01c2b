//! Choosing the next token from the model's logits.

use polykv_core::{Error, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cmp::Ordering;
use std::collections::HashSet;

/// How tokens are chosen. The default is greedy without a penalty.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits before the softmax; 0 always takes the most likely token (greedy).
    pub temperature: f32,
    /// Keeps the k most likely tokens.
    pub top_k: Option<usize>,
    /// Keeps the most likely tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens with at least this share of the most likely token's probability.
    pub min_p: Option<f32>,
    /// Divides positive logits of recent tokens, and multiplies negative ones; 1 is off.
    pub repeat_penalty: f32,
    /// How many of the last tokens the repeat penalty covers.
    pub repeat_last_n: usize,
    /// Seed of the draws. The same seed, parameters and logits give the same tokens.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: None,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Checks the range of every parameter; NaN is out of range.
    ///
    /// # Errors
    /// The first parameter that is out of range, with the value found and the values allowed.
    pub fn validate(&self) -> Result<()> {
        let refuse = |field: &str, found: &dyn std::fmt::Display, allowed: &str| {
            Err(Error::invalid("sampling", field, found, allowed))
        };
        if !(0.0..=100.0).contains(&self.temperature) {
            return refuse("temperature", &self.temperature, "0 (greedy) to 100");
        }
        if self.top_k == Some(0) {
            return refuse("top_k", &0, "1 or more");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top_p", &self.top_p, "above 0, up to 1");
        }
        if let Some(min_p) = self.min_p
            && !(0.0..=1.0).contains(&min_p)
        {
            return refuse("min_p", &min_p, "0 to 1");
        }
        if !(0.01..=100.0).contains(&self.repeat_penalty) {
            return refuse(
                "repeat_penalty",
                &self.repeat_penalty,
                "0.01 to 100 (1 is off)",
            );
        }
        Ok(())
    }
}

/// Chooses tokens from logits, with a seeded random number generator.
/// The steps run in this order: repeat penalty, top-k, softmax with temperature, top-p (nucleus sampling, Holtzman et
/// al. 2019, arXiv 1904.09751), min-p (arXiv 2407.01082), draw.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: StdRng,
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
        Ok(Self { params, rng })
    }

    /// Chooses a token id from `logits`, one per token of the vocabulary.
    /// `history` holds the ids of the prompt and of the tokens so far; only the repeat penalty reads it, and it ignores
    /// ids outside the vocabulary. A logit of minus infinity excludes its token. Among equal logits the greedy choice
    /// takes the lowest id.
    ///
    /// # Errors
    /// A logit that is NaN or plus infinity, and logits that exclude every token.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32> {
        check(logits)?;
        if self.params.temperature == 0.0 && self.params.repeat_penalty == 1.0 {
            return most_likely(logits);
        }
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
mod tests {
    use super::*;

    fn sampling(change: impl Fn(&mut SamplingParams)) -> Sampler {
        let mut params = SamplingParams {
            temperature: 1.0,
            seed: 7,
            ..SamplingParams::default()
        };
        change(&mut params);
        Sampler::new(params).unwrap()
    }

    /// How often each of four tokens with probabilities 0.5, 0.3, 0.15, 0.05 is drawn.
    fn shares(mut sampler: Sampler) -> [f64; 4] {
        let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
        let mut counts = [0u32; 4];
        for _ in 0..20_000 {
            counts[sampler.sample(&logits, &[]).unwrap() as usize] += 1;
        }
        counts.map(|n| f64::from(n) / 20_000.0)
    }

    fn assert_near(found: [f64; 4], expected: [f64; 4]) {
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < 0.015, "{found:?} {expected:?}");
        }
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        let mut sampler = Sampler::new(SamplingParams::default()).unwrap();
        assert_eq!(sampler.sample(&[0.0, 3.0, 3.0, 1.0], &[]).unwrap(), 1);
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY, -9.0], &[]).unwrap(), 1);
    }

    #[test]
    fn draws_follow_the_distribution() {
        assert_near(shares(sampling(|_| ())), [0.5, 0.3, 0.15, 0.05]);
        assert_near(
            shares(sampling(|p| p.top_k = Some(2))),
            [0.625, 0.375, 0.0, 0.0],
        );
        assert_near(
            shares(sampling(|p| p.top_k = Some(99))),
            [0.5, 0.3, 0.15, 0.05],
        );
        assert_near(
            shares(sampling(|p| p.top_p = 0.7)),
            [0.625, 0.375, 0.0, 0.0],
        );
        assert_near(shares(sampling(|p| p.top_p = 1e-6)), [1.0, 0.0, 0.0, 0.0]);
        assert_near(
            shares(sampling(|p| p.min_p = Some(0.2))),
            [0.526, 0.316, 0.158, 0.0],
        );
        assert_near(
            shares(sampling(|p| p.min_p = Some(1.0))),
            [1.0, 0.0, 0.0, 0.0],
        );
        // Half the temperature squares the weights.
        assert_near(
            shares(sampling(|p| p.temperature = 0.5)),
            [0.685, 0.247, 0.062, 0.007],
        );
    }

    #[test]
    fn top_p_over_a_large_vocabulary() {
        // Equal weights, so the nucleus is the lower ids; 0.5 of 4000 needs more than one round of sorting.
        let logits = vec![0.0f32; 4000];
        let mut sampler = sampling(|p| p.top_p = 0.5);
        for _ in 0..200 {
            assert!(sampler.sample(&logits, &[]).unwrap() < 2000);
        }
    }

    #[test]
    fn penalty_reads_the_recent_history() {
        let penal = |last_n| {
            Sampler::new(SamplingParams {
                repeat_penalty: 2.0,
                repeat_last_n: last_n,
                ..SamplingParams::default()
            })
            .unwrap()
        };
        let logits = [4.0, 3.0, -1.0];
        assert_eq!(penal(64).sample(&logits, &[0, 0, 99]).unwrap(), 1);
        assert_eq!(penal(1).sample(&logits, &[0, 2]).unwrap(), 0);
        assert_eq!(penal(0).sample(&logits, &[0]).unwrap(), 0);
        // A negative logit is lowered too.
        assert_eq!(penal(64).sample(&[-1.0, -1.5], &[0]).unwrap(), 1);
    }

    #[test]
    fn same_seed_same_tokens() {
        let logits: Vec<f32> = (0..100u8).map(|i| f32::from(i % 7)).collect();
        let run = |seed| {
            let mut sampler = sampling(|p| p.seed = seed);
            (0..50)
                .map(|_| sampler.sample(&logits, &[]).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn broken_logits_are_errors() {
        for temperature in [0.0, 1.0] {
            let mut sampler = sampling(|p| p.temperature = temperature);
            for logits in [
                &[0.0, f32::NAN][..],
                &[f32::INFINITY],
                &[],
                &[f32::NEG_INFINITY; 3],
            ] {
                assert!(sampler.sample(logits, &[]).is_err());
            }
            assert_eq!(sampler.sample(&[f32::MAX, f32::MIN], &[]).unwrap(), 0);
        }
    }

    #[test]
    fn parameters_are_checked() {
        type Change = fn(&mut SamplingParams);
        let changes: [(&str, Change); 8] = [
            ("temperature", |p| p.temperature = -1.0),
            ("temperature", |p| p.temperature = f32::NAN),
            ("top_k", |p| p.top_k = Some(0)),
            ("top_p", |p| p.top_p = 0.0),
            ("top_p", |p| p.top_p = 1.5),
            ("min_p", |p| p.min_p = Some(f32::NAN)),
            ("repeat_penalty", |p| p.repeat_penalty = 0.0),
            ("repeat_penalty", |p| p.repeat_penalty = f32::INFINITY),
        ];
        for (field, change) in changes {
            let mut params = SamplingParams::default();
            change(&mut params);
            let error = Sampler::new(params).err().unwrap();
            assert!(error.is_refusal() && error.to_string().contains(field));
        }
    }
}
