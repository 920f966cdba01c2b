//! metrics.json. Scripts depend on it: fields may be added, never renamed or dropped.

use crate::eval::record::Record;
use crate::output::describe_budget;
use polykv::models::eval::{Difference, Group, PlanSummary, Scores, SetSummary, Summary};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// The whole object. It holds nothing that depends on time: an interrupted run ends with the same one.
#[derive(Serialize)]
pub struct Metrics<'a> {
    /// FullKV's, the reference.
    #[serde(flatten)]
    full: Option<Scored<'a>>,
    plans: Vec<Row<'a>>,
    seed: u64,
    settings: &'a Value,
    model: &'a str,
    device: &'a str,
    dtype: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    shard: Option<String>,
    versions: BTreeMap<&'static str, &'a str>,
}

#[derive(Serialize)]
struct Scored<'a> {
    tasks: BTreeMap<&'a str, TaskScore<'a>>,
    groups: &'a [Group],
    /// Means over tasks that belong together.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    sets: &'a [SetSummary],
    /// Of the tasks' scores.
    mean: f64,
    /// Samples whose prompt lost its middle.
    truncated: usize,
}

#[derive(Serialize)]
struct TaskScore<'a> {
    metric: &'a str,
    score: f64,
    n: usize,
    truncated: usize,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    differences: &'a [Difference],
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    hash: &'a str,
    budget: String,
    single: bool,
    best_single: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    gap_closed: Option<f64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    differences: &'a BTreeMap<String, Vec<Difference>>,
    scores: &'a Scores,
    #[serde(flatten)]
    scored: Scored<'a>,
}

impl<'a> Metrics<'a> {
    pub fn new(record: &'a Record, summary: &'a Summary) -> Self {
        let identity = &record.identity;
        let plans = summary.plans.iter().zip(&identity.plans);
        Self {
            full: summary.plans.first().map(scored),
            plans: plans
                .map(|(plan, record)| Row {
                    name: &plan.name,
                    hash: &plan.hash,
                    budget: describe_budget(&record.plan),
                    single: plan.single,
                    best_single: plan.best_single,
                    gap_closed: plan.gap_closed,
                    differences: &plan.differences,
                    scores: &plan.scores,
                    scored: scored(plan),
                })
                .collect(),
            seed: identity.seed,
            settings: &identity.settings,
            model: &record.model,
            device: &record.device,
            dtype: &identity.dtype,
            shard: (!record.shard.is_whole()).then(|| record.shard.to_string()),
            versions: BTreeMap::from([("polykv", identity.polykv.as_str())]),
        }
    }
}

fn scored(plan: &PlanSummary) -> Scored<'_> {
    let tasks = plan.tasks.iter().map(|task| {
        let score = TaskScore {
            metric: &task.metric,
            score: task.score,
            n: task.n,
            truncated: task.truncated,
            differences: &task.differences,
        };
        (task.name.as_str(), score)
    });
    Scored {
        tasks: tasks.collect(),
        groups: &plan.groups,
        sets: &plan.sets,
        mean: plan.mean,
        truncated: plan.truncated,
    }
}
