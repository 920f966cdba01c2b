//! LongBench, RULER and own prompts end to end on the tiny model, with made-up lines in their formats.

#![cfg(feature = "flex")]

mod common;
#[path = "tasks/longbench.rs"]
mod longbench;
#[path = "tasks/prompts.rs"]
mod prompts;
#[path = "tasks/ruler.rs"]
mod ruler;

use burn::tensor::Device;
use polykv::models::eval::{Evaluator, NamedPlan, Prediction, Summary, Task, evaluate};
use polykv::models::{LoadedModel, load};
use polykv::{Budget, Phase, Registry};
use serde_json::Value;
use std::path::Path;

fn model() -> LoadedModel {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama31");
    load(&folder, &Device::flex()).unwrap()
}

/// A budget above every length, and one that evicts.
fn candidates() -> Vec<NamedPlan> {
    [("roomy", "h2o", 2000), ("tova", "tova", 30)]
        .map(|(name, policy, budget)| {
            let plan = common::uniform(3, policy, Budget::Tokens(budget), &Phase::BOTH);
            NamedPlan::new(name, plan, &Registry::default())
        })
        .into()
}

fn run(model: &LoadedModel, task: &dyn Task) -> (Vec<Prediction>, Summary) {
    let evaluator = Evaluator::new(model, candidates()).unwrap();
    let all: Vec<usize> = (0..task.samples().len()).collect();
    let mut found = Vec::new();
    evaluate(task, &evaluator, &all, &mut |own| {
        assert_eq!(own.len(), 3);
        assert_eq!(own[0].output, own[1].output, "a budget above the length");
        assert_eq!(
            own[0].scores.keys().collect::<Vec<_>>(),
            own[2].scores.keys().collect::<Vec<_>>()
        );
        found.extend_from_slice(own);
        Ok(())
    })
    .unwrap();
    let summary = Summary::of(task, &evaluator, &found);
    (found, summary)
}

fn write(folder: &Path, name: &str, lines: &[Value]) {
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    std::fs::write(folder.join(name), lines.join("\n")).unwrap();
}

fn refuse<T: std::fmt::Debug>(result: polykv::Result<T>, parts: &[&str]) {
    let error = result.unwrap_err();
    assert!(error.is_refusal(), "{error}");
    for part in parts {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
}
