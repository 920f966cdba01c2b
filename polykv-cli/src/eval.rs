//! `polykv eval`: plans beside the full cache.

pub mod merge;
mod protocol;
pub mod record;
mod results;
mod running;
mod samples;

use crate::args::{EvalArgs, EvalCommand};
use crate::compression::{Placed, Source};
use crate::model;
use crate::output::{self, progress};
use polykv::Result;
use polykv::models::eval::{Evaluator, NamedPlan, evaluate};
use polykv::models::{ModelConfig, digest};
use record::Record;
use results::Results;
use running::Running;

/// # Errors
/// What was refused, or what failed on the way.
pub fn run(command: &EvalCommand) -> anyhow::Result<()> {
    match command {
        EvalCommand::Run(args) => evaluated(args),
        EvalCommand::Merge(args) => merge::run(args),
    }
}

fn evaluated(args: &EvalArgs) -> anyhow::Result<()> {
    // Whatever can be checked without the model comes before it is loaded.
    args.out.as_deref().map_or(Ok(()), output::check_folder)?;
    let plans = args
        .plans
        .compressions()
        .iter()
        .map(Source::read)
        .collect::<Result<Vec<_>>>()?;
    let samples = samples::Samples::read(&args.samples)?;
    let (spec, path, model) = model::open(&args.model)?;
    let model = model::with_template_arguments(model, &args.samples.template_arg)?;
    let evaluator = Evaluator::new(&model, named(plans, model.model.config())?)?;
    let task = samples.task(&args.samples, &model)?;

    // A folder that cannot be written is found before the work, one for work that is refused is not made.
    let infos = task.samples();
    for info in &infos {
        evaluator.check(info.prompt_tokens)?;
    }
    let hash = match args.out {
        Some(_) => digest(&path)?,
        None => String::new(),
    };
    let record = Record::new(args, &evaluator, &*task, infos.len(), spec, hash);
    let mut results = Results::open(args.out.as_deref(), record)?;
    let todo = results.todo();
    let mut running = Running::new(&evaluator.infos(), results.predictions());
    let tokens = todo.iter().map(|&sample| infos[sample].prompt_tokens).sum();
    let mut bar = progress::Evaluation::new(todo.len(), tokens);
    results.begin()?;
    evaluate(&*task, &evaluator, &todo, &mut |predictions| {
        results.add(predictions)?;
        running.add(predictions);
        bar.step(
            predictions.first().map_or(0, |one| one.prompt_tokens),
            &running.to_string(),
        );
        Ok(())
    })?;
    drop(bar);
    results.finish(args.json)
}

/// Plans under names that differ: a name that comes again gets a number.
fn named(sources: Vec<Source>, config: &ModelConfig) -> Result<Vec<NamedPlan>> {
    let mut plans: Vec<NamedPlan> = Vec::new();
    for source in sources {
        let name = source.name();
        let Placed { file, plan, .. } = source.plan(config)?;
        let taken = |name: &str| name == "full" || plans.iter().any(|other| other.name == name);
        let mut unique = name.clone();
        let mut number = 2;
        while taken(&unique) {
            unique = format!("{name} {number}");
            number += 1;
        }
        plans.push(NamedPlan {
            name: unique,
            hash: file.hash(),
            file,
            plan,
        });
    }
    Ok(plans)
}
