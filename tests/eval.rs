//! The evaluation of plans, end to end on the tiny model.

#![cfg(feature = "flex")]

mod common;

use burn::tensor::Device;
use polykv::models::eval::{
    Evaluator, Fidelity, NamedPlan, Needle, NeedleOptions, Ppl, Prediction, Summary, Task,
    WindowOptions, evaluate,
};
use polykv::models::{LoadedModel, PrefillOptions, load};
use polykv::testing::max_difference;
use polykv::{Budget, KvCache, Phase, Plan, Registry};
use std::path::Path;

/// Words of our own, about 2,000 tokens in the tiny vocabulary.
fn text() -> String {
    let words = ["gate", "lamp", "under", "seven", "bridge", "quiet", "north"];
    (0..600)
        .map(|i| words[(i * i + i / 3) % 7])
        .collect::<Vec<_>>()
        .join(" ")
}

fn model() -> LoadedModel {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama31");
    load(&folder, &Device::flex()).unwrap()
}

fn candidate(name: &str, policy: &str, budget: usize) -> NamedPlan {
    let plan = common::uniform(3, policy, Budget::Tokens(budget), &Phase::BOTH);
    NamedPlan::new(name, plan, &Registry::default())
}

/// A budget above every length, and two that evict.
fn candidates() -> Vec<NamedPlan> {
    vec![
        candidate("roomy", "h2o", 500),
        candidate("tova", "tova", 40),
        candidate("random", "random", 40),
    ]
}

fn windows() -> WindowOptions {
    WindowOptions {
        lengths: vec![100, 150],
        continuation: 20,
        limit: 2,
        seed: 7,
    }
}

fn needles() -> NeedleOptions {
    NeedleOptions {
        lengths: vec![380],
        depths: vec![0.0, 1.0],
        limit: 1,
        answer_prefix: false,
        question_after: false,
        decode: false,
        raw: false,
        generate: true,
        seed: 3,
    }
}

fn run(model: &LoadedModel, task: &dyn Task) -> (Vec<Prediction>, Summary) {
    let evaluator = Evaluator::new(model, candidates()).unwrap();
    let infos = task.samples();
    let all: Vec<usize> = (0..infos.len()).collect();
    let mut predictions = Vec::new();
    evaluate(task, &evaluator, &all, &mut |own| {
        let sample = predictions.len() / 4;
        assert_eq!(own.len(), 4, "full and three plans");
        for one in own {
            let info = &infos[sample];
            assert_eq!(
                (one.sample, &one.id, &one.task),
                (sample, &info.id, &info.task)
            );
            assert_eq!(one.prompt_tokens, info.prompt_tokens);
        }
        predictions.extend_from_slice(own);
        Ok(())
    })
    .unwrap();
    assert_eq!(predictions.len(), infos.len() * 4);
    let summary = Summary::of(task, &evaluator, &predictions);
    let names: Vec<_> = summary.plans.iter().map(|plan| plan.name.clone()).collect();
    assert_eq!(names, ["full", "roomy", "tova", "random"]);
    (predictions, summary)
}

/// The predictions of all samples.
fn collect(task: &dyn Task, evaluator: &Evaluator<'_>) -> Vec<Prediction> {
    let all: Vec<usize> = (0..task.samples().len()).collect();
    let mut predictions = Vec::new();
    evaluate(task, evaluator, &all, &mut |own| {
        predictions.extend_from_slice(own);
        Ok(())
    })
    .unwrap();
    predictions
}

fn score(summary: &Summary, plan: usize, name: &str) -> f64 {
    summary.plans[plan].scores[name]
}

#[test]
fn perplexity_changes_only_with_eviction() {
    let model = model();
    for decode in [false, true] {
        let task = Ppl::new(&model, &text(), &windows(), decode).unwrap();
        let (predictions, summary) = run(&model, &task);
        assert_eq!(score(&summary, 0, "delta_nll"), 0.0);
        assert!(score(&summary, 1, "delta_nll").abs() < 1e-6);
        assert_eq!(score(&summary, 0, "kept"), 125.0);
        for plan in [2, 3] {
            assert!(score(&summary, plan, "delta_nll").abs() > 1e-5);
            assert_eq!(score(&summary, plan, "kept"), 40.0);
        }
        let full = &summary.plans[0];
        assert!((full.scores["perplexity"] - full.scores["nll"].exp()).abs() < 1e-9);
        let groups: Vec<_> = full.groups.iter().map(|g| (g.length, g.n)).collect();
        assert_eq!(groups, [(100, 2), (150, 2)]);
        assert_eq!(predictions, run(&model, &task).0, "the same numbers again");
    }
}

#[test]
fn perplexity_leaves_out_the_token_that_eviction_cannot_change() {
    let model = model();
    let text = "gate lamp under seven bridge quiet north ".repeat(4);
    let specials = polykv::models::tokenizer::Specials::AsText;
    let tokens = model.tokenizer.encode(&text, specials).unwrap();
    // One window, the whole text.
    let (prefix, rest) = tokens.split_at(tokens.len() - 20);
    let options = WindowOptions {
        lengths: vec![prefix.len()],
        ..windows()
    };
    let task = Ppl::new(&model, &text, &options, false).unwrap();
    let evaluator = Evaluator::new(&model, vec![candidate("tova", "tova", 40)]).unwrap();
    let found = collect(&task, &evaluator);
    assert_eq!(found.len(), 2);
    let mut prompted = evaluator.prefill(prefix).unwrap();
    let nexts = vec![prompted.next; 2];
    let nlls = evaluator.nlls(&nexts, &mut prompted.caches, rest, false);
    for (prediction, nlls) in found.iter().zip(nlls.unwrap()) {
        assert_eq!(nlls.len(), 20);
        let mean = nlls[1..].iter().sum::<f64>() / 19.0;
        assert!((prediction.scores["nll"] - mean).abs() < 1e-9);
    }
}

#[test]
fn full_likelihoods_equal_one_pass_over_the_whole_window() {
    let model = model();
    let evaluator = Evaluator::new(&model, vec![]).unwrap();
    let tokens: Vec<u32> = (0..120).map(|i| 3 + (i * 37 % 250) as u32).collect();
    let (prefix, rest) = tokens.split_at(90);
    let mut prompted = evaluator.prefill(prefix).unwrap();
    let nexts = [prompted.next];
    let found = evaluator.nlls(&nexts, &mut prompted.caches, rest, false);
    let found = &found.unwrap()[0];
    let mut cache =
        KvCache::new(Plan::full(3), model.model.cache_shape(1), &Device::flex()).unwrap();
    let logits = model
        .model
        .logits(
            model.ids(&tokens),
            &mut cache,
            &mut PrefillOptions::default(),
        )
        .unwrap();
    let logits: Vec<f32> = logits.try_into_vec_as().unwrap();
    for (i, (nll, token)) in found.iter().zip(rest).enumerate() {
        let row = &logits[(89 + i) * 320..][..320];
        let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        let wanted = sum.ln() - f64::from(row[*token as usize]);
        assert!((nll - wanted).abs() < 1e-4, "{nll}, not {wanted}");
    }
}

#[test]
fn plans_that_run_on_without_eviction_do_as_each_alone() {
    let model = model();
    // More caches and tokens than go into one pass.
    let plans = (1..7).map(|budget| candidate(&format!("tova-{budget}"), "tova", 10 * budget));
    let evaluator = Evaluator::new(&model, plans.collect()).unwrap();
    let prompt: Vec<u32> = (0..90).map(|i| 3 + (i * 37 % 250) as u32).collect();
    let tokens: Vec<u32> = (0..150).map(|i| 3 + (i * 91 % 250) as u32).collect();
    let mut caches = evaluator.prefill(&prompt).unwrap().caches;
    let mut alone = caches.clone();
    let mut together = vec![Vec::new(); caches.len()];
    let mut keep = |cache: usize, token: usize, logits: &[f32]| {
        assert_eq!(together[cache].len(), token * logits.len(), "in order");
        together[cache].extend_from_slice(logits);
        Ok(())
    };
    evaluator.feed(&mut caches, &tokens, &mut keep).unwrap();
    for (plan, together) in together.iter().enumerate() {
        let mut wanted = Vec::new();
        let mut keep = |_: usize, _: usize, logits: &[f32]| {
            wanted.extend_from_slice(logits);
            Ok(())
        };
        let cache = &mut alone[plan..=plan];
        evaluator.feed(cache, &tokens, &mut keep).unwrap();
        assert_eq!(together.len(), tokens.len() * 320);
        assert!(max_difference(together, &wanted) < 1e-4);
    }
    assert_ne!(together[1], together[2], "budgets differ");

    // A cache that has seen more is none of them.
    evaluator
        .feed(&mut caches[..1], &tokens[..1], &mut |_, _, _| Ok(()))
        .unwrap();
    let error = evaluator.feed(&mut caches, &tokens[..1], &mut |_, _, _| Ok(()));
    assert_eq!(
        error.unwrap_err().to_string(),
        "evaluation: length of a cache is 240 tokens; allowed: 241"
    );
}

#[test]
fn plans_that_decode_together_do_as_each_alone() {
    let model = model();
    let evaluator = Evaluator::new(&model, candidates()).unwrap();
    let prompt: Vec<u32> = (0..90).map(|i| 3 + (i * 37 % 250) as u32).collect();
    let mut prompted = evaluator.prefill(&prompt).unwrap();
    let mut alone = prompted.caches.clone();
    let nexts = vec![prompted.next; alone.len()];
    let tokens: Vec<u32> = (0..30).map(|i| 3 + (i * 91 % 250) as u32).collect();
    let mut copies = alone.clone();
    let together = evaluator.nlls(&nexts, &mut copies, &tokens, true).unwrap();
    for (plan, nlls) in together.iter().enumerate() {
        let (next, cache) = (&nexts[plan..=plan], &mut alone.clone()[plan..=plan]);
        let wanted = &evaluator.nlls(next, cache, &tokens, true).unwrap()[0];
        assert_eq!(nlls.len(), tokens.len());
        let apart = max_difference(nlls, wanted);
        assert!(apart < 1e-4, "plan {plan}: {apart}");
    }
    assert_ne!(together[0], together[2], "the plans' decode rules act");

    // One answer ends early, where its first token is a stop; the others go on.
    let answers = evaluator
        .greedy(&nexts, &mut prompted.caches, 20, &[])
        .unwrap();
    let stop = [answers[2][3]];
    let cut = evaluator.greedy(&nexts, &mut alone, 20, &stop).unwrap();
    for (whole, cut) in answers.iter().zip(&cut) {
        let wanted = whole.iter().position(|token| *token == stop[0]);
        assert_eq!(cut[..], whole[..wanted.unwrap_or(20)]);
    }
    let mut apart: Vec<KvCache> = prompted.caches.into_iter().chain(copies).collect();
    let error = evaluator.feed(&mut apart, &[3; 8], &mut |_, _, _| Ok(()));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("length of a cache"), "{error}");
}

#[test]
fn fidelity_is_perfect_without_eviction() {
    let model = model();
    for generated in [false, true] {
        let task = Fidelity::new(&model, &text(), &windows(), generated).unwrap();
        let (predictions, summary) = run(&model, &task);
        for plan in [0, 1] {
            assert!(score(&summary, plan, "kl") < 1e-6);
            assert_eq!(score(&summary, plan, "agreement"), 1.0);
        }
        for plan in [2, 3] {
            assert!(score(&summary, plan, "kl") > 1e-6);
        }
        assert_eq!(predictions, run(&model, &task).0, "the same numbers again");
    }
}

#[test]
fn needles_can_do_without_answers() {
    let model = model();
    let whole = run(&model, &Needle::new(&model, &needles()).unwrap()).0;
    let options = NeedleOptions {
        generate: false,
        ..needles()
    };
    let task = Needle::new(&model, &options).unwrap();
    for (own, whole) in run(&model, &task).0.iter().zip(&whole) {
        assert_eq!(
            (own.metric.as_str(), whole.metric.as_str()),
            ("nll", "exact")
        );
        assert_eq!(own.scores["nll"], whole.scores["nll"]);
        assert!(own.output.is_none() && !own.scores.contains_key("exact"));
    }
}

#[test]
fn needles_follow_the_protocol() {
    let model = model();
    let mut lengths = Vec::new();
    for (answer_prefix, question_after, raw) in [
        (false, false, false),
        (true, false, false),
        (true, false, true),
        (false, true, false),
        (true, true, true),
    ] {
        let options = NeedleOptions {
            answer_prefix,
            question_after,
            raw,
            ..needles()
        };
        let task = Needle::new(&model, &options).unwrap();
        assert!(
            task.samples()
                .iter()
                .all(|info| (301..=380).contains(&info.prompt_tokens))
        );
        let (predictions, summary) = run(&model, &task);
        assert!(score(&summary, 1, "delta_nll").abs() < 1e-5);
        assert!(score(&summary, 2, "delta_nll").abs() > 1e-6);
        for pair in predictions.chunks_exact(4) {
            assert_eq!(pair[0].output, pair[1].output, "a budget above the length");
            assert_eq!(pair[0].answers, pair[3].answers);
            assert_eq!((pair[0].answers.len(), pair[0].answers[0].len()), (1, 6));
        }
        let depths: Vec<_> = summary.plans[0].groups.iter().map(|g| g.depth).collect();
        assert_eq!(depths, [Some(0.0), Some(1.0)]);
        assert_eq!(predictions, run(&model, &task).0, "the same numbers again");
        lengths.push(task.samples());
    }
    assert_ne!(lengths[0], lengths[2], "the template counts");
}

#[test]
fn what_cannot_be_evaluated_is_refused() {
    let model = model();
    let refuse = |result: polykv::Result<()>, parts: &[&str]| {
        let error = result.unwrap_err();
        assert!(error.is_refusal(), "{error}");
        for part in parts {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
    };
    let cut = |options: WindowOptions| Ppl::new(&model, &text(), &options, false).map(|_| ());
    let with = |length, continuation, limit| WindowOptions {
        lengths: vec![length],
        continuation,
        limit,
        seed: 0,
    };
    refuse(cut(with(500, 20, 1)), &["500 and 20", "at most 512"]);
    refuse(cut(with(0, 20, 1)), &["length is 0"]);
    refuse(cut(with(10, 0, 1)), &["continuation is 0"]);
    refuse(cut(with(10, 2, 0)), &["limit is 0"]);
    refuse(cut(with(10, 1, 1)), &["continuation is 1", "at least 2"]);
    let short = Ppl::new(&model, "two words", &windows(), false).map(|_| ());
    refuse(short, &["text is", "at least 120"]);
    let hide = |options: NeedleOptions| Needle::new(&model, &options).map(|_| ());
    let depths = vec![0.5, 1.5];
    refuse(
        hide(NeedleOptions {
            depths,
            ..needles()
        }),
        &["depth is 1.5", "0 to 1"],
    );
    for (length, parts) in [
        (20, ["length is 20", "needle and question"]),
        (505, ["tokens after it", "at most 512"]),
        (usize::MAX, ["tokens after it", "at most 512"]),
    ] {
        let lengths = vec![length];
        refuse(
            hide(NeedleOptions {
                lengths,
                ..needles()
            }),
            &parts,
        );
    }
    // A plan that cannot be carried out is found before anything is computed.
    let evaluator = Evaluator::new(&model, vec![candidate("small", "snapkv", 8)]).unwrap();
    let task = Ppl::new(&model, &text(), &windows(), false).unwrap();
    let result = evaluate(&task, &evaluator, &[0], &mut |_| panic!("it started"));
    refuse(
        result.map(|_| ()),
        &["small", "budget of layer 0 is 8", "at least 32"],
    );
    let twice = vec![candidate("a", "tova", 9), candidate("a", "h2o", 9)];
    refuse(Evaluator::new(&model, twice).map(|_| ()), &["'a' twice"]);
}
