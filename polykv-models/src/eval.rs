//! Evaluation of plans against FullKV. Every sample's prompt is run once for all plans; what follows it is run per
//! plan on its compressed cache. Samples come from a seed, and nothing here depends on time: the same seed, model and
//! plans give the same numbers.

mod fidelity;
pub(crate) mod filler;
pub(crate) mod haystack;
pub mod metrics;
mod needle;
mod ppl;
mod runner;
mod summary;
pub(crate) mod windows;

pub use fidelity::Fidelity;
pub use needle::{Needle, NeedleOptions};
pub use ppl::Ppl;
pub use runner::{Candidate, Evaluator, Prompted};
pub use summary::{Group, PlanSummary, Summary};
pub use windows::WindowOptions;

use polykv_core::Result;
use polykv_core::device::run_on;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Named numbers, in a fixed order.
pub type Scores = BTreeMap<&'static str, f64>;

/// What one plan did on one sample.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    pub task: &'static str,
    /// Index of the sample.
    pub sample: usize,
    /// Name of the plan.
    pub plan: String,
    /// The length that was asked for, in tokens.
    pub length: usize,
    /// Tokens that were compressed.
    pub prompt_tokens: usize,
    /// Where the needle is, from 0 (start) to 1 (end).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<f64>,
    pub scores: Scores,
    /// What was generated, and what should have been.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

/// A set of samples with a way to score plans on them.
pub trait Task: Send + Sync + fmt::Debug {
    fn name(&self) -> &'static str;

    /// The score that stands for the task, a key of a plan's summed-up scores.
    fn metric(&self) -> &'static str;

    /// Tokens that each sample compresses; the number of samples is its length.
    fn prompt_tokens(&self) -> Vec<usize>;

    /// One prediction per plan, FullKV first.
    ///
    /// # Errors
    /// What the model and the plans refuse, NaN in logits or scores.
    fn run(&self, sample: usize, evaluator: &Evaluator<'_>) -> Result<Vec<Prediction>>;
}

/// Runs all samples; `progress` is called with the samples done and the samples in all.
///
/// # Errors
/// A plan that cannot be carried out at some sample's length, before anything is computed; then those of
/// [`Task::run`].
pub fn evaluate(
    task: &dyn Task,
    evaluator: &Evaluator<'_>,
    progress: &mut (dyn FnMut(usize, usize) + Send),
) -> Result<Vec<Prediction>> {
    let prompts = task.prompt_tokens();
    for &tokens in &prompts {
        evaluator.check(tokens)?;
    }
    run_on(evaluator.device(), || {
        let mut predictions = Vec::new();
        progress(0, prompts.len());
        for sample in 0..prompts.len() {
            predictions.extend(task.run(sample, evaluator)?);
            progress(sample + 1, prompts.len());
        }
        Ok(predictions)
    })
}
