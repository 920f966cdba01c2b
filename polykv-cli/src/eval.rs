//! `polykv eval`: plans beside the full cache.

use crate::args::{EvalArgs, SampleArgs, TaskName};
use crate::compression::Source;
use crate::output::{eval as report, progress};
use crate::{model, prompt};
use anyhow::Context;
use polykv::models::eval::{
    Candidate, Evaluator, Fidelity, Needle, NeedleOptions, Ppl, Summary, Task, WindowOptions,
    evaluate,
};
use polykv::models::{LoadedModel, ModelConfig};
use polykv::{Error, Result};
use std::io::Write;

/// # Errors
/// What was refused, or what failed on the way.
pub fn run(args: &EvalArgs) -> anyhow::Result<()> {
    // Whatever can be checked without the model comes before it is loaded.
    let sources = args
        .compressions()
        .iter()
        .map(Source::read)
        .collect::<Result<Vec<_>>>()?;
    let text = text(&args.samples)?;
    let (spec, model) = model::open(&args.model)?;
    let evaluator = Evaluator::new(&model, candidates(sources, model.model.config())?)?;
    let task = task(&args.samples, &model, &text)?;

    // A folder that cannot be written is found before the work, one for work that is refused is not made.
    let infos = task.samples();
    for info in &infos {
        evaluator.check(info.prompt_tokens)?;
    }
    if let Some(folder) = &args.out {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    let mut samples = progress::Steps::new("evaluating", "sample");
    let all: Vec<usize> = (0..infos.len()).collect();
    let mut predictions = Vec::new();
    let mut done = 0;
    samples.step(done, all.len());
    evaluate(&*task, &evaluator, &all, &mut |own| {
        predictions.extend_from_slice(own);
        done += 1;
        samples.step(done, all.len());
        Ok(())
    })?;
    drop(samples);
    let summary = Summary::of(&*task, &evaluator, &predictions);
    let metrics = report::Metrics::new(args, &evaluator, &summary, spec);
    let json = serde_json::to_string(&metrics)?;
    if let Some(folder) = &args.out {
        report::write(folder, &json, &predictions)?;
    }
    let shown = match args.json {
        true => json,
        false => report::table(&args.samples, &summary),
    };
    writeln!(std::io::stdout(), "{shown}").context("standard output")
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
