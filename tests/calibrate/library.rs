//! A calibration from code: without a folder, with policies that have no registered name, and what a journal refuses.

use super::{BUDGET, model};
use polykv::models::calibrate::{
    BudgetSignal, CalibrateOptions, Calibration, CandidatePolicy, Data, JournalOptions, Objective,
    Progress, Stage, calibrate,
};
use polykv::policy::PolicySpec;
use polykv::{Budget, Phase, PlanFile, Registry, Result};
use std::path::Path;
use std::sync::Arc;

fn options() -> CalibrateOptions {
    let registry = Registry::default();
    let candidates = ["tova", "h2o", "streaming-llm"]
        .map(|name| CandidatePolicy::build(PolicySpec::named(name), &registry.policies).unwrap());
    let mut options = CalibrateOptions::new(candidates.into(), Budget::Tokens(BUDGET));
    options.examples = 2;
    options.length = 100;
    options.continuation = 12;
    options
}

/// Words from a seed.
fn texts() -> Vec<String> {
    let words = ["gate", "lamp", "under", "seven", "bridge", "quiet", "north"];
    let word = |i: usize| words[(i * i * 3 + i * 5) % 61 % 7];
    vec![(0..600).map(|i| word(i).to_string() + " ").collect()]
}

fn run(options: &CalibrateOptions) -> Result<Calibration> {
    calibrate(&model(), &texts(), options, &mut |_| ())
}

fn journal(folder: &Path, resume: bool) -> Option<JournalOptions> {
    Some(JournalOptions {
        parts: Vec::new(),
        folder: folder.to_path_buf(),
        resume,
        weights: "a".into(),
        backend: "cpu".into(),
    })
}

#[test]
fn options_go_in_and_plan_report_and_progress_come_out() {
    let mut options = options();
    options.allocator = options.registry.allocators.get("calibrated").unwrap();
    options.budget_signal = BudgetSignal::Effect;
    options.refine = 4;
    let mut steps: Vec<Progress> = Vec::new();
    let found = calibrate(&model(), &texts(), &options, &mut |step| steps.push(step)).unwrap();
    let Calibration {
        plan, file, report, ..
    } = found;
    assert_eq!(plan.layers.len(), 3);
    for phase in Phase::BOTH {
        let budgets = &report.phase(phase).budgets;
        assert_eq!(budgets.iter().sum::<usize>(), 3 * BUDGET);
        let picks = report.phase(phase).picks().unwrap();
        for (rule, &pick) in plan.rules(phase).zip(picks) {
            let wanted = &options.candidates[pick].policy;
            assert_eq!(rule.policy().unwrap().key(), wanted.key());
        }
    }
    assert_eq!(report.profiles[&Data::Text].examples, 2);
    assert_eq!(file.model.as_deref(), Some(report.model.as_str()));
    assert_eq!(report.plan_hash, file.hash());
    let reread = PlanFile::from_yaml(&file.to_yaml()).unwrap();
    assert_eq!(reread.build(&options.registry).unwrap().layers, plan.layers);
    let stages = |wanted: Stage| steps.iter().filter(|step| step.stage == wanted).count();
    assert_eq!(stages(Stage::Measuring), 6);
    for phase in Phase::BOTH {
        assert!(stages(Stage::Refining(phase)) > 0 && stages(Stage::Screening(phase)) > 0);
    }
    assert!(steps.iter().all(|step| step.done < step.of));
}

#[test]
fn memory_and_folder_give_the_same_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options();
    options.refine = 3;
    options.objective = Objective::Both;
    options.length = 330;
    options.evidence = 2;
    let memory = run(&options).unwrap();
    options.journal = journal(dir.path(), false);
    let folder = run(&options).unwrap();
    assert_eq!(memory.report, folder.report);
    assert_eq!(memory.file, folder.file);
    options.journal = journal(dir.path(), true);
    let mut steps = 0;
    let resumed = calibrate(&model(), &texts(), &options, &mut |_| steps += 1).unwrap();
    assert_eq!((resumed.report, steps), (memory.report, 0));
}

#[test]
fn objects_have_the_labels_that_they_are_given() {
    let mut options = options();
    let mut labelled = CandidatePolicy::of(options.candidates[0].policy.clone());
    assert_eq!(labelled.spec.policy, "tova");
    labelled.spec = PolicySpec::named("mine");
    options.candidates = vec![labelled];
    options.phases = vec![Phase::Prefill];
    let found = run(&options).unwrap();
    assert_eq!(found.report.candidates[0].policy, "mine");
    let rule = &found.plan.layers[0].prefill;
    let policy = rule.policy().unwrap();
    assert!(Arc::ptr_eq(policy, &options.candidates[0].policy));
}

#[test]
fn journals_of_other_calibrations_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options();
    options.journal = journal(dir.path(), false);
    run(&options).unwrap();
    let refused = |options: &CalibrateOptions, part: &str| {
        let error = run(options).unwrap_err();
        assert!(error.is_refusal());
        let message = error.to_string();
        assert!(message.contains(part), "{message}, not {part}");
    };
    refused(&options, "measurements.jsonl is there from another run");
    let mut own = journal(dir.path(), true).unwrap();
    own.weights = "b".into();
    options.journal = Some(own.clone());
    refused(&options, "weights is \"a\"; allowed: \"b\"");
    (own.weights, own.backend) = ("a".into(), "cuda".into());
    options.journal = Some(own);
    refused(&options, "backend is \"cpu\"");
    options.journal = journal(dir.path(), true);
    assert!(run(&options).is_ok());
    options.budget = Budget::Ratio(0.5);
    refused(&options, "budget is {\"tokens\":50}");
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    let refused = |change: fn(&mut CalibrateOptions), part: &str| {
        let mut options = options();
        change(&mut options);
        let message = options.check().unwrap_err().to_string();
        assert!(message.contains(part), "{message}, not {part}");
    };
    refused(|own| own.candidates.clear(), "policies is 0");
    refused(|own| own.phases.clear(), "phases is none");
    refused(|own| own.budget = Budget::Tokens(0), "budget.tokens");
    refused(
        |own| {
            own.allocator = own.registry.allocators.get("cake").unwrap();
            own.refine = 2;
        },
        "refine is 2 beside allocator cake",
    );
}
