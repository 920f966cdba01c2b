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
    let mut scores = Scores::from([("nll".into(), 3.5)]);
    add_delta_nll(&mut scores, &full.scores);
    assert!((scores["delta_nll"] - 0.5).abs() < 1e-12);
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

/// Four samples of FullKV, and of the other plans the same less a constant each.
fn shifted(plans: &[PlanInfo], less: &[f64], metric: &str) -> Vec<Prediction> {
    let full = [1.0, 0.5, 0.75, 0.25];
    let plans = plans.iter().zip(less);
    plans
        .flat_map(|(plan, less)| {
            full.iter().enumerate().map(move |(sample, full)| {
                let mut one = prediction(&plan.name, "a", sample, 8, 0.0);
                one.metric = metric.into();
                one.scores = Scores::from([(metric.into(), full - less)]);
                one
            })
        })
        .collect()
}

fn difference(to: &str, difference: f64) -> Difference {
    Difference {
        to: to.into(),
        difference,
        interval: Some([difference, difference]),
    }
}

#[test]
fn plans_are_compared_with_fullkv_and_the_best_single_policy() {
    let plans = [
        plan("full", false, 0),
        plan("tova", true, 64),
        plan("snapkv", true, 64),
        plan("mixed", false, 64),
        plan("mixed 128", false, 128),
    ];
    let less = [0.0, 0.5, 0.25, 0.125, 0.0625];
    let all = shifted(&plans, &less, "f1");
    let sets = [("all".to_string(), vec!["a".to_string()])];
    let summary = Summary::new("test", &sets, &plans, &all);
    let wanted = [
        vec![],
        vec![difference("full", -0.5), difference("snapkv", -0.25)],
        vec![difference("full", -0.25)],
        vec![difference("full", -0.125), difference("snapkv", 0.125)],
        vec![difference("full", -0.0625)],
    ];
    for (plan, wanted) in summary.plans.iter().zip(&wanted) {
        let mean = plan.differences.get("mean");
        assert_eq!(mean.unwrap_or(&Vec::new()), wanted, "{}", plan.name);
        assert_eq!(&plan.sets[0].differences, wanted, "{}", plan.name);
        assert_eq!(&plan.tasks[0].differences, wanted, "{}", plan.name);
    }
    // A single sample, and one that a plan lacks.
    let intervals = |predictions: &[Prediction]| -> Vec<_> {
        let summary = Summary::new("test", &sets, &plans, predictions);
        let mean = summary.plans[3].differences["mean"].clone();
        mean.into_iter()
            .map(|difference| difference.interval)
            .collect()
    };
    let first: Vec<_> = all.iter().filter(|one| one.sample == 0).cloned().collect();
    assert_eq!(intervals(&first), [None, None]);
    assert_eq!(intervals(&all[1..]), [None, None]);
    assert!(intervals(&all).iter().all(Option::is_some));
}

#[test]
fn likelihoods_are_compared_beside_perplexity() {
    let plans = [
        plan("full", false, 0),
        plan("tova", true, 64),
        plan("h2o", true, 64),
    ];
    let mut all = shifted(&plans, &[0.0, -0.25, -0.5], "nll");
    for one in &mut all {
        one.metric = "perplexity".into();
    }
    let summary = Summary::new("ppl", &[], &plans, &all);
    let [_, tova, h2o] = &summary.plans[..] else {
        panic!("three plans");
    };
    assert!(tova.best_single && !h2o.best_single);
    assert_eq!(tova.differences["nll"], [difference("full", 0.25)]);
    let wanted = [difference("full", 0.5), difference("tova", 0.25)];
    assert_eq!(h2o.differences["nll"], wanted);
    // Perplexity is not a mean over samples, so that its differences vary with them.
    let perplexity = &tova.differences["mean"][0];
    let wanted = 0.875f64.exp() - 0.625f64.exp();
    assert!((perplexity.difference - wanted).abs() < 1e-12);
    let [low, high] = perplexity.interval.unwrap();
    assert!(0.0 < low && low < wanted && wanted < high, "{low}, {high}");
}

#[test]
fn without_a_gap_nothing_is_closed() {
    let plans = [
        plan("full", false, 0),
        plan("tova", true, 64),
        plan("mixed", false, 64),
    ];
    // The single policy is better than FullKV, or equal to it.
    for less in [[0.0, -0.25, -0.125], [0.0, 0.0, 0.25]] {
        let all = shifted(&plans, &less, "f1");
        let summary = Summary::new("test", &[], &plans, &all);
        assert!(summary.plans.iter().all(|plan| plan.gap_closed.is_none()));
        assert!(summary.plans[1].best_single);
    }
}
