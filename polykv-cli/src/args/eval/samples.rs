//! Which samples an evaluation asks, and how.

use clap::{Args, ValueEnum};
use polykv::models::chat::Argument;
use polykv::models::eval::{FieldMap, Scorer};
use std::path::PathBuf;

/// The tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TaskName {
    /// Perplexity of a text's continuation after its prefix was compressed; needs --text
    Ppl,
    /// A number hidden in a long text
    Needle,
    /// Distance to the full cache's next-token distributions while decoding; needs --text
    Fidelity,
    /// LongBench from its own folder: the tasks' files and config/; needs --data
    Longbench,
    /// RULER's 13 tasks, in words of our own (RULER-style) or from a copy of RULER (--template, --haystack)
    Ruler,
    /// Prompts and answers from files of one JSON object per line; needs --data, --map and --metric
    Prompts,
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
    /// LongBench: its folder; prompts: a file *.jsonl or a folder of such files
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Prompts: which fields hold what: prompt=F,answers=G and if wanted question= (after a blank line), prefix= (the start of
    /// the answer), task=, classes=
    #[arg(long, value_name = "NAME=F,…")]
    pub map: Option<FieldMap>,
    /// Prompts: f1, rouge-l, exact, substring, substring-all, edit, count, retrieval, classification, f1-zh, rouge-l-zh or
    /// retrieval-zh, or longbench for LongBench's rule of each task
    #[arg(long, value_name = "NAME")]
    pub metric: Option<Scorer>,
    /// LongBench, RULER and prompts: only these of the tasks
    #[arg(long, value_name = "TASK,…", value_delimiter = ',')]
    pub only: Vec<String>,
    /// RULER: a copy of its repository, whose templates are read
    #[arg(long, value_name = "DIR", requires = "haystack")]
    pub template: Option<PathBuf>,
    /// RULER: the text that needles are hidden in, plain or RULER's PaulGrahamEssays.json
    #[arg(long, value_name = "FILE", requires = "template")]
    pub haystack: Option<PathBuf>,
    /// Tokens that are compressed; for RULER those of the answer too [default: 1024]
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    length: Vec<usize>,
    /// LongBench and prompts: tokens of a prompt's text; of longer ones the first and the last half is kept [default: what
    /// the model's context leaves]
    #[arg(long, value_name = "N")]
    pub max_length: Option<usize>,
    /// LongBench and prompts: tokens of an answer, at most [default: LongBench's own for its tasks, else 128]
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<usize>,
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
    /// Samples per length, and depth for needles, and task for RULER [default: 4]; of LongBench and prompts the first of each
    /// task [default: all]
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Needles and RULER: give the start of the answer to the model (RULER's default); it is compressed with the question
    #[arg(long, overrides_with = "no_answer_prefix")]
    answer_prefix: bool,
    /// Needles and RULER: let the model write the whole answer (the default for needles)
    #[arg(long)]
    no_answer_prefix: bool,
    /// All but perplexity and fidelity: run the question over the compressed text instead of compressing it too
    #[arg(long)]
    pub question_after: bool,
    /// All but perplexity and fidelity: feed the text without the model's chat template
    #[arg(long)]
    pub raw: bool,
    /// All but perplexity and fidelity: a variable for the model's chat template, such as enable_thinking=false: JSON or a
    /// text; may be repeated
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "raw")]
    pub template_arg: Vec<Argument>,
    /// Needles: measure the likelihood of the answer only, without generating one
    #[arg(long)]
    pub likelihood_only: bool,
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
    pub fn length(&self) -> &[usize] {
        match self.length.as_slice() {
            [] => &[1024],
            given => given,
        }
    }

    pub fn continuation(&self) -> usize {
        self.continuation.unwrap_or(128)
    }

    pub fn depth(&self) -> &[f64] {
        match self.depth.as_slice() {
            [] => &[0.0, 0.25, 0.5, 0.75, 1.0],
            given => given,
        }
    }

    /// Samples per length, for the tasks that make their own.
    pub fn made(&self) -> usize {
        self.limit.unwrap_or(4)
    }

    pub fn answer_prefix(&self) -> bool {
        match self.task {
            TaskName::Ruler => !self.no_answer_prefix,
            _ => self.answer_prefix,
        }
    }

    /// A flag that is given although the task does not read it, with the tasks that do.
    pub fn unread(&self) -> Option<(&'static str, &'static [TaskName])> {
        use TaskName::{Fidelity, Longbench, Needle, Ppl, Prompts, Ruler};
        const ASKED: &[TaskName] = &[Needle, Longbench, Ruler, Prompts];
        let flags: [(&str, bool, &[TaskName]); 18] = [
            ("--text", self.text.is_some(), &[Ppl, Fidelity]),
            (
                "--continuation",
                self.continuation.is_some(),
                &[Ppl, Fidelity],
            ),
            (
                "--length",
                !self.length.is_empty(),
                &[Ppl, Needle, Fidelity, Ruler],
            ),
            ("--depth", !self.depth.is_empty(), &[Needle]),
            (
                "--answer-prefix",
                self.answer_prefix || self.no_answer_prefix,
                &[Needle, Ruler],
            ),
            ("--question-after", self.question_after, ASKED),
            ("--raw", self.raw, ASKED),
            ("--template-arg", !self.template_arg.is_empty(), ASKED),
            ("--likelihood-only", self.likelihood_only, &[Needle]),
            ("--decode", self.decode, &[Ppl, Needle]),
            ("--generated", self.generated, &[Fidelity]),
            ("--data", self.data.is_some(), &[Longbench, Prompts]),
            (
                "--max-length",
                self.max_length.is_some(),
                &[Longbench, Prompts],
            ),
            ("--map", self.map.is_some(), &[Prompts]),
            ("--metric", self.metric.is_some(), &[Prompts]),
            (
                "--max-new-tokens",
                self.max_new_tokens.is_some(),
                &[Longbench, Prompts],
            ),
            (
                "--only",
                !self.only.is_empty(),
                &[Longbench, Ruler, Prompts],
            ),
            ("--template", self.template.is_some(), &[Ruler]),
        ];
        let mut unread = flags
            .into_iter()
            .filter(|(_, given, tasks)| *given && !tasks.contains(&self.task));
        unread.next().map(|(flag, _, tasks)| (flag, tasks))
    }
}
