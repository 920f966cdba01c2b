//! How far a plan's next-token distributions are from FullKV's.

use super::windows::{self, Window, WindowOptions};
use super::{Evaluator, Prediction, SampleInfo, Task, metrics, sample_of};
use crate::LoadedModel;
use polykv_core::{KvCache, Result};

/// Compares the next-token distributions of a plan with FullKV's. Both run the same tokens after the same prefix, one
/// by one under the plan's decode rules. Scores: `kl`, the Kullback-Leibler divergence in nats, and `agreement`, the
/// share of tokens at which both have the same most likely token. The distribution right after the prefix is left out,
/// because eviction cannot change it.
#[derive(Debug)]
pub struct Fidelity {
    windows: Vec<Window>,
    /// Whether the tokens are those that FullKV chooses greedily, past an end token too, else the text's own.
    generated: bool,
}

/// The comparisons of one plan, one number per token.
#[derive(Clone, Default)]
struct Distances {
    kl: Vec<f64>,
    agreement: Vec<f64>,
}

impl Fidelity {
    /// Windows of `text`. With `generated`, the compared tokens are those that FullKV chooses greedily; otherwise they
    /// are the text's own.
    ///
    /// # Errors
    /// A text too short, and lengths beyond the model's context.
    pub fn new(
        model: &LoadedModel,
        text: &str,
        options: &WindowOptions,
        generated: bool,
    ) -> Result<Self> {
        let windows = windows::cut(model, text, options)?;
        Ok(Self { windows, generated })
    }

    /// The distances of every plan, FullKV's own included.
    fn compare(
        &self,
        evaluator: &Evaluator<'_>,
        given: &[u32],
        next: &[f32],
        caches: &mut [KvCache],
    ) -> Result<Vec<Distances>> {
        let mut plans = vec![Distances::default(); caches.len()];
        let mut caches: Vec<&mut KvCache> = caches.iter_mut().collect();
        let mut choice = metrics::most_likely(next)?;
        for &text_token in given {
            let token = if self.generated { choice } else { text_token };
            let rows = evaluator.step(&mut caches, &vec![token; plans.len()])?;
            let Some(reference) = rows.first() else {
                break;
            };
            choice = metrics::most_likely(reference)?;
            for (plan, logits) in plans.iter_mut().zip(&rows) {
                plan.add(reference, logits)?;
            }
        }
        Ok(plans)
    }
}

impl Distances {
    fn add(&mut self, reference: &[f32], logits: &[f32]) -> Result<()> {
        self.kl.push(metrics::kl(reference, logits)?);
        let same = metrics::most_likely(reference)? == metrics::most_likely(logits)?;
        self.agreement.push(f64::from(u8::from(same)));
        Ok(())
    }
}

impl Task for Fidelity {
    fn name(&self) -> &str {
        "fidelity"
    }

    fn samples(&self) -> Vec<SampleInfo> {
        windows::samples(self.name(), &self.windows)
    }

    fn fingerprint(&self) -> String {
        windows::fingerprint(&self.windows)
    }

    fn run(&self, sample: usize, evaluator: &Evaluator<'_>) -> Result<Vec<Prediction>> {
        let window = sample_of(&self.windows, sample)?;
        let mut prompted = evaluator.prefill(&window.prefix)?;
        let held = prompted.held()?;
        let distances = self.compare(
            evaluator,
            &window.continuation,
            &prompted.next,
            &mut prompted.caches,
        )?;
        let plans = evaluator.plans().iter().zip(held).zip(distances);
        let predictions = plans.map(|((candidate, held), found)| Prediction {
            task: self.name().into(),
            metric: "kl".into(),
            sample,
            id: windows::id(self.name(), sample),
            plan: candidate.name.clone(),
            length: window.prefix.len(),
            prompt_tokens: window.prefix.len(),
            truncated: false,
            depth: None,
            scores: held
                .into_iter()
                .chain([
                    ("kl".into(), metrics::mean(&found.kl)),
                    ("agreement".into(), metrics::mean(&found.agreement)),
                ])
                .collect(),
            new_tokens: 0,
            output: None,
            answers: Vec::new(),
        });
        Ok(predictions.collect())
    }
}
