//! What `polykv eval` takes.

mod command;
mod plans;
mod shard;

pub use command::{EvalCommand, MergeArgs};
pub use plans::PlansArgs;
pub use shard::Shard;

use super::ModelArgs;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub samples: SampleArgs,
    #[command(flatten)]
    pub plans: PlansArgs,
    /// Print one JSON object instead of a table
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// A folder for predictions.jsonl, metrics.json, run.json and report.html
    ///
    /// Every sample is written when it is done. The same command goes on where an interrupted one was; a folder of another
    /// run is refused.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// Run every Nth sample, from the Ith of them, 0 to N-1; `polykv eval merge` puts the parts together
    #[arg(
        long,
        value_name = "I/N",
        requires = "out",
        default_value_t,
        hide_default_value = true,
        help_heading = "Output"
    )]
    pub shard: Shard,
}

/// The tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TaskName {
    /// Perplexity of a text's continuation after its prefix was compressed; needs --text
    Ppl,
    /// A number hidden in a long text
    Needle,
    /// Distance to the full cache's next-token distributions while decoding; needs --text
    Fidelity,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Samples")]
#[group(skip)]
pub struct SampleArgs {
    #[arg(long, value_enum)]
    pub task: TaskName,
    /// Perplexity and fidelity: the text that windows are cut from, or - for standard input
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Tokens that are compressed
    #[arg(
        long,
        value_name = "N,…",
        value_delimiter = ',',
        default_value = "1024"
    )]
    pub length: Vec<usize>,
    /// Perplexity and fidelity: tokens after a window's prefix [default: 128]
    #[arg(long, value_name = "N")]
    continuation: Option<usize>,
    /// Needles: where the number is, from 0 (start) to 1 (end) [default: 0,0.25,0.5,0.75,1]
    #[arg(
        long,
        value_name = "D,…",
        value_delimiter = ',',
        allow_negative_numbers = true
    )]
    depth: Vec<f64>,
    /// Samples per length, and depth for needles
    #[arg(long, value_name = "N", default_value = "4")]
    pub limit: usize,
    /// Needles: give the start of the answer to the model; it is compressed with the question
    #[arg(long, overrides_with = "no_answer_prefix")]
    pub answer_prefix: bool,
    /// Needles: let the model write the whole answer (the default)
    #[arg(long)]
    pub no_answer_prefix: bool,
    /// Needles: run the question over the compressed text instead of compressing it too
    #[arg(long)]
    pub question_after: bool,
    /// Needles: feed the text without the model's chat template
    #[arg(long)]
    pub raw: bool,
    /// Perplexity and needles: measure likelihoods token by token, with eviction while decoding
    #[arg(long)]
    pub decode: bool,
    /// Fidelity: follow the full cache's own greedy choices instead of the text
    #[arg(long)]
    pub generated: bool,
    /// Seed of the samples
    #[arg(long, value_name = "N", default_value = "0")]
    pub seed: u64,
}

impl SampleArgs {
    pub fn continuation(&self) -> usize {
        self.continuation.unwrap_or(128)
    }

    pub fn depth(&self) -> &[f64] {
        match self.depth.as_slice() {
            [] => &[0.0, 0.25, 0.5, 0.75, 1.0],
            given => given,
        }
    }

    /// A flag that is given although the task does not read it, with the tasks that do.
    pub fn unread(&self) -> Option<(&'static str, &'static [TaskName])> {
        use TaskName::{Fidelity, Needle, Ppl};
        let flags: [(&str, bool, &[TaskName]); 8] = [
            ("--text", self.text.is_some(), &[Ppl, Fidelity]),
            (
                "--continuation",
                self.continuation.is_some(),
                &[Ppl, Fidelity],
            ),
            ("--depth", !self.depth.is_empty(), &[Needle]),
            (
                "--answer-prefix",
                self.answer_prefix || self.no_answer_prefix,
                &[Needle],
            ),
            ("--question-after", self.question_after, &[Needle]),
            ("--raw", self.raw, &[Needle]),
            ("--decode", self.decode, &[Ppl, Needle]),
            ("--generated", self.generated, &[Fidelity]),
        ];
        let mut unread = flags
            .into_iter()
            .filter(|(_, given, tasks)| *given && !tasks.contains(&self.task));
        unread.next().map(|(flag, _, tasks)| (flag, tasks))
    }
}
