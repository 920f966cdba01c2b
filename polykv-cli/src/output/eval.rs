//! What `eval` prints and writes.

use super::{describe_budget, table as new_table, write_whole};
use crate::args::{EvalArgs, SampleArgs, TaskName};
use polykv::models::eval::{Evaluator, Group, PlanSummary, Prediction, Scores, Summary};
use polykv::{DeviceSpec, Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// metrics.json. Scripts depend on it: fields may be added, never renamed or dropped.
#[derive(Serialize)]
pub struct Metrics<'a> {
    /// FullKV's, the reference.
    #[serde(flatten)]
    full: Option<Scored<'a>>,
    plans: Vec<Row<'a>>,
    seed: u64,
    settings: Settings<'a>,
    model: &'a str,
    device: String,
    dtype: &'static str,
    versions: BTreeMap<&'static str, &'static str>,
}

#[derive(Serialize)]
struct Scored<'a> {
    tasks: BTreeMap<&'a str, TaskScore<'a>>,
    groups: &'a [Group],
    /// Of the tasks' scores.
    mean: f64,
}

#[derive(Serialize)]
struct TaskScore<'a> {
    metric: &'a str,
    score: f64,
    n: usize,
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    hash: &'a str,
    budget: String,
    scores: &'a Scores,
    #[serde(flatten)]
    scored: Scored<'a>,
}

/// The protocol; a field that the task does not read is left out.
#[derive(Serialize)]
struct Settings<'a> {
    length: &'a [usize],
    limit: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    continuation: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    depth: Option<&'a [f64]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer_prefix: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    question_after: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decode: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generated: Option<bool>,
}

impl<'a> Metrics<'a> {
    pub fn new(
        args: &'a EvalArgs,
        evaluator: &'a Evaluator<'_>,
        summary: &'a Summary,
        device: DeviceSpec,
    ) -> Self {
        let plans = summary.plans.iter().zip(evaluator.candidates());
        Self {
            full: summary.plans.first().map(scored),
            plans: plans
                .map(|(plan, candidate)| Row {
                    name: &plan.name,
                    hash: &plan.hash,
                    budget: describe_budget(&candidate.plan),
                    scores: &plan.scores,
                    scored: scored(plan),
                })
                .collect(),
            seed: args.samples.seed,
            settings: settings(&args.samples),
            model: &args.model.model,
            device: device.to_string(),
            dtype: args.model.dtype.name(),
            versions: BTreeMap::from([("polykv", env!("CARGO_PKG_VERSION"))]),
        }
    }
}

fn scored(plan: &PlanSummary) -> Scored<'_> {
    let tasks = plan.tasks.iter().map(|task| {
        let score = TaskScore {
            metric: &task.metric,
            score: task.score,
            n: task.n,
        };
        (task.name.as_str(), score)
    });
    Scored {
        tasks: tasks.collect(),
        groups: &plan.groups,
        mean: plan.mean,
    }
}

fn settings(args: &SampleArgs) -> Settings<'_> {
    let (needle, fidelity) = (
        args.task == TaskName::Needle,
        args.task == TaskName::Fidelity,
    );
    Settings {
        length: &args.length,
        limit: args.limit,
        continuation: (!needle).then_some(args.continuation()),
        depth: needle.then_some(args.depth()),
        answer_prefix: needle.then_some(args.answer_prefix),
        question_after: needle.then_some(args.question_after),
        raw: needle.then_some(args.raw),
        decode: (!fidelity).then_some(args.decode),
        generated: fidelity.then_some(args.generated),
    }
}

/// A line on the protocol and one row per plan.
pub fn table(args: &SampleArgs, summary: &Summary) -> String {
    let columns = columns(args.task);
    let mut header = vec!["plan"];
    header.extend(columns.iter().map(|(_, title, _)| title));
    header.push("samples");
    let mut table = new_table(&header);
    for plan in &summary.plans {
        let mut row = vec![plan.name.clone()];
        row.extend(columns.iter().map(|(score, _, format)| {
            let score = plan.scores.get(*score).copied();
            score.map_or(String::new(), format)
        }));
        row.push(plan.n.to_string());
        table.add_row(row);
    }
    format!("{}\n{table}", protocol(args))
}

type Column = (&'static str, &'static str, fn(f64) -> String);

fn columns(task: TaskName) -> Vec<Column> {
    let nll: Column = ("nll", "NLL", |x| format!("{x:.4}"));
    let delta: Column = ("delta_nll", "ΔNLL", |x| format!("{x:+.4}"));
    let kept: Column = ("kept", "entries per layer", |x| format!("{x:.1}"));
    let percent = |x: f64| format!("{:.1} %", 100.0 * x);
    match task {
        TaskName::Ppl => vec![
            ("perplexity", "perplexity", |x| format!("{x:.3}")),
            nll,
            delta,
            kept,
        ],
        TaskName::Needle => vec![("exact", "exact match", percent), nll, delta, kept],
        TaskName::Fidelity => vec![
            ("kl", "KL(full ‖ plan)", |x| format!("{x:.5}")),
            ("agreement", "same top token", percent),
            kept,
        ],
    }
}

/// What was compressed and what was asked, in words.
fn protocol(args: &SampleArgs) -> String {
    let list: Vec<String> = args.length.iter().map(ToString::to_string).collect();
    let lengths = list.join(", ");
    let one_by_one = match args.decode {
        true => "token by token with eviction",
        false => "in one pass",
    };
    match args.task {
        TaskName::Ppl => format!(
            "ppl: prefixes of {lengths} tokens compressed, {} tokens after them {one_by_one}, all but the first scored",
            args.continuation()
        ),
        TaskName::Fidelity => format!(
            "fidelity: prefixes of {lengths} tokens compressed, {} {} tokens decoded after them",
            args.continuation(),
            match args.generated {
                true => "generated",
                false => "given",
            }
        ),
        TaskName::Needle => format!(
            "needle: {lengths} tokens compressed, question {} them, {}; NLL of the number {one_by_one}",
            match args.question_after {
                true => "after",
                false => "among",
            },
            match (args.answer_prefix, args.question_after) {
                (false, _) => "no start of the answer given",
                (true, false) => "start of the answer among them",
                (true, true) => "start of the answer after them",
            }
        ),
    }
}

/// Writes metrics.json and predictions.jsonl into a folder; a reader never sees half a file.
///
/// # Errors
/// A folder that is not there or cannot be written.
pub fn write(folder: &Path, metrics: &str, predictions: &[Prediction]) -> Result<()> {
    let mut lines = String::new();
    for prediction in predictions {
        let line = serde_json::to_string(prediction).map_err(|e| {
            let reason = format!("a prediction as JSON: {e}");
            Error::Failed(reason)
        })?;
        lines.push_str(&line);
        lines.push('\n');
    }
    write_whole(&folder.join("predictions.jsonl"), &lines)?;
    write_whole(&folder.join("metrics.json"), &format!("{metrics}\n"))
}
