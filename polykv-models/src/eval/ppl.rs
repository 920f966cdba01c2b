//! Perplexity of a text's continuation after its prefix was compressed.

use super::windows::{self, Window, WindowOptions};
use super::{Evaluator, Prediction, SampleInfo, Task, metrics, sample_of};
use crate::LoadedModel;
use polykv_core::{Error, Result};

/// Perplexity: the continuation of a text is teacher-forced over its compressed prefix. The first token of the
/// continuation is run but not scored, because the prefix alone predicts it, before anything is evicted.
#[derive(Debug)]
pub struct Ppl {
    windows: Vec<Window>,
    /// Whether the continuation runs token by token with eviction, else in one pass without.
    decode: bool,
}

impl Ppl {
    /// Windows of `text`. With `decode`, the continuation runs token by token under the decode rules; otherwise it runs
    /// in one pass that evicts nothing.
    ///
    /// # Errors
    /// A text too short, lengths beyond the model's context, and a continuation of fewer than two tokens.
    pub fn new(
        model: &LoadedModel,
        text: &str,
        options: &WindowOptions,
        decode: bool,
    ) -> Result<Self> {
        if options.continuation == 1 {
            let allowed = "at least 2, since the first token is not scored";
            return Err(Error::invalid("evaluation", "continuation", 1, allowed));
        }
        let windows = windows::cut(model, text, options)?;
        Ok(Self { windows, decode })
    }
}

impl Task for Ppl {
    fn name(&self) -> &str {
        "ppl"
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
        let nexts = vec![prompted.next; held.len()];
        let (caches, tokens) = (&mut prompted.caches, &window.continuation);
        let nlls = evaluator.nlls(&nexts, caches, tokens, self.decode)?;
        let plans = evaluator.plans().iter().zip(held).zip(nlls);
        Ok(plans
            .map(|((candidate, mut scores), nlls)| {
                scores.insert(
                    "nll".into(),
                    metrics::mean(nlls.get(1..).unwrap_or_default()),
                );
                Prediction {
                    task: self.name().into(),
                    metric: "perplexity".into(),
                    sample,
                    id: windows::id(self.name(), sample),
                    plan: candidate.name.clone(),
                    length: window.prefix.len(),
                    prompt_tokens: window.prefix.len(),
                    truncated: false,
                    depth: None,
                    scores,
                    new_tokens: 0,
                    output: None,
                    answers: Vec::new(),
                }
            })
            .collect())
    }
}
