//! `polykv calibrate`: from examples to a plan.

mod data;
mod journal;
mod refine;
mod report;

pub use report::Report;

use crate::args::{BudgetSignal, CalibrateArgs, Objective};
use crate::compression;
use crate::model;
use crate::output::{self, progress};
use anyhow::Context;
use journal::{Journal, Record};
use polykv::allocate::{self, Basis};
use polykv::calibrate::Candidate;
use polykv::models::LoadedModel;
use polykv::models::calibrate::{EvidenceOptions, Example, Examples, Measurer, TextOptions};
use polykv::{Error, Result};
use refine::Refinement;
use std::io::Write;

/// # Errors
/// What was refused, or what failed on the way.
pub fn run(args: &CalibrateArgs) -> anyhow::Result<()> {
    // Whatever can be checked without the model comes before it is loaded.
    output::check_folder(&args.out)?;
    let allocator = allocate::by_name(&args.choice.allocator)?;
    if args.choice.refine > 0 && allocator.basis() == Basis::Layers {
        // A route is put together from layers that ran under other routes, which had other budgets.
        let found = format!(
            "{} beside --allocator {}",
            args.choice.refine,
            allocator.name()
        );
        let allowed = "0, or an allocator that need not see the layers first";
        return Err(Error::invalid("command line", "--refine", found, allowed).into());
    }
    let (phases, refined) = (args.choice.phase.list(), args.choice.refine_phase.list());
    if args.choice.refine > 0 && !refined.iter().any(|phase| phases.contains(phase)) {
        let allowed = format!("{}, the phase that evicts", phases[0]);
        return Err(Error::invalid("command line", "--refine-phase", refined[0], allowed).into());
    }
    let by_effect = args.choice.budget_signal == BudgetSignal::Effect
        && allocator.basis() == Basis::Calibration;
    if by_effect && args.choice.refine == 0 {
        let allowed = "with --refine: it is a search, too";
        return Err(Error::invalid("command line", "--budget-signal", "effect", allowed).into());
    }
    let budget = compression::budget(&args.choice.budget)?;
    let candidates = match &args.choice.policies {
        Some(given) => given.0.clone(),
        None => Candidate::all(),
    };
    for candidate in &candidates {
        candidate.build("command line")?;
    }
    let texts = match args.examples.objective {
        Objective::Evidence => Vec::new(),
        Objective::Text | Objective::Both => data::read(&args.examples.data)?,
    };
    let (_, model) = model::open(&args.model)?;
    let examples = examples(args, &model, &texts)?;
    let measurer = Measurer::new(
        &model,
        &candidates,
        args.choice.phase.list(),
        budget,
        report::likelihoods(&args.choice),
    )?;
    for example in &examples {
        measurer.check(example.prompt.len())?;
    }

    std::fs::create_dir_all(&args.out).map_err(|e| Error::io(&args.out, e))?;
    let header = journal::header(args, &model, &candidates, &examples);
    let mut journal = Journal::open(&args.out, &header, args.resume)?;
    measure(
        &measurer,
        model.model.config().layers,
        &examples,
        &mut journal,
    )?;
    let mut report = Report::new(args, &model, candidates.clone(), budget, &journal)?;
    for &phase in args.choice.refine_phase.list() {
        if args.choice.refine == 0 || report.phase(phase).route.is_empty() {
            continue;
        }
        let draft = report.draft(&candidates, budget);
        let mut refinement = Refinement {
            model: &model,
            examples: &examples,
            draft: &draft,
            phase,
            prefill: report.prefill.picks(),
            seed: args.examples.seed,
            journal: &mut journal,
        };
        let found = refinement.route(report.routes(phase)?, args.choice.refine)?;
        let budgets = match by_effect {
            true => Some(refinement.budgets(&found, report.limits()?)?),
            false => None,
        };
        report.set_refined(phase, found, budgets);
    }
    let draft = report.draft(&candidates, budget);
    let plan = draft.plan(report.prefill.picks(), report.decode.picks());
    plan.validate("the calibrated plan")?;
    report.plan_hash = plan.hash();
    let json = serde_json::to_string(&report)?;
    output::write_whole(&args.out.join("profile.json"), format!("{json}\n"))?;
    plan.write(&args.out.join("plan.yaml"))?;
    let shown = match args.json {
        true => json,
        false => output::calibrate::table(&report, &plan),
    };
    writeln!(std::io::stdout(), "{shown}").context("standard output")
}

fn examples(args: &CalibrateArgs, model: &LoadedModel, texts: &[String]) -> Result<Vec<Example>> {
    let given = &args.examples;
    let mut examples = Examples::default();
    if given.objective != Objective::Evidence {
        let options = TextOptions {
            examples: given.examples,
            length: given.length,
            continuation: given.continuation,
            seed: given.seed,
        };
        examples.add_text(model, texts, &options)?;
    }
    if given.objective != Objective::Text {
        let options = EvidenceOptions {
            examples: given.evidence,
            length: given.length,
            question_after: given.question_after,
            seed: given.seed,
        };
        examples.add_evidence(model, &options)?;
    }
    Ok(examples.0)
}

/// Measures the examples that the journal does not know yet.
fn measure(
    measurer: &Measurer<'_>,
    layers: usize,
    examples: &[Example],
    journal: &mut Journal,
) -> Result<()> {
    let mut steps = progress::Steps::new("measuring", "layer");
    let total = examples.len() * layers;
    for (index, example) in examples.iter().enumerate() {
        if journal.knows(index) {
            continue;
        }
        let signals = measurer.measure(example, &mut |layer| {
            steps.step(index * layers + layer, total);
        })?;
        journal.add(&Record::Measured {
            example: index,
            signals,
        })?;
    }
    Ok(())
}
