//! Scores summed up per plan.

use super::{Evaluator, Prediction, Scores, Task};
use serde::Serialize;

/// What a task found, FullKV first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub task: &'static str,
    pub metric: &'static str,
    pub plans: Vec<PlanSummary>,
}

/// One plan's means over the samples. Beside the predictions' scores: `delta_nll`, the difference to FullKV, and
/// `perplexity`, the exponential of the mean, where the task is about that.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanSummary {
    pub name: String,
    pub hash: String,
    /// Samples.
    pub n: usize,
    pub scores: Scores,
    pub groups: Vec<Group>,
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
        let perplexity = task.metric() == "perplexity";
        let mut plans: Vec<PlanSummary> = evaluator
            .candidates()
            .iter()
            .map(|candidate| {
                let own: Vec<&Prediction> = predictions
                    .iter()
                    .filter(|one| one.plan == candidate.name)
                    .collect();
                PlanSummary {
                    name: candidate.name.clone(),
                    hash: candidate.plan.hash(),
                    n: own.len(),
                    scores: means(&own, perplexity),
                    groups: groups(&own, perplexity),
                }
            })
            .collect();
        if let Some(full) = plans.first().cloned() {
            for plan in &mut plans {
                add_difference(&mut plan.scores, &full.scores);
                for (group, full) in plan.groups.iter_mut().zip(&full.groups) {
                    add_difference(&mut group.scores, &full.scores);
                }
            }
        }
        Self {
            task: task.name(),
            metric: task.metric(),
            plans,
        }
    }
}

/// In the order of their first sample, which is the same for all plans.
fn groups(predictions: &[&Prediction], perplexity: bool) -> Vec<Group> {
    let mut keys: Vec<(usize, Option<f64>)> = Vec::new();
    for one in predictions {
        if !keys.contains(&(one.length, one.depth)) {
            keys.push((one.length, one.depth));
        }
    }
    keys.into_iter()
        .map(|(length, depth)| {
            let own: Vec<&Prediction> = predictions
                .iter()
                .copied()
                .filter(|one| (one.length, one.depth) == (length, depth))
                .collect();
            Group {
                length,
                depth,
                n: own.len(),
                scores: means(&own, perplexity),
            }
        })
        .collect()
}

/// Every sample counts the same; the samples of a task have the same number of scored tokens.
fn means(predictions: &[&Prediction], perplexity: bool) -> Scores {
    let mut means = Scores::new();
    for one in predictions {
        for (name, score) in &one.scores {
            *means.entry(name).or_default() += score / predictions.len() as f64;
        }
    }
    if perplexity && let Some(nll) = means.get("nll").copied() {
        means.insert("perplexity", nll.exp());
    }
    means
}

fn add_difference(scores: &mut Scores, full: &Scores) {
    if let (Some(own), Some(full)) = (scores.get("nll"), full.get("nll")) {
        let difference = own - full;
        scores.insert("delta_nll", difference);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prediction(sample: usize, length: usize, nll: f64) -> Prediction {
        Prediction {
            task: "ppl",
            sample,
            plan: "full".into(),
            length,
            prompt_tokens: length,
            depth: None,
            scores: Scores::from([("nll", nll)]),
            output: None,
            answer: None,
        }
    }

    #[test]
    fn means_and_groups_by_hand() {
        let all = [
            prediction(0, 8, 1.0),
            prediction(1, 8, 2.0),
            prediction(2, 16, 6.0),
        ];
        let all: Vec<&Prediction> = all.iter().collect();
        let scores = means(&all, true);
        assert!((scores["nll"] - 3.0).abs() < 1e-12);
        assert!((scores["perplexity"] - 3f64.exp()).abs() < 1e-9);
        let groups = groups(&all, false);
        let found: Vec<_> = groups
            .iter()
            .map(|group| (group.length, group.n, group.scores["nll"]))
            .collect();
        assert_eq!(found, [(8, 2, 1.5), (16, 1, 6.0)]);
        assert!(!groups[0].scores.contains_key("perplexity"));
        let mut own = Scores::from([("nll", 3.5)]);
        add_difference(&mut own, &scores);
        assert!((own["delta_nll"] - 0.5).abs() < 1e-12);
    }
}
