//! Perplexity of a text's continuation after its prefix was compressed.

use super::windows::{self, Window, WindowOptions};
use super::{Evaluator, Prediction, Scores, Task, metrics};
use crate::LoadedModel;
use polykv_core::Result;

/// The continuation is teacher-forced over the compressed prefix. Its first token is predicted by the prefix alone,
/// which eviction cannot change.
#[derive(Debug)]
pub struct Ppl {
    windows: Vec<Window>,
    /// Whether the continuation runs token by token with eviction, else in one pass without.
    decode: bool,
}

impl Ppl {
    /// # Errors
    /// A text too short, and lengths beyond the model's context.
    pub fn new(
        model: &LoadedModel,
        text: &str,
        options: &WindowOptions,
        decode: bool,
    ) -> Result<Self> {
        let windows = windows::cut(model, text, options)?;
        Ok(Self { windows, decode })
    }
}

impl Task for Ppl {
    fn name(&self) -> &'static str {
        "ppl"
    }

    fn metric(&self) -> &'static str {
        "perplexity"
    }

    fn prompt_tokens(&self) -> Vec<usize> {
        self.windows.iter().map(|own| own.prefix.len()).collect()
    }

    fn run(&self, sample: usize, evaluator: &Evaluator<'_>) -> Result<Vec<Prediction>> {
        let window = &self.windows[sample];
        let prompted = evaluator.prefill(&window.prefix)?;
        let plans = evaluator.candidates().iter();
        plans
            .zip(prompted.caches)
            .map(|(candidate, mut cache)| {
                let kept = cache.report().kept_mean();
                let tokens = &window.continuation;
                let nlls = evaluator.nlls(&prompted.next, &mut cache, tokens, self.decode)?;
                Ok(Prediction {
                    task: self.name(),
                    sample,
                    plan: candidate.name.clone(),
                    length: window.prefix.len(),
                    prompt_tokens: window.prefix.len(),
                    depth: None,
                    scores: Scores::from([("nll", metrics::mean(&nlls)), ("kept", kept)]),
                    output: None,
                    answer: None,
                })
            })
            .collect()
    }
}
