use super::heads;
use super::journal::Journal;
use super::refine::Refinement;
use super::{CalibrateOptions, Example, Measurer, Progress, Stage};
use crate::LoadedModel;
use polykv_core::calibrate::{Candidate, Measurements, Report};
use polykv_core::{Budget, Error, Phase, Plan, PlanFile, Result};

/// The result of a calibration.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Calibration {
    /// The plan as values, ready to run.
    pub plan: Plan,
    /// The plan as a file, for this model.
    pub file: PlanFile,
    /// Every number that led to it.
    pub report: Report,
}

/// Finds a plan for a model: which policy each layer runs in each phase, and how many entries it keeps (PolyKV, arXiv
/// 2606.15157; searches and questions about hidden facts are our additions).
///
/// Every candidate is tried in every layer alone, at the budget, on windows of `texts` and on questions about facts hidden
/// in a made-up text. The route takes the best one per layer and phase; with [`CalibrateOptions::refine`] it is improved
/// with the whole plan in effect. Keep the texts apart from what the plan is tested on. `texts` are not read for
/// [`Objective::Evidence`](super::Objective::Evidence). `progress` is called before each step.
///
/// Equal options, texts and weights give equal numbers on one machine, also where a journal was resumed.
///
/// # Errors
/// Options that [`CalibrateOptions::check`] refuses; texts that are too short, lengths beyond the model's context, a budget
/// that does not hold what a candidate protects, or that evicts nothing; a journal of another calibration, one that is
/// damaged or cannot be written; NaN in the model's outputs.
pub fn calibrate(
    model: &LoadedModel,
    texts: &[String],
    options: &CalibrateOptions,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Calibration> {
    let examples = options.make_examples(model, texts)?;
    let (mut journal, heads) = measured(model, &examples, options, (0, 1), progress)?;
    let candidates = options.all_candidates();

    let config = model.model.config();
    let cost = model.model.cache_cost(1);
    let specs = options
        .candidates
        .iter()
        .map(|candidate| candidate.spec.clone());
    let measurements = Measurements {
        model: config.fingerprint(),
        cost: cost.clone(),
        specs: specs.collect(),
        kv: options.kv.clone(),
        candidates: &candidates,
        phases: &options.phases,
        budget: options.budget,
        allocator: &*options.allocator,
        budget_signal: options.budget_signal,
        heads,
        settings: options.settings(),
        measured: &journal.measured(),
    };
    let mut report = measurements.report()?;
    // The decode phase's routes are compared under the prefill's.
    for phase in Phase::BOTH {
        let wanted = options.refine > 0 && options.refine_phases.contains(&phase);
        if !wanted || report.phase(phase).route.is_empty() {
            continue;
        }
        let of_phase = Candidate::of_phase(&candidates, phase, &options.phases);
        let draft = report.draft(&candidates, &options.allocator, cost.clone());
        let mut refinement = Refinement {
            model,
            examples: &examples,
            draft: &draft,
            choices: of_phase.len(),
            phase,
            prefill: report.prefill.picks(),
            seed: options.seed,
            journal: &mut journal,
            progress: &mut *progress,
        };
        let found = refinement.route(report.routes(of_phase, phase), options.refine)?;
        let budgets = match options.searches_budgets() {
            true => {
                let of = |&pick: &usize| candidates[pick].clone();
                let route: Vec<Candidate> = found.picks.iter().map(of).collect();
                // A layer has the format of its candidate in the prefill.
                let first = match phase {
                    Phase::Prefill => &found.picks,
                    Phase::Decode => report.prefill.picks().unwrap_or(&found.picks),
                };
                let formats = Candidate::formats(&candidates, first);
                let limits = report.limits(&route, &formats, &cost)?;
                Some(refinement.budgets(&found, limits)?)
            }
            false => None,
        };
        report.set_refined(phase, found, budgets);
    }
    let draft = report.draft(&candidates, &options.allocator, cost.clone());
    let mut plan = draft.plan(report.prefill.picks(), report.decode.picks());
    if let Budget::Ratio(_) | Budget::ByteRatio(_) = plan.budget {
        // Prompts shorter than those that it was found with keep as many entries as these did.
        let total = plan.most_entries(report.settings.length, &cost);
        plan.at_least = total.checked_div(report.layers).unwrap_or(0);
    }
    plan.check()?;
    let mut file = PlanFile::of(&plan, &options.registry);
    file.model = Some(report.model.clone());
    report.plan_hash = file.hash();
    Ok(Calibration { plan, file, report })
}

/// Measures one part of a calibration's examples into its journal and ends there: of `count` parts, which may run on different
/// machines, the one of number `index`, from 0. [`calibrate`] goes on from all of them, see [`JournalOptions::parts`].
///
/// # Errors
/// As [`calibrate`]; options without a journal, and a number that is not below the count.
///
/// [`JournalOptions::parts`]: super::JournalOptions::parts
pub fn measure_part(
    model: &LoadedModel,
    texts: &[String],
    options: &CalibrateOptions,
    (index, count): (usize, usize),
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<()> {
    if index >= count || options.journal.is_none() {
        let found = match index < count {
            true => "without a journal".to_string(),
            false => format!("{index} of {count}"),
        };
        let allowed = "a number below the count, and a journal";
        return Err(Error::invalid("calibration", "part", found, allowed));
    }
    let examples = options.make_examples(model, texts)?;
    measured(model, &examples, options, (index, count), progress).map(|_| ())
}

/// Measures the examples of a part that the journal does not know yet; and the parts of the budget for each KV head of each
/// layer, if heads get some.
fn measured(
    model: &LoadedModel,
    examples: &[Example],
    options: &CalibrateOptions,
    (part, parts): (usize, usize),
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(Journal, Vec<Vec<f64>>)> {
    options.check()?;
    let candidates = options.all_candidates();
    let likelihoods = options.likelihoods();
    let phases = &options.phases;
    let under = |heads: &[Vec<f64>]| {
        let budget = options.budget;
        let measurer = Measurer::new(model, &candidates, phases, budget, likelihoods, heads)?;
        let mut prompts = examples.iter().map(|example| example.prompt.len());
        prompts.try_for_each(|tokens| measurer.check(tokens))?;
        Ok::<_, Error>(measurer)
    };
    // What is refused is refused before anything is written.
    let mut measurer = under(&[])?;
    if options.heads {
        let kv = options.kv.first().copied().flatten();
        let mut prompts = examples.iter().map(|example| example.prompt.len());
        prompts.try_for_each(|tokens| heads::total(model, tokens, options.budget, kv).map(drop))?;
    }
    let mut journal = Journal::open(model, options, examples)?;
    let mut heads = Vec::new();
    if options.heads {
        heads = head_parts(model, examples, options, &mut journal, progress)?;
        measurer = under(&heads)?;
    }
    let layers = journal.layers();
    let examples = examples.iter().enumerate().skip(part).step_by(parts);
    let of = examples.len() * layers;
    for (done, (index, example)) in examples.enumerate() {
        if journal.knows(index) {
            continue;
        }
        let measured = measurer.measure(example, &mut |layer| {
            progress(Progress {
                stage: Stage::Measuring,
                done: done * layers + layer,
                of,
            });
        })?;
        journal.add_measured(index, measured)?;
    }
    Ok((journal, heads))
}

/// The parts of the budget for each KV head of each layer, from all examples.
fn head_parts(
    model: &LoadedModel,
    examples: &[Example],
    options: &CalibrateOptions,
    journal: &mut Journal,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Vec<Vec<f64>>> {
    let kv = options.kv.first().copied().flatten();
    let mut all = Vec::new();
    for (index, example) in examples.iter().enumerate() {
        progress(Progress {
            stage: Stage::Repeating,
            done: index,
            of: examples.len(),
        });
        let counts = match journal.heads(index) {
            Some(counts) => counts.clone(),
            None => {
                let counts = heads::counts(model, example, options.budget, kv)?;
                journal.add_heads(index, counts.clone())?;
                counts
            }
        };
        all.push(counts);
    }
    Ok(polykv_core::calibrate::parts(&all))
}
