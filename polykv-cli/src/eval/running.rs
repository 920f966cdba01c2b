//! Scores so far, for the progress bar: sums instead of a summary, which would read all predictions each time.

use polykv::models::eval::{PlanInfo, Prediction, metrics};
use std::collections::BTreeMap;
use std::fmt;

#[derive(Debug)]
pub struct Running {
    plans: Vec<PlanInfo>,
    /// Sum and number by plan and task.
    sums: BTreeMap<String, BTreeMap<String, (f64, usize)>>,
    metric: String,
}

impl Running {
    pub fn new(plans: &[PlanInfo], known: &[Prediction]) -> Self {
        let mut running = Self {
            plans: plans.to_vec(),
            sums: BTreeMap::new(),
            metric: String::new(),
        };
        running.add(known);
        running
    }

    pub fn add(&mut self, predictions: &[Prediction]) {
        for one in predictions {
            // Perplexity is made of the mean of this.
            let name = if one.metric == "perplexity" {
                "nll"
            } else {
                &one.metric
            };
            let Some(score) = one.scores.get(name) else {
                continue;
            };
            let tasks = self.sums.entry(one.plan.clone()).or_default();
            let (sum, count) = tasks.entry(one.task.clone()).or_default();
            *sum += score;
            *count += 1;
            self.metric = one.metric.clone();
        }
    }

    /// Unweighted mean of the tasks.
    fn mean(&self, plan: &str) -> Option<f64> {
        let tasks = self.sums.get(plan)?.values();
        let scores: Vec<f64> = tasks
            .map(|(sum, count)| sum / *count as f64)
            .map(|mean| {
                if self.metric == "perplexity" {
                    mean.exp()
                } else {
                    mean
                }
            })
            .collect();
        Some(metrics::mean(&scores))
    }
}

/// FullKV and the best plan.
impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |score| crate::output::eval::shown(&self.metric, score);
        let Some((full, others)) = self.plans.split_first() else {
            return Ok(());
        };
        let Some(score) = self.mean(&full.name) else {
            return Ok(());
        };
        write!(f, "{} {} {}", self.metric, full.name, shown(score))?;
        let scored = others
            .iter()
            .filter_map(|plan| Some((&plan.name, self.mean(&plan.name)?)));
        let lower = metrics::lower_is_better(&self.metric);
        let best = scored.reduce(|best, other| {
            let better = if lower {
                other.1 < best.1
            } else {
                other.1 > best.1
            };
            if better { other } else { best }
        });
        match best {
            Some((name, score)) => write!(f, ", best {name} {}", shown(score)),
            None => Ok(()),
        }
    }
}
