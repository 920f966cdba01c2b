//! Each plan beside FullKV and beside the best plan of one policy at its budget.

use super::paired::{Resampled, interval};
use super::{Difference, PlanInfo, PlanSummary, Prediction, metrics};

/// Scores that plans are compared by beside those that stand for their tasks.
const MORE: [&str; 2] = ["nll", "agreement"];

/// Fills in what the summaries say about each other. `by_plan` are the plans' predictions by sample; FullKV comes first.
pub(super) fn compare(
    plans: &[PlanInfo],
    sets: &[(String, Vec<String>)],
    by_plan: &[Vec<&Prediction>],
    summaries: &mut [PlanSummary],
) {
    let Some(full) = summaries.first().cloned() else {
        return;
    };
    let drawn: Vec<Option<Resampled>> = full
        .tasks
        .iter()
        .enumerate()
        .map(|(index, task)| draw(by_plan, index, &task.metric, |one| one.task == task.name))
        .collect();
    let more: Vec<(&str, Option<Resampled>)> = MORE
        .into_iter()
        .filter(|name| full.scores.contains_key(*name))
        .map(|name| (name, draw(by_plan, 0, name, |_| true)))
        .collect();
    let measure = |lower, tasks, score: &dyn Fn(&PlanSummary) -> Option<f64>| {
        let scores = summaries.iter().map(|plan| score(plan).unwrap_or(f64::NAN));
        Measure {
            plans,
            lower,
            scores: scores.collect(),
            tasks,
        }
    };
    let lower = |metric: &str| metrics::lower_is_better(metric);
    // The tasks of a run are all of one direction.
    let of_run = full.tasks.first().is_some_and(|task| lower(&task.metric));
    let all = drawn.iter().map(Option::as_ref).collect();
    let mean = measure(of_run, all, &|plan| Some(plan.mean));
    let of_sets: Vec<Measure> = full
        .sets
        .iter()
        .enumerate()
        .map(|(index, set)| {
            let is_member = |task: &str| {
                let mut named = sets.iter().filter(|(name, _)| *name == set.name);
                named.any(|(_, members)| members.iter().any(|member| member == task))
            };
            let members = full.tasks.iter().zip(&drawn);
            let members = members.filter(|(task, _)| is_member(&task.name));
            let members = members.map(|(_, drawn)| drawn.as_ref()).collect();
            measure(of_run, members, &|plan| Some(plan.sets.get(index)?.score))
        })
        .collect();
    let of_tasks: Vec<Measure> = full
        .tasks
        .iter()
        .zip(&drawn)
        .enumerate()
        .map(|(index, (task, drawn))| {
            let score = |plan: &PlanSummary| Some(plan.tasks.get(index)?.score);
            measure(lower(&task.metric), vec![drawn.as_ref()], &score)
        })
        .collect();
    let of_more: Vec<(&str, Measure)> = more
        .iter()
        .map(|(name, drawn)| {
            let score = |plan: &PlanSummary| plan.scores.get(*name).copied();
            (*name, measure(lower(name), vec![drawn.as_ref()], &score))
        })
        .collect();

    for (index, plan) in summaries.iter_mut().enumerate().skip(1) {
        plan.best_single = mean.best_single(index) == Some(index);
        plan.gap_closed = mean.gap_closed(index);
        let scores = [("mean", &mean)].into_iter();
        let scores = scores.chain(of_more.iter().map(|(name, measure)| (*name, measure)));
        plan.differences = scores
            .map(|(name, measure)| (name.to_string(), measure.differences(index)))
            .collect();
        for (set, measure) in plan.sets.iter_mut().zip(&of_sets) {
            set.gap_closed = measure.gap_closed(index);
            set.differences = measure.differences(index);
        }
        for (task, measure) in plan.tasks.iter_mut().zip(&of_tasks) {
            task.differences = measure.differences(index);
        }
    }
}

/// Draws of the samples that are `wanted`; none unless all plans have this score of each.
fn draw(
    by_plan: &[Vec<&Prediction>],
    task: usize,
    metric: &str,
    wanted: impl Fn(&Prediction) -> bool,
) -> Option<Resampled> {
    let (name, score): (&str, fn(f64) -> f64) = match metric {
        "perplexity" => ("nll", f64::exp),
        other => (other, |mean| mean),
    };
    let full = by_plan.first()?;
    if by_plan.iter().any(|of_plan| of_plan.len() != full.len()) {
        return None;
    }
    let samples = full.iter().enumerate().filter(|(_, one)| wanted(one));
    let samples = samples.map(|(at, one)| {
        let of_plan = |predictions: &Vec<&Prediction>| {
            let same = predictions
                .get(at)
                .filter(|other| other.sample == one.sample)?;
            same.scores.get(name).copied()
        };
        by_plan.iter().map(of_plan).collect::<Option<Vec<f64>>>()
    });
    Resampled::new(&samples.collect::<Option<Vec<_>>>()?, score, task)
}

/// A number that plans are compared by.
struct Measure<'a> {
    plans: &'a [PlanInfo],
    /// Whether less is better.
    lower: bool,
    /// One per plan.
    scores: Vec<f64>,
    /// The tasks that it is the mean of.
    tasks: Vec<Option<&'a Resampled>>,
}

impl Measure<'_> {
    fn score(&self, plan: usize) -> f64 {
        self.scores.get(plan).copied().unwrap_or(f64::NAN)
    }

    fn better(&self, a: usize, b: usize) -> bool {
        match self.lower {
            true => self.score(a) < self.score(b),
            false => self.score(a) > self.score(b),
        }
    }

    /// The best plan of one policy at a plan's budget, of equal ones the first.
    fn best_single(&self, plan: usize) -> Option<usize> {
        let budget = &self.plans.get(plan)?.budget;
        let plans = self.plans.iter().enumerate();
        let singles = plans.filter(|(_, other)| other.single && other.budget == *budget);
        singles
            .map(|(other, _)| other)
            .reduce(|best, other| match self.better(other, best) {
                true => other,
                false => best,
            })
    }

    /// Nothing unless FullKV is better than the best single policy: otherwise there is no gap.
    fn gap_closed(&self, plan: usize) -> Option<f64> {
        let best = self
            .best_single(plan)
            .filter(|&best| self.better(0, best))?;
        let [plan, best, full] = [plan, best, 0].map(|plan| self.score(plan));
        Some((plan - best) / (full - best))
    }

    /// To FullKV, and to the best single policy where the plan is another one.
    fn differences(&self, plan: usize) -> Vec<Difference> {
        let best = self.best_single(plan).filter(|&best| best != plan);
        let others = [Some(0), best].into_iter().flatten();
        others
            .filter_map(|other| {
                Some(Difference {
                    to: self.plans.get(other)?.name.clone(),
                    difference: self.score(plan) - self.score(other),
                    interval: interval(&self.tasks, plan, other),
                })
            })
            .collect()
    }
}
