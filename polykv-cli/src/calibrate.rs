//! `polykv calibrate`: from examples to a plan.

mod data;
mod journal;
mod report;

pub use report::Report;

use crate::args::{CalibrateArgs, Objective};
use crate::compression;
use crate::model;
use crate::output::{self, progress};
use anyhow::Context;
use journal::{Journal, Record};
use polykv::allocate::{self, Basis};
use polykv::calibrate::{Candidate, Draft, Found, Search};
use polykv::models::LoadedModel;
use polykv::models::calibrate::{EvidenceOptions, Example, Examples, Measurer, Pool, TextOptions};
use polykv::{Error, Phase, Result};
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
    let draft = report.draft(&candidates, budget);
    if args.choice.refine > 0 {
        let refined = args.choice.refine_phase.list();
        for &phase in args.choice.phase.list() {
            if !refined.contains(&phase) {
                continue;
            }
            let found = refine(
                args,
                &model,
                &draft,
                &examples,
                &report,
                phase,
                &mut journal,
            )?;
            report.phase_mut(phase).refined = Some(found);
        }
    }
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

/// Improves one phase's route with the whole plan in effect; the decode phase over the prefill's final route. The prompts
/// run only if some evaluation is not in the journal yet.
fn refine(
    args: &CalibrateArgs,
    model: &LoadedModel,
    draft: &Draft<'_>,
    examples: &[Example],
    report: &Report,
    phase: Phase,
    journal: &mut Journal,
) -> Result<Found> {
    let prefill = match phase {
        Phase::Prefill => None,
        Phase::Decode => report.prefill.picks(),
    };
    let search = Search {
        candidates: draft.candidates.len(),
        routes: report.routes(phase)?,
        moves: args.choice.refine,
        seed: args.examples.seed,
    };
    let most = search.candidates + search.routes.len() + search.moves;
    let label = match phase {
        Phase::Prefill => "refining prefill",
        Phase::Decode => "refining decode",
    };
    let mut steps = progress::Steps::new(label, "plan");
    let mut pool: Option<Pool> = None;
    let mut done = 0;
    search.run(&mut |picks| {
        let plan = match phase {
            Phase::Prefill => draft.plan(Some(picks), None),
            Phase::Decode => draft.plan(prefill, Some(picks)),
        };
        let key = plan.hash();
        done += 1;
        if let Some(known) = journal.losses(&key) {
            return Ok(known.clone());
        }
        let own = match &pool {
            Some(pool) => pool,
            None => {
                let mut prompts = progress::Steps::new("preparing", "prompt");
                let new = Pool::new(model, draft, phase, prefill, examples, &mut |done| {
                    prompts.step(done, examples.len());
                })?;
                pool.insert(new)
            }
        };
        steps.step(done - 1, most);
        let losses = own.losses(picks)?;
        journal.add(&Record::Losses {
            plan: key.clone(),
            losses,
        })?;
        // As read back: a resumed run continues with the very same numbers.
        journal
            .losses(&key)
            .cloned()
            .ok_or_else(|| Error::Failed("an evaluation that was not written".into()))
    })
}
