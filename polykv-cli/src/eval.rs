//! `polykv eval`: plans beside the full cache.

mod digest;
mod merge;
pub mod record;
mod results;
mod running;

use crate::args::{EvalArgs, EvalCommand, SampleArgs, TaskName};
use crate::compression::Source;
use crate::output::progress;
use crate::{model, prompt};
use polykv::models::eval::{
    Candidate, Evaluator, Fidelity, Needle, NeedleOptions, Ppl, Task, WindowOptions, evaluate,
};
use polykv::models::{LoadedModel, ModelConfig};
use polykv::{Error, Result};
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
    let sources = args
        .plans
        .compressions()
        .iter()
        .map(Source::read)
        .collect::<Result<Vec<_>>>()?;
    let text = text(&args.samples)?;
    let (spec, path, model) = model::open_at(&args.model)?;
    let evaluator = Evaluator::new(&model, candidates(sources, model.model.config())?)?;
    let task = task(&args.samples, &model, &text)?;

    // A folder that cannot be written is found before the work, one for work that is refused is not made.
    let infos = task.samples();
    for info in &infos {
        evaluator.check(info.prompt_tokens)?;
    }
    let hash = match args.out {
        Some(_) => digest::model(&path)?,
        None => String::new(),
    };
    let record = Record::new(args, &evaluator, &*task, infos.len(), spec, hash);
    let mut results = Results::open(args.out.as_deref(), record)?;
    let todo = results.todo();
    let mut running = Running::new(&evaluator.plans(), results.predictions());
    let tokens = todo.iter().map(|&sample| infos[sample].prompt_tokens).sum();
    let mut bar = progress::Evaluation::new(todo.len(), tokens);
    results.begin();
    evaluate(&*task, &evaluator, &todo, &mut |own| {
        results.add(own)?;
        running.add(own);
        bar.step(
            own.first().map_or(0, |one| one.prompt_tokens),
            &running.to_string(),
        );
        Ok(())
    })?;
    drop(bar);
    results.finish(args.json)
}

/// The text that a task reads, empty for one that reads none.
fn text(args: &SampleArgs) -> Result<String> {
    match (&args.text, args.task) {
        (_, TaskName::Needle) => Ok(String::new()),
        (Some(path), _) => prompt::read_file(path),
        (None, _) => Err(Error::invalid(
            "command line",
            "--text",
            "missing",
            "a text file, which the tasks ppl and fidelity read",
        )),
    }
}

fn task(args: &SampleArgs, model: &LoadedModel, text: &str) -> Result<Box<dyn Task>> {
    let windows = WindowOptions {
        lengths: args.length.clone(),
        continuation: args.continuation(),
        limit: args.limit,
        seed: args.seed,
    };
    Ok(match args.task {
        TaskName::Ppl => Box::new(Ppl::new(model, text, &windows, args.decode)?),
        TaskName::Fidelity => Box::new(Fidelity::new(model, text, &windows, args.generated)?),
        TaskName::Needle => {
            let options = NeedleOptions {
                lengths: args.length.clone(),
                depths: args.depth().to_vec(),
                limit: args.limit,
                answer_prefix: args.answer_prefix,
                question_after: args.question_after,
                decode: args.decode,
                raw: args.raw,
                seed: args.seed,
            };
            Box::new(Needle::new(model, &options)?)
        }
    })
}

/// Plans under names that differ: a name that comes again gets a number.
fn candidates(sources: Vec<Source>, config: &ModelConfig) -> Result<Vec<Candidate>> {
    let mut candidates: Vec<Candidate> = Vec::new();
    for source in sources {
        let name = source.name();
        let plan = source.plan(config)?.plan;
        let taken = |name: &str, all: &[Candidate]| {
            name == "full" || all.iter().any(|other| other.name == name)
        };
        let mut unique = name.clone();
        let mut number = 2;
        while taken(&unique, &candidates) {
            unique = format!("{name} {number}");
            number += 1;
        }
        candidates.push(Candidate { name: unique, plan });
    }
    Ok(candidates)
}
