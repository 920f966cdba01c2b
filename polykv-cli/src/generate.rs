//! `polykv generate`: one answer to one prompt.

use crate::args::GenerateArgs;
use crate::compression::{Placed, Source};
use crate::kept::{self, Snapshot};
use crate::output::{self, Run, console, progress, stats};
use crate::{model, prompt};
use anyhow::Context;
use polykv::models::generate::Event;
use polykv::models::sample::SamplingParams;
use polykv::models::{GenerateOptions, Generator};
use std::ops::ControlFlow;

/// # Errors
/// What was refused, or what failed on the way.
pub fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    // Whatever can be checked without the model comes before it is loaded.
    let options = options(args);
    options.sampling.validate()?;
    let source = Source::read(&args.compression)?;
    let text = prompt::read(&args.prompt)?;
    args.show_kept.as_deref().map_or(Ok(()), kept::check_path)?;
    let (spec, model) = model::open(&args.model)?;
    let model = model::with_template_arguments(model, &args.prompt.template_arg)?;

    let plan = source.plan(model.model.config())?;
    let ids = prompt::encode(&model, &args.prompt, &text)?;
    let spans = prompt::protected(&model, &args.prompt, &args.protection, &text, ids.len())?;
    plan.check_protected(ids.len(), &model.model.cache_cost(1), &spans)?;
    let Placed { file, plan, .. } = plan;
    let mut generator = Generator::new(model, plan)?;
    generator.protect(spans.clone());
    let mut snapshot = None;
    let mut written = Ok(());
    let mut prefill = progress::Prefill::default();
    let generation = generator.generate(&ids, &options, &mut |event| {
        match event {
            Event::Prefill { done, total } => prefill.step(done, total),
            Event::Prompt(cache) if args.show_kept.is_some() => {
                snapshot = Some(Snapshot::of(cache))
            }
            Event::Text(piece) if !args.json => written = console::write(piece),
            _ => {}
        }
        // Nobody reads what would come next.
        match written.is_ok() {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    });
    drop(prefill);
    let generation = generation?;
    written.context("standard output")?;

    let run = Run {
        model: &args.model.model,
        device: spec.to_string(),
        dtype: generator.model().model.storage().name(),
        plan: &file,
        generation: &generation,
        cache: generator.cache(),
    };
    if let (Some(path), Some(snapshot)) = (&args.show_kept, snapshot) {
        let tokens = kept::tokens(&generator.model().tokenizer, &ids, &snapshot.read()?)?;
        let page = output::kept::page(&run, &tokens, &spans)?;
        output::write_whole(path, page)?;
    }
    if args.json {
        let json = serde_json::to_string(&run.json())?;
        return console::print(&json);
    }
    if !generation.text.is_empty() {
        console::print("")?;
    }
    match args.no_stats {
        true => Ok(()),
        false => console::note(&stats::block(&run, args.verbose)),
    }
}

fn options(args: &GenerateArgs) -> GenerateOptions {
    let given = &args.sampling;
    GenerateOptions {
        max_new_tokens: given.max_new_tokens,
        sampling: SamplingParams {
            temperature: given.temp,
            top_k: given.top_k,
            top_p: given.top_p,
            min_p: given.min_p,
            repeat_penalty: given.repeat_penalty,
            seed: given.seed,
            ..SamplingParams::default()
        },
        stop: given.stop.clone(),
        chunk: given.chunk,
    }
}
