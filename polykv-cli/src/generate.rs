//! `polykv generate`: one answer to one prompt.

use crate::args::{GenerateArgs, SamplingArgs};
use crate::compression::{Placed, Source};
use crate::kept::{self, Snapshot};
use crate::output::kept::Moment;
use crate::output::{self, Run, console, progress, stats};
use crate::{model, prompt, session};
use anyhow::Context;
use polykv::Spans;
use polykv::models::generate::Event;
use polykv::models::sample::SamplingParams;
use polykv::models::{GenerateOptions, Generator};
use std::ops::ControlFlow;

/// # Errors
/// What was refused, or what failed on the way.
pub fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    // Whatever can be checked without the model comes before it is loaded.
    let options = options(&args.sampling, NEW_TOKENS);
    options.sampling.validate()?;
    let source = Source::read(&args.compression)?;
    let session = session::read(args)?;
    let text = prompt::read(&args.prompt)?;
    for path in [&args.show_kept, &args.session.save_session] {
        path.as_deref().map_or(Ok(()), kept::check_path)?;
    }
    let (spec, path, model) = model::open(&args.model)?;
    let model = model::with_template_arguments(model, &args.prompt.template_arg)?;
    let identity = match args.session.is_given() {
        true => session::identity(&path, &model)?,
        false => String::new(),
    };

    let (mut generator, file, ids, spans) = match &session {
        Some(session) => {
            let Placed { file, plan, .. } =
                session.plan(&args.compression, source, model.model.config())?;
            let pending = session.pending();
            let ids = prompt::encode_next(&model, &args.prompt, &text, pending)?;
            let generator = session.resume(model, plan, &identity)?;
            (generator, file, ids, Spans::default())
        }
        None => {
            let plan = source.plan(model.model.config())?;
            let ids = prompt::encode(&model, &args.prompt, &text)?;
            let spans =
                prompt::protected(&model, &args.prompt, &args.protection, &text, ids.len())?;
            plan.check_protected(ids.len(), &model.model.cache_cost(1), &spans)?;
            let Placed { file, plan, .. } = plan;
            let mut generator = Generator::new(model, plan)?;
            generator.protect(spans.clone());
            (generator, file, ids, spans)
        }
    };
    let mut prompted = 0;
    let mut snapshot = None;
    let mut written = Ok(());
    let mut prefill = progress::Prefill::default();
    // What reading flags, plan and text took would lie beside the weights.
    polykv::machine::release_memory();
    let generation = generator.generate(&ids, &options, &mut |event| {
        match event {
            Event::Prefill { done, total } => prefill.step(done, total),
            Event::Prompt(cache) => {
                prompted = cache.seen();
                snapshot = args.show_kept.as_ref().map(|_| Snapshot::of(cache));
                // A long prompt took more than an answer does.
                polykv::machine::release_memory();
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
    polykv::machine::release_memory();

    let saved = match &args.session.save_session {
        Some(path) => Some(generator.save(path, &file, &identity)?),
        None => None,
    };
    let run = Run {
        model: &args.model.model,
        device: spec.to_string(),
        dtype: generator.model().model.storage().name(),
        plan: &file,
        generation: &generation,
        cache: generator.cache(),
        session: session.as_ref().map(session::Resumed::report),
        saved,
    };
    if let (Some(path), Some(snapshot)) = (&args.show_kept, snapshot) {
        let ids = generator.tokens().get(..prompted).unwrap_or_default();
        let tokens = kept::tokens(&generator.model().tokenizer, ids, &snapshot.read()?)?;
        let moment = Moment::after_the_prompt(generation.prompt_tokens);
        let page = output::kept::page(&run, &moment, &tokens, &spans)?;
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

/// Tokens of an answer, if no flag says how many.
const NEW_TOKENS: usize = 128;

/// The options of the flags; `most` new tokens if they do not say how many.
pub fn options(given: &SamplingArgs, most: usize) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens: given.max_new_tokens.unwrap_or(most),
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
        packed: given.beyond_context.is_some(),
        guide: None,
    }
}
