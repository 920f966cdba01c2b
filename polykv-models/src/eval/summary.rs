//! Scores summed up per plan, from predictions alone.

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
    /// the same budget in this run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap_closed: Option<f64>,
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
        Self::new(task.name(), &task.sets(), &evaluator.plans(), predictions)
    }

    /// The order of the predictions does not matter. Predictions of other plans are left out.
    pub fn new(
        task: &str,
        sets: &[(String, Vec<String>)],
        plans: &[PlanInfo],
        predictions: &[Prediction],
    ) -> Self {
        let mut summaries: Vec<PlanSummary> = plans
            .iter()
            .map(|plan| {
                let own = predictions.iter().filter(|one| one.plan == plan.name);
                let mut own: Vec<&Prediction> = own.collect();
                own.sort_by_key(|one| one.sample);
                PlanSummary::of(plan, sets, &own)
            })
            .collect();
        if let Some(full) = summaries.first().cloned() {
            for plan in &mut summaries {
                plan.add_differences(&full);
            }
        }
        compare_with_singles(plans, &mut summaries);
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
            best_single: false,
            scores: means(own),
            sets: sets.collect(),
            groups: groups(own),
            tasks,
        }
    }

    fn add_differences(&mut self, full: &Self) {
        add_difference(&mut self.scores, &full.scores);
        add_group_differences(&mut self.groups, &full.groups);
        for (own, full) in self.tasks.iter_mut().zip(&full.tasks) {
            add_difference(&mut own.scores, &full.scores);
            add_group_differences(&mut own.groups, &full.groups);
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
            groups: groups(own),
            scores,
        }
    }
}

/// Marks the best single policy of each budget and fills in the gaps closed. FullKV comes first.
fn compare_with_singles(plans: &[PlanInfo], summaries: &mut [PlanSummary]) {
    let lower = summaries
        .first()
        .and_then(|full| full.tasks.first())
        .is_some_and(|task| metrics::lower_is_better(&task.metric));
    let better = |a: f64, b: f64| if lower { a < b } else { a > b };
    // Of equal ones the first.
    let best = |summaries: &[PlanSummary], own: usize, score: &dyn Fn(&PlanSummary) -> f64| {
        let rivals = (0..plans.len())
            .filter(|&other| plans[other].single && plans[other].budget == plans[own].budget);
        rivals.fold(None, |best: Option<usize>, other| match best {
            Some(best) if !better(score(&summaries[other]), score(&summaries[best])) => Some(best),
            _ => Some(other),
        })
    };
    let gap = |own: f64, best: f64, full: f64| {
        let closed = (own - best) / (full - best);
        closed.is_finite().then_some(closed)
    };
    for own in 1..summaries.len() {
        let Some(rival) = best(summaries, own, &|plan| plan.mean) else {
            continue;
        };
        let (rival_mean, full) = (summaries[rival].mean, summaries[0].mean);
        let closed = gap(summaries[own].mean, rival_mean, full);
        summaries[own].gap_closed = closed;
        summaries[own].best_single = rival == own;
        for set in 0..summaries[own].sets.len() {
            let score = |plan: &PlanSummary| plan.sets.get(set).map_or(f64::NAN, |set| set.score);
            let closed = best(summaries, own, &score).and_then(|rival| {
                let (own, full) = (score(&summaries[own]), score(&summaries[0]));
                gap(own, score(&summaries[rival]), full)
            });
            summaries[own].sets[set].gap_closed = closed;
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

fn add_group_differences(own: &mut [Group], full: &[Group]) {
    for (own, full) in own.iter_mut().zip(full) {
        add_difference(&mut own.scores, &full.scores);
    }
}

fn add_difference(scores: &mut Scores, full: &Scores) {
    if let (Some(own), Some(full)) = (scores.get("nll"), full.get("nll")) {
        let difference = own - full;
        scores.insert("delta_nll".into(), difference);
    }
}

#[cfg(test)]
mod tests;
