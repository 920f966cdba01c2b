//! From the arguments to a task.

use crate::args::{SampleArgs, TaskName};
use crate::prompt;
use polykv::models::LoadedModel;
use polykv::models::eval::{
    Fidelity, LongBench, LongBenchFiles, Needle, NeedleOptions, Ppl, PromptFiles, PromptOptions,
    Prompts, PromptsOptions, Ruler, RulerOptions, RulerSource, RulerTexts, Task, WindowOptions,
};
use polykv::{Error, Result};

/// What a task reads before the model is loaded.
#[derive(Debug)]
pub enum Samples {
    Ppl(String),
    Fidelity(String),
    Needle,
    LongBench(LongBenchFiles),
    Ruler(Box<RulerTexts>),
    Prompts(PromptFiles),
}

impl Samples {
    /// # Errors
    /// A flag that the task needs and that is missing; files that cannot be read or hold something else.
    pub fn read(args: &SampleArgs) -> Result<Self> {
        let text = || {
            let what = "a text file, which the tasks ppl and fidelity read";
            prompt::read_file(needed(&args.text, "--text", what)?)
        };
        Ok(match args.task {
            TaskName::Ppl => Self::Ppl(text()?),
            TaskName::Fidelity => Self::Fidelity(text()?),
            TaskName::Needle => Self::Needle,
            TaskName::Longbench => {
                let folder = needed(&args.data, "--data", "LongBench's folder")?;
                Self::LongBench(LongBenchFiles::read(folder, &prompt_options(args))?)
            }
            TaskName::Ruler => Self::Ruler(Box::new(RulerTexts::read(&ruler_options(args))?)),
            TaskName::Prompts => {
                let data = needed(&args.data, "--data", "a file or folder of prompts")?;
                let options = PromptsOptions {
                    map: needed(&args.map, "--map", "prompt=F,answers=G")?.clone(),
                    scorer: *needed(&args.metric, "--metric", "the name of a metric")?,
                    prompts: prompt_options(args),
                };
                Self::Prompts(PromptFiles::read(data, &options)?)
            }
        })
    }

    /// # Errors
    /// What the task refuses.
    pub fn task(self, args: &SampleArgs, model: &LoadedModel) -> Result<Box<dyn Task>> {
        let windows = WindowOptions {
            lengths: args.length().to_vec(),
            continuation: args.continuation(),
            limit: args.made(),
            seed: args.seed,
        };
        Ok(match self {
            Self::Ppl(text) => Box::new(Ppl::new(model, &text, &windows, args.decode)?),
            Self::Fidelity(text) => {
                Box::new(Fidelity::new(model, &text, &windows, args.generated)?)
            }
            Self::Needle => {
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
            Self::LongBench(files) => Box::new(LongBench::new(model, files)?),
            Self::Ruler(texts) => Box::new(Ruler::new(model, *texts)?),
            Self::Prompts(files) => Box::new(Prompts::new(model, files)?),
        })
    }
}

fn needed<'a, T>(value: &'a Option<T>, flag: &str, allowed: &str) -> Result<&'a T> {
    let missing = || Error::invalid("command line", flag, "missing", allowed);
    value.as_ref().ok_or_else(missing)
}

fn prompt_options(args: &SampleArgs) -> PromptOptions {
    PromptOptions {
        limit: args.limit,
        only: args.only.clone(),
        max_length: args.max_length,
        max_new_tokens: args.max_new_tokens,
        question_after: args.question_after,
        raw: args.raw,
    }
}

fn ruler_options(args: &SampleArgs) -> RulerOptions {
    let source = args.template.as_ref().zip(args.haystack.as_ref());
    RulerOptions {
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
    }
}
