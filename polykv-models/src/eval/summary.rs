//! Scores summed up per plan, from predictions alone.

mod compare;
mod paired;

use super::{Evaluator, PlanInfo, Prediction, Scores, Task, metrics};
use serde::Serialize;
use std::collections::BTreeMap;

/// The results of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// The name of the task or benchmark.
    pub task: String,
    /// One result per plan, FullKV first.
    pub plans: Vec<PlanSummary>,
}

/// One plan's results. Beside the predictions' scores, `scores` have `delta_nll`, the difference to FullKV, and
/// `perplexity`, the exponential of the mean, where the task is about that.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PlanSummary {
    /// The name of the plan.
    pub name: String,
    /// The fingerprint of the plan.
    pub hash: String,
    /// Whether one policy rules all layers; see [`PlanInfo::single`].
    pub single: bool,
    /// The number of samples.
    pub n: usize,
    /// Samples whose prompt lost its middle.
    pub truncated: usize,
    /// Unweighted mean of the tasks' scores.
    pub mean: f64,
    /// `(plan − best single) / (FullKV − best single)` of `mean`, where the best single is the best plan of one policy at
    /// the same budget in this run. None where that is no worse than FullKV.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap_closed: Option<f64>,
    /// Differences to other plans by score: of `mean`, and of `nll` and `agreement` where the task has them.
    pub differences: BTreeMap<String, Vec<Difference>>,
    /// Whether this is the best single policy at its budget.
    pub best_single: bool,
    /// Means over all samples.
    pub scores: Scores,
    /// The results of each task, in the order of their first samples.
    pub tasks: Vec<TaskSummary>,
    /// The means over the named sets of tasks.
    pub sets: Vec<SetSummary>,
    /// All samples by length and depth.
    pub groups: Vec<Group>,
}

/// One plan's results on one task.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TaskSummary {
    /// The name of the task.
    pub name: String,
    /// The score that stands for the task, see [`Prediction::metric`].
    pub metric: String,
    /// The mean of that score; for `perplexity` the exponential of the mean `nll`.
    pub score: f64,
    /// The number of samples.
    pub n: usize,
    /// Samples whose prompt lost its middle.
    pub truncated: usize,
    /// The differences of the score to FullKV and to the best single policy.
    pub differences: Vec<Difference>,
    /// The means of all scores by name.
    pub scores: Scores,
    /// The task's samples by length and depth.
    pub groups: Vec<Group>,
}

/// The unweighted mean over those tasks of a set that the run has.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SetSummary {
    /// The name of the set.
    pub name: String,
    /// The mean.
    pub score: f64,
    /// The number of tasks that the mean is over.
    pub tasks: usize,
    /// The number of tasks that the set has.
    pub of: usize,
    /// The share of the gap that the plan closes in this set, see [`PlanSummary::gap_closed`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap_closed: Option<f64>,
    /// The differences of the mean to FullKV and to the best single policy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
}

/// A plan's score less another's. First to FullKV, then to the best plan of one policy at the same budget, unless it is
/// the plan itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// Name of the other plan.
    pub to: String,
    /// The difference of the scores.
    pub difference: f64,
    /// The 95 % interval of a paired bootstrap: 1,999 draws, with a fixed seed, of each task's samples from those. None
    /// where a task has a single sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
}

/// The samples of one length and depth.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Group {
    /// The length that was asked for, see [`Prediction::length`].
    pub length: usize,
    /// The place of the needle, see [`Prediction::depth`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<f64>,
    /// The number of samples.
    pub n: usize,
    /// The means of all scores by name.
    pub scores: Scores,
}

impl Summary {
    /// The summary of a task's predictions under the plans of an evaluator.
    #[must_use]
    pub fn of(task: &dyn Task, evaluator: &Evaluator<'_>, predictions: &[Prediction]) -> Self {
        Self::new(task.name(), &task.sets(), &evaluator.infos(), predictions)
    }

    /// The summary of predictions under `plans`, FullKV first. `sets` are the named sets of tasks, see [`Task::sets`].
    /// The order of the predictions does not matter, and predictions of other plans are left out.
    #[must_use]
    pub fn new(
        task: &str,
        sets: &[(String, Vec<String>)],
        plans: &[PlanInfo],
        predictions: &[Prediction],
    ) -> Self {
        let of_plan = |plan: &PlanInfo| {
            let of_plan = predictions.iter().filter(|one| one.plan == plan.name);
            let mut of_plan: Vec<&Prediction> = of_plan.collect();
            of_plan.sort_by_key(|one| one.sample);
            of_plan
        };
        let by_plan: Vec<Vec<&Prediction>> = plans.iter().map(of_plan).collect();
        let summaries = plans.iter().zip(&by_plan);
        let mut summaries: Vec<PlanSummary> = summaries
            .map(|(plan, of_plan)| PlanSummary::of(plan, sets, of_plan))
            .collect();
        if let Some(full) = summaries.first().cloned() {
            for plan in &mut summaries {
                plan.add_delta(&full);
            }
        }
        compare::compare(plans, sets, &by_plan, &mut summaries);
        Self {
            task: task.into(),
            plans: summaries,
        }
    }
}

impl PlanSummary {
    fn of(plan: &PlanInfo, sets: &[(String, Vec<String>)], predictions: &[&Prediction]) -> Self {
        let tasks: Vec<TaskSummary> = by(predictions, |one| one.task.clone())
            .into_iter()
            .map(|(name, of_task)| TaskSummary::of(name, &of_task))
            .collect();
        let sets = sets.iter().filter_map(|(name, members)| {
            let found = tasks.iter().filter(|task| members.contains(&task.name));
            let found: Vec<f64> = found.map(|task| task.score).collect();
            (!found.is_empty()).then(|| SetSummary {
                name: name.clone(),
                score: metrics::mean(&found),
                tasks: found.len(),
                of: members.len(),
                gap_closed: None,
                differences: Vec::new(),
            })
        });
        let scores: Vec<f64> = tasks.iter().map(|task| task.score).collect();
        Self {
            name: plan.name.clone(),
            hash: plan.hash.clone(),
            single: plan.single,
            n: predictions.len(),
            truncated: predictions.iter().filter(|one| one.truncated).count(),
            mean: metrics::mean(&scores),
            gap_closed: None,
            differences: BTreeMap::new(),
            best_single: false,
            scores: means(predictions),
            sets: sets.collect(),
            groups: groups(predictions),
            tasks,
        }
    }

    fn add_delta(&mut self, full: &Self) {
        add_delta_nll(&mut self.scores, &full.scores);
        add_group_delta(&mut self.groups, &full.groups);
        for (task, full) in self.tasks.iter_mut().zip(&full.tasks) {
            add_delta_nll(&mut task.scores, &full.scores);
            add_group_delta(&mut task.groups, &full.groups);
        }
    }
}

impl TaskSummary {
    fn of(name: String, predictions: &[&Prediction]) -> Self {
        let metric = predictions
            .first()
            .map_or("", |one| &one.metric)
            .to_string();
        let scores = means(predictions);
        Self {
            name,
            score: scores.get(&metric).copied().unwrap_or(f64::NAN),
            metric,
            n: predictions.len(),
            truncated: predictions.iter().filter(|one| one.truncated).count(),
            differences: Vec::new(),
            groups: groups(predictions),
            scores,
        }
    }
}

/// In the order of their first sample.
fn by<'a, K: PartialEq>(
    predictions: &[&'a Prediction],
    key: impl Fn(&Prediction) -> K,
) -> Vec<(K, Vec<&'a Prediction>)> {
    let mut found: Vec<(K, Vec<&Prediction>)> = Vec::new();
    for one in predictions {
        let value = key(one);
        match found.iter_mut().find(|(key, _)| *key == value) {
            Some((_, members)) => members.push(one),
            None => found.push((value, vec![one])),
        }
    }
    found
}

fn groups(predictions: &[&Prediction]) -> Vec<Group> {
    let groups = by(predictions, |one| (one.length, one.depth)).into_iter();
    groups
        .map(|((length, depth), of_group)| Group {
            length,
            depth,
            n: of_group.len(),
            scores: means(&of_group),
        })
        .collect()
}

/// Every sample that has a score counts the same; the samples of a task have the same number of scored tokens.
fn means(predictions: &[&Prediction]) -> Scores {
    let mut sums: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
    for one in predictions {
        for (name, score) in &one.scores {
            let (sum, count) = sums.entry(name).or_default();
            *sum += score;
            *count = count.saturating_add(1);
        }
    }
    let mut means: Scores = sums
        .into_iter()
        .map(|(name, (sum, count))| (name.to_string(), sum / count as f64))
        .collect();
    if predictions.iter().all(|one| one.metric == "perplexity")
        && let Some(nll) = means.get("nll").copied()
    {
        means.insert("perplexity".into(), nll.exp());
    }
    means
}

fn add_group_delta(groups: &mut [Group], full: &[Group]) {
    for (group, full) in groups.iter_mut().zip(full) {
        add_delta_nll(&mut group.scores, &full.scores);
    }
}

fn add_delta_nll(scores: &mut Scores, full: &Scores) {
    if let (Some(nll), Some(full)) = (scores.get("nll"), full.get("nll")) {
        let difference = nll - full;
        scores.insert("delta_nll".into(), difference);
    }
}

#[cfg(test)]
mod tests;
