//! From the arguments to a task.

use crate::args::{SampleArgs, TaskName};
use crate::prompt;
use polykv::models::LoadedModel;
use polykv::models::eval::{
    Fidelity, LongBench, Needle, NeedleOptions, Ppl, PromptOptions, Prompts, PromptsOptions, Ruler,
    RulerOptions, RulerSource, Task, WindowOptions,
};
use polykv::{Error, Result};

/// The text that a task reads, empty for one that reads none.
///
/// # Errors
/// A flag that the task needs and that is missing; a text that cannot be read.
pub fn text(args: &SampleArgs) -> Result<String> {
    use TaskName::{Fidelity, Longbench, Needle, Ppl, Prompts, Ruler};
    match args.task {
        Needle | Ruler => {}
        Ppl | Fidelity => {
            let what = "a text file, which the tasks ppl and fidelity read";
            return prompt::read_file(needed(&args.text, "--text", what)?);
        }
        Longbench => {
            needed(&args.data, "--data", "LongBench's folder")?;
        }
        Prompts => {
            needed(&args.data, "--data", "a file or folder of prompts")?;
            needed(&args.map, "--map", "prompt=F,answers=G")?;
            needed(&args.metric, "--metric", "the name of a metric")?;
        }
    }
    Ok(String::new())
}

fn needed<'a, T>(value: &'a Option<T>, flag: &str, allowed: &str) -> Result<&'a T> {
    let missing = || Error::invalid("command line", flag, "missing", allowed);
    value.as_ref().ok_or_else(missing)
}

/// # Errors
/// What the task refuses.
pub fn task(args: &SampleArgs, model: &LoadedModel, text: &str) -> Result<Box<dyn Task>> {
    let windows = WindowOptions {
        lengths: args.length().to_vec(),
        continuation: args.continuation(),
        limit: args.made(),
        seed: args.seed,
    };
    let prompts = PromptOptions {
        limit: args.limit,
        only: args.only.clone(),
        max_length: args.max_length,
        question_after: args.question_after,
        raw: args.raw,
    };
    Ok(match args.task {
        TaskName::Ppl => Box::new(Ppl::new(model, text, &windows, args.decode)?),
        TaskName::Fidelity => Box::new(Fidelity::new(model, text, &windows, args.generated)?),
        TaskName::Needle => {
            let options = NeedleOptions {
                lengths: args.length().to_vec(),
                depths: args.depth().to_vec(),
                limit: args.made(),
                answer_prefix: args.answer_prefix(),
                question_after: args.question_after,
                decode: args.decode,
                raw: args.raw,
                generate: !args.likelihood_only,
                seed: args.seed,
            };
            Box::new(Needle::new(model, &options)?)
        }
        TaskName::Longbench => {
            let folder = needed(&args.data, "--data", "LongBench's folder")?;
            Box::new(LongBench::new(model, folder, &prompts)?)
        }
        TaskName::Ruler => {
            let source = args.template.as_ref().zip(args.haystack.as_ref());
            let options = RulerOptions {
                lengths: args.length().to_vec(),
                only: args.only.clone(),
                limit: args.made(),
                seed: args.seed,
                answer_prefix: args.answer_prefix(),
                question_after: args.question_after,
                raw: args.raw,
                source: source.map(|(folder, haystack)| RulerSource {
                    folder: folder.clone(),
                    haystack: haystack.clone(),
                }),
            };
            Box::new(Ruler::new(model, &options)?)
        }
        TaskName::Prompts => {
            let data = needed(&args.data, "--data", "a file or folder of prompts")?;
            let options = PromptsOptions {
                map: needed(&args.map, "--map", "prompt=F,answers=G")?.clone(),
                scorer: *needed(&args.metric, "--metric", "the name of a metric")?,
                max_new_tokens: args.max_new_tokens,
                prompts,
            };
            Box::new(Prompts::new(model, data, &options)?)
        }
    })
}
