//! Scores summed up per plan, from predictions alone.

mod compare;
mod paired;

use super::{Evaluator, PlanInfo, Prediction, Scores, Task, metrics};
use serde::Serialize;
use std::collections::BTreeMap;

/// What a run found, FullKV first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub task: String,
    pub plans: Vec<PlanSummary>,
}

/// One plan's results. Beside the predictions' scores, `scores` have `delta_nll`, the difference to FullKV, and
/// `perplexity`, the exponential of the mean, where the task is about that.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanSummary {
    pub name: String,
    pub hash: String,
    /// Whether one policy rules all layers; see [`PlanInfo::single`].
    pub single: bool,
    /// Samples.
    pub n: usize,
    /// Samples whose prompt lost its middle.
    pub truncated: usize,
    /// Unweighted mean of the tasks' scores.
    pub mean: f64,
    /// `(plan − best single) / (FullKV − best single)` of `mean`, where the best single is the best plan of one policy at
    /// the same budget in this run. None where that is no worse than FullKV.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap_closed: Option<f64>,
    /// By what is compared: `mean`, and of `scores` those that tell quality beside it (`nll`, `agreement`).
    pub differences: BTreeMap<String, Vec<Difference>>,
    /// Whether this is the best single policy at its budget.
    pub best_single: bool,
    /// Means over all samples.
    pub scores: Scores,
    /// In the order of their first sample.
    pub tasks: Vec<TaskSummary>,
    pub sets: Vec<SetSummary>,
    /// All samples by length and depth.
    pub groups: Vec<Group>,
}

/// One plan's results on one task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskSummary {
    pub name: String,
    pub metric: String,
    pub score: f64,
    pub n: usize,
    pub truncated: usize,
    pub differences: Vec<Difference>,
    pub scores: Scores,
    /// The task's samples by length and depth.
    pub groups: Vec<Group>,
}

/// The unweighted mean over those tasks of a set that the run has.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SetSummary {
    pub name: String,
    pub score: f64,
    /// How many tasks the mean is over, and how many the set has.
    pub tasks: usize,
    pub of: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap_closed: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
}

/// A plan's score less another's. First to FullKV, then to the best plan of one policy at the same budget, unless it is
/// the plan itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Name of the other plan.
    pub to: String,
    pub difference: f64,
    /// The 95 % interval of a paired bootstrap: 1,999 draws, with a fixed seed, of each task's samples from those. None
    /// where a task has a single sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
}

/// The samples of one length and depth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    pub length: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<f64>,
    pub n: usize,
    pub scores: Scores,
}

impl Summary {
    pub fn of(task: &dyn Task, evaluator: &Evaluator<'_>, predictions: &[Prediction]) -> Self {
        Self::new(task.name(), &task.sets(), &evaluator.infos(), predictions)
    }

    /// The order of the predictions does not matter. Predictions of other plans are left out.
    pub fn new(
        task: &str,
        sets: &[(String, Vec<String>)],
        plans: &[PlanInfo],
        predictions: &[Prediction],
    ) -> Self {
        let of_plan = |plan: &PlanInfo| {
            let own = predictions.iter().filter(|one| one.plan == plan.name);
            let mut own: Vec<&Prediction> = own.collect();
            own.sort_by_key(|one| one.sample);
            own
        };
        let own: Vec<Vec<&Prediction>> = plans.iter().map(of_plan).collect();
        let summaries = plans.iter().zip(&own);
        let mut summaries: Vec<PlanSummary> = summaries
            .map(|(plan, own)| PlanSummary::of(plan, sets, own))
            .collect();
        if let Some(full) = summaries.first().cloned() {
            for plan in &mut summaries {
                plan.add_delta(&full);
            }
        }
        compare::compare(plans, sets, &own, &mut summaries);
        Self {
            task: task.into(),
            plans: summaries,
        }
    }
}

impl PlanSummary {
    fn of(plan: &PlanInfo, sets: &[(String, Vec<String>)], own: &[&Prediction]) -> Self {
        let tasks: Vec<TaskSummary> = by(own, |one| one.task.clone())
            .into_iter()
            .map(|(name, own)| TaskSummary::of(name, &own))
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
            n: own.len(),
            truncated: own.iter().filter(|one| one.truncated).count(),
            mean: metrics::mean(&scores),
            gap_closed: None,
            differences: BTreeMap::new(),
            best_single: false,
            scores: means(own),
            sets: sets.collect(),
            groups: groups(own),
            tasks,
        }
    }

    fn add_delta(&mut self, full: &Self) {
        add_delta_nll(&mut self.scores, &full.scores);
        add_group_delta(&mut self.groups, &full.groups);
        for (own, full) in self.tasks.iter_mut().zip(&full.tasks) {
            add_delta_nll(&mut own.scores, &full.scores);
            add_group_delta(&mut own.groups, &full.groups);
        }
    }
}

impl TaskSummary {
    fn of(name: String, own: &[&Prediction]) -> Self {
        let metric = own.first().map_or("", |one| &one.metric).to_string();
        let scores = means(own);
        Self {
            name,
            score: scores.get(&metric).copied().unwrap_or(f64::NAN),
            metric,
            n: own.len(),
            truncated: own.iter().filter(|one| one.truncated).count(),
            differences: Vec::new(),
            groups: groups(own),
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
        let own = key(one);
        match found.iter_mut().find(|(key, _)| *key == own) {
            Some((_, members)) => members.push(one),
            None => found.push((own, vec![one])),
        }
    }
    found
}

fn groups(predictions: &[&Prediction]) -> Vec<Group> {
    let groups = by(predictions, |one| (one.length, one.depth)).into_iter();
    groups
        .map(|((length, depth), own)| Group {
            length,
            depth,
            n: own.len(),
            scores: means(&own),
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
            *count += 1;
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

fn add_group_delta(own: &mut [Group], full: &[Group]) {
    for (own, full) in own.iter_mut().zip(full) {
        add_delta_nll(&mut own.scores, &full.scores);
    }
}

fn add_delta_nll(scores: &mut Scores, full: &Scores) {
    if let (Some(own), Some(full)) = (scores.get("nll"), full.get("nll")) {
        let difference = own - full;
        scores.insert("delta_nll".into(), difference);
    }
}

#[cfg(test)]
mod tests;
