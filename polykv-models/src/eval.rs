//! Evaluation of plans against FullKV. Every sample's prompt is run once for all plans; what follows it is run per
//! plan on its compressed cache. Samples come from a seed or from files, and nothing here depends on time: the same
//! samples, model and plans give the same numbers.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

mod fidelity;
mod fit;
mod lines;
mod longbench;
pub mod metrics;
mod named;
mod needle;
mod ppl;
mod prompts;
mod question;
mod ruler;
mod runner;
mod summary;
mod windows;

pub use fidelity::Fidelity;
pub use longbench::{LongBench, LongBenchFiles, PromptOptions};
pub use named::{NamedPlan, PlanInfo};
pub use needle::{Needle, NeedleOptions};
pub use ppl::Ppl;
pub use prompts::{FieldMap, PromptFiles, Prompts, PromptsOptions, Scorer};
pub use ruler::{Ruler, RulerOptions, RulerSource, RulerTexts};
pub use runner::{Evaluator, Prompted};
pub use summary::{Difference, Group, PlanSummary, SetSummary, Summary, TaskSummary};
pub use windows::WindowOptions;

use polykv_core::device::run_on;
use polykv_core::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;

/// Named numbers, in a fixed order.
pub type Scores = BTreeMap<String, f64>;

/// The result of one plan on one sample: a line of predictions.jsonl.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The task inside the run: `ppl`, `needle`, `hotpotqa`, `niah_single_1`, …
    pub task: String,
    /// The score that stands for the task: a key of `scores`, or `perplexity`, which is the exponential of the mean `nll`.
    pub metric: String,
    /// Index of the sample over the whole run.
    pub sample: usize,
    /// The sample's name, which does not depend on limits and shards: `file:line`, or the task and a number.
    pub id: String,
    /// Name of the plan.
    pub plan: String,
    /// The length that was asked for, in tokens; for samples from files the most that a prompt may have.
    pub length: usize,
    /// Tokens of the prompt, which the plan compresses.
    pub prompt_tokens: usize,
    /// Whether the middle of the prompt was cut out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The place of the needle in the text, from 0 (start) to 1 (end).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<f64>,
    /// The scores by name.
    pub scores: Scores,
    /// The number of generated tokens.
    #[serde(default)]
    pub new_tokens: usize,
    /// The generated text, if the task generates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// The references: any of these answers is right.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<String>,
}

/// The facts about a sample that are known before it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleInfo {
    /// The name of the sample, see [`Prediction::id`].
    pub id: String,
    /// The task inside the run, see [`Prediction::task`].
    pub task: String,
    /// Tokens of the prompt, which the plans compress.
    pub prompt_tokens: usize,
}

/// A set of samples with a way to score plans on them.
pub trait Task: Send + Sync + fmt::Debug {
    /// The name of the task or benchmark, as in `polykv eval --task`.
    fn name(&self) -> &str;

    /// All samples of the run, in order.
    fn samples(&self) -> Vec<SampleInfo>;

    /// A hash of the samples: two runs of a task with the same fingerprint ask the same questions.
    fn fingerprint(&self) -> String;

    /// Named sets of tasks. The summary has an unweighted mean for each. A set may name tasks that the run has no
    /// sample of.
    fn sets(&self) -> Vec<(String, Vec<String>)> {
        Vec::new()
    }

    /// Runs one sample under every plan: one prediction per plan, FullKV first.
    ///
    /// # Errors
    /// An error of the model or of a plan, and NaN in logits or scores.
    fn run(&self, sample: usize, evaluator: &Evaluator<'_>) -> Result<Vec<Prediction>>;
}

/// Runs the given samples in the given order and hands the predictions of each to `sink` before the next one starts.
///
/// # Errors
/// A plan that cannot be carried out at some sample's length, before anything is computed; a sample that is not there;
/// then those of [`Task::run`] and of `sink`.
pub fn evaluate(
    task: &dyn Task,
    evaluator: &Evaluator<'_>,
    samples: &[usize],
    sink: &mut (dyn FnMut(&[Prediction]) -> Result<()> + Send),
) -> Result<()> {
    let infos = task.samples();
    for &sample in samples {
        let Some(info) = infos.get(sample) else {
            let allowed = format!("below {}", infos.len());
            return Err(polykv_core::Error::invalid(
                "evaluation",
                "sample",
                sample,
                allowed,
            ));
        };
        evaluator.check(info.prompt_tokens)?;
    }
    run_on(evaluator.device(), || {
        samples
            .iter()
            .try_for_each(|&sample| sink(&task.run(sample, evaluator)?))
    })
}

/// One of a task's samples.
///
/// # Errors
/// A number that none of them has.
fn sample_of<T>(samples: &[T], sample: usize) -> Result<&T> {
    let missing = || {
        let allowed = format!("below {}", samples.len());
        Error::invalid("evaluation", "sample", sample, allowed)
    };
    samples.get(sample).ok_or_else(missing)
}

/// A hash of parts that each may have any length.
pub(crate) fn fingerprint<'a>(parts: impl Iterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Token ids as bytes, for [`fingerprint`].
pub(crate) fn id_bytes(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}
