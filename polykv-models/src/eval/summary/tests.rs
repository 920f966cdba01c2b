use super::*;
use polykv_core::Budget;

fn prediction(plan: &str, task: &str, sample: usize, length: usize, score: f64) -> Prediction {
    Prediction {
        task: task.into(),
        metric: "f1".into(),
        sample,
        id: format!("{task}#{sample}"),
        plan: plan.into(),
        length,
        prompt_tokens: length,
        truncated: sample == 1,
        depth: None,
        scores: Scores::from([("f1".into(), score)]),
        new_tokens: 0,
        output: None,
        answers: Vec::new(),
    }
}

fn plan(name: &str, single: bool, tokens: usize) -> PlanInfo {
    PlanInfo {
        name: name.into(),
        hash: String::new(),
        single,
        budget: (name != "full").then_some(Budget::Tokens(tokens)),
    }
}

#[test]
fn means_groups_and_perplexity_by_hand() {
    let mut all = [(8, 1.0), (8, 2.0), (16, 6.0)].map(|(length, nll)| {
        let mut one = prediction("full", "ppl", 0, length, 0.0);
        one.metric = "perplexity".into();
        one.scores = Scores::from([("nll".into(), nll)]);
        one
    });
    for (sample, one) in all.iter_mut().enumerate() {
        one.sample = sample;
    }
    let summary = Summary::new("ppl", &[], &[plan("full", false, 0)], &all);
    let full = &summary.plans[0];
    assert!((full.scores["nll"] - 3.0).abs() < 1e-12);
    assert!((full.mean - 3f64.exp()).abs() < 1e-9);
    assert_eq!(full.scores["delta_nll"], 0.0);
    let found: Vec<_> = full
        .groups
        .iter()
        .map(|group| (group.length, group.n, group.scores["nll"]))
        .collect();
    assert_eq!(found, [(8, 2, 1.5), (16, 1, 6.0)]);
    let mut own = Scores::from([("nll".into(), 3.5)]);
    add_difference(&mut own, &full.scores);
    assert!((own["delta_nll"] - 0.5).abs() < 1e-12);
}

#[test]
fn tasks_count_the_same_however_many_samples_they_have() {
    // a: 10 and 30, b: 50; the sample mean would be 30.
    let scores = [("a", 0, 10.0), ("a", 1, 30.0), ("b", 2, 50.0)];
    let all: Vec<Prediction> = scores
        .iter()
        .map(|&(task, sample, score)| prediction("full", task, sample, 8, score))
        .collect();
    let sets = [
        ("both".to_string(), vec!["a".to_string(), "b".into()]),
        ("more".into(), vec!["b".into(), "c".into()]),
        ("absent".into(), vec!["c".into()]),
    ];
    let summary = Summary::new("many", &sets, &[plan("full", false, 0)], &all);
    let full = &summary.plans[0];
    assert_eq!((full.mean, full.n, full.truncated), (35.0, 3, 1));
    let tasks: Vec<_> = full
        .tasks
        .iter()
        .map(|task| (task.name.as_str(), task.score, task.n, task.truncated))
        .collect();
    assert_eq!(tasks, [("a", 20.0, 2, 1), ("b", 50.0, 1, 0)]);
    let found: Vec<_> = full
        .sets
        .iter()
        .map(|set| (set.name.as_str(), set.score, set.tasks, set.of))
        .collect();
    assert_eq!(found, [("both", 35.0, 2, 2), ("more", 50.0, 1, 2)]);
    // The order of the lines does not matter.
    let reversed: Vec<Prediction> = all.into_iter().rev().collect();
    let again = Summary::new("many", &sets, &[plan("full", false, 0)], &reversed);
    assert_eq!(again, summary);
}

#[test]
fn gaps_are_closed_against_the_best_single_policy_of_the_same_budget() {
    let plans = [
        plan("full", false, 0),
        plan("tova", true, 64),
        plan("snapkv", true, 64),
        plan("mixed", false, 64),
        plan("snapkv 128", true, 128),
        plan("mixed 256", false, 256),
    ];
    let scores = [40.0, 20.0, 30.0, 35.0, 38.0, 39.0];
    let all: Vec<Prediction> = plans
        .iter()
        .zip(scores)
        .map(|(plan, score)| prediction(&plan.name, "a", 0, 8, score))
        .collect();
    let sets = [("all".to_string(), vec!["a".to_string()])];
    let summary = Summary::new("gaps", &sets, &plans, &all);
    let gaps: Vec<_> = summary.plans.iter().map(|plan| plan.gap_closed).collect();
    assert_eq!(
        gaps,
        [None, Some(-1.0), Some(0.0), Some(0.5), Some(0.0), None]
    );
    let best: Vec<_> = summary.plans.iter().map(|plan| plan.best_single).collect();
    assert_eq!(best, [false, false, true, false, true, false]);
    assert_eq!(summary.plans[3].sets[0].gap_closed, Some(0.5));
    // Where less is better the same formula holds with the other best.
    let lower: Vec<Prediction> = all
        .into_iter()
        .map(|mut one| {
            one.metric = "kl".into();
            one.scores = Scores::from([("kl".into(), one.scores["f1"])]);
            one
        })
        .collect();
    let summary = Summary::new("gaps", &sets, &plans, &lower);
    assert!(summary.plans[1].best_single && !summary.plans[2].best_single);
}
