//! LongBench v1 (Bai et al. 2023, arXiv 2308.14508): 21 tasks from the benchmark's own folder.

mod rules;
mod template;

pub(super) use rules::{new_tokens, rule, rule_of, uses_chat};

use super::fit::Limits;
use super::lines::{self, Line};
use super::question::{Question, Rule, fingerprint_of, infos};
use super::{Evaluator, Prediction, SampleInfo, Task, sample_of};
use crate::LoadedModel;
use crate::texts::draw::check_counts;
use crate::texts::frame::{Frame, Parts};
use polykv_core::{Error, Result, files};
use rayon::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use template::Template;

/// A config file above this size is refused.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Options for prompts from files.
#[derive(Clone, Debug, Default)]
pub struct PromptOptions {
    /// The first so many samples of each task; `None` takes all.
    pub limit: Option<usize>,
    /// The tasks to run; empty runs all.
    pub only: Vec<String>,
    /// The most tokens of a prompt's text. Of a longer text the start and the end are kept, half of the limit each.
    /// `None` is what the model's context leaves beside template and answer.
    pub max_length: Option<usize>,
    /// The most tokens of an answer. It can only lower the limits of LongBench's tasks; for other prompts it replaces
    /// the default of 128.
    pub max_new_tokens: Option<usize>,
    /// Whether the question runs over the compressed text instead of being part of it.
    pub question_after: bool,
    /// Whether prompts are fed without the model's chat template, where a task's rule does not say so anyway.
    pub raw: bool,
}

impl PromptOptions {
    /// # Errors
    /// A limit of zero.
    pub(super) fn check(&self) -> Result<()> {
        for (field, given) in [("limit", self.limit), ("new tokens", self.max_new_tokens)] {
            if let Some(count) = given {
                check_counts(&[(field, count)])?;
            }
        }
        Ok(())
    }

    /// The limits of a prompt whose answer has at most `new_tokens` tokens, and the length that was asked for.
    ///
    /// # Errors
    /// A text that cannot fit the model's context, with the numbers.
    pub(super) fn limits(&self, model: &LoadedModel, new_tokens: usize) -> Result<(Limits, usize)> {
        let context = model.model.config().max_positions;
        let all = context.saturating_sub(new_tokens);
        if let Some(most) = self.max_length
            && !(2..=all).contains(&most)
        {
            let allowed = format!(
                "2 to {all}, the model's context of {context} less {new_tokens} new tokens"
            );
            return Err(Error::invalid("evaluation", "max-length", most, allowed));
        }
        let limits = Limits {
            text: self.max_length,
            all,
        };
        Ok((limits, self.max_length.unwrap_or(context)))
    }
}

/// LongBench v1 (Bai et al. 2023, arXiv 2308.14508). Greedy answers are scored from 0 to 1 by the rules of the
/// benchmark's own scorer. Templates and generation limits are read from the benchmark's folder. The question is part
/// of the compressed prompt; with [`PromptOptions::question_after`] everything that the template has behind the context
/// runs over the compressed cache instead.
#[derive(Debug)]
pub struct LongBench {
    questions: Vec<Question>,
}

/// The files of a LongBench folder, read and checked before a model is loaded.
#[derive(Debug)]
pub struct LongBenchFiles {
    samples: Vec<(Line, Sample, Template, Rule)>,
    options: PromptOptions,
}

impl LongBenchFiles {
    /// Reads `folder/*.jsonl` or `folder/data/*.jsonl`, one file per task, and `folder/config/dataset2prompt.json` and
    /// `dataset2maxlen.json`. Files of other names are left out.
    ///
    /// # Errors
    /// What is missing, with where LongBench keeps it; a bad line, by file and line.
    pub fn read(folder: &Path, options: &PromptOptions) -> Result<Self> {
        options.check()?;
        let config = Config::read(folder)?;
        let mut samples = Vec::new();
        for (task, file) in tasks(folder, &options.only)? {
            let (template, mut rule) = config.of(&task)?;
            let shorter = options.max_new_tokens.unwrap_or(usize::MAX);
            rule.max_new_tokens = rule.max_new_tokens.min(shorter);
            let most = options.limit.unwrap_or(usize::MAX);
            // All lines are checked, whatever the limit.
            for (index, line) in lines::read(&file)?.into_iter().enumerate() {
                let sample = Sample::read(&task, &line)?;
                rule.metric
                    .check(&line.place, &sample.answers, &sample.classes)?;
                if index < most {
                    samples.push((line, sample, template.clone(), rule));
                }
            }
        }
        Ok(Self {
            samples,
            options: options.clone(),
        })
    }
}

impl LongBench {
    /// The prompts of the files for a model.
    ///
    /// # Errors
    /// A prompt that cannot be made.
    pub fn new(model: &LoadedModel, files: LongBenchFiles) -> Result<Self> {
        let LongBenchFiles { samples, options } = files;
        let questions = samples
            .into_par_iter()
            .map(|(line, sample, template, rule)| {
                let (limits, length) = options.limits(model, rule.max_new_tokens)?;
                let frame = Frame {
                    model,
                    raw: options.raw || !uses_chat(&sample.task),
                    question_after: options.question_after,
                };
                let (context, question) = template.fill(&sample.context, &sample.input);
                let parts = Parts {
                    context: &context,
                    question: &question,
                    lead_in: &[],
                };
                let framed = frame
                    .fit(parts, limits)
                    .map_err(|error| at(&line.place, error))?;
                Ok(Question {
                    id: line.id,
                    task: sample.task,
                    length,
                    framed,
                    rule,
                    answers: sample.answers,
                    classes: sample.classes,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { questions })
    }
}

impl Task for LongBench {
    fn name(&self) -> &str {
        "longbench"
    }

    fn samples(&self) -> Vec<SampleInfo> {
        infos(&self.questions)
    }

    fn fingerprint(&self) -> String {
        fingerprint_of(&self.questions)
    }

    fn sets(&self) -> Vec<(String, Vec<String>)> {
        rules::sets()
    }

    fn run(&self, sample: usize, evaluator: &Evaluator<'_>) -> Result<Vec<Prediction>> {
        sample_of(&self.questions, sample)?.run(sample, evaluator)
    }
}

/// A refusal's place, where it is about one line.
pub(super) fn at(place: &str, error: Error) -> Error {
    match error {
        Error::Invalid {
            field,
            found,
            allowed,
            ..
        } => Error::invalid(place, field, found, allowed),
        other => other,
    }
}

/// A line of a task's file.
#[derive(Debug)]
struct Sample {
    task: String,
    context: String,
    input: String,
    answers: Vec<String>,
    classes: Vec<String>,
}

impl Sample {
    fn read(task: &str, line: &Line) -> Result<Self> {
        if let Some(other) = line.optional("dataset")?
            && other != task
        {
            let found = format!("'{other}'");
            let allowed = format!("'{task}', as the file is named");
            return Err(Error::invalid(&line.place, "dataset", found, allowed));
        }
        let classes = match rule_of(task).is_some_and(|metric| metric.needs_classes()) {
            true => line.texts("all_classes")?,
            false => Vec::new(),
        };
        Ok(Self {
            task: task.into(),
            context: line.text("context")?.into(),
            input: line.text("input")?.into(),
            answers: line.texts("answers")?,
            classes,
        })
    }
}

/// The tasks' files, in LongBench's order.
fn tasks(folder: &Path, only: &[String]) -> Result<Vec<(String, PathBuf)>> {
    if let Some(name) = only.iter().find(|name| rule_of(name).is_none()) {
        let found = format!("'{name}'");
        let known: Vec<&str> = rules::names().collect();
        let allowed = known.join(", ");
        return Err(Error::invalid("evaluation", "task", found, allowed));
    }
    let file = |name: &str| {
        let beside = folder.join(format!("{name}.jsonl"));
        let inside = folder.join("data").join(format!("{name}.jsonl"));
        [beside, inside].into_iter().find(|path| path.is_file())
    };
    let mut found = Vec::new();
    for name in rules::names() {
        let wanted = only.is_empty() || only.iter().any(|one| one == name);
        match file(name) {
            Some(file) if wanted => found.push((name.to_string(), file)),
            None if wanted && !only.is_empty() => {
                let missing = format!("no {name}.jsonl");
                return Err(missing_data(folder, &missing));
            }
            _ => {}
        }
    }
    match found.is_empty() {
        true => Err(missing_data(folder, "none of the tasks' files")),
        false => Ok(found),
    }
}

fn missing_data(folder: &Path, found: &str) -> Error {
    let allowed = "LongBench's data, one file per task such as hotpotqa.jsonl, here or in data/: \
                   data.zip of the dataset THUDM/LongBench";
    Error::invalid(folder.display(), "files", found, allowed)
}

/// LongBench's own templates and limits.
struct Config {
    folder: PathBuf,
    prompts: BTreeMap<String, Value>,
    lengths: BTreeMap<String, Value>,
}

impl Config {
    fn read(folder: &Path) -> Result<Self> {
        let config = folder.join("config");
        let read = |name: &str| {
            let path = config.join(name);
            let place = path.display();
            if !path.exists() {
                let allowed = "LongBench's own file: folder LongBench/config of its repository, THUDM/LongBench";
                return Err(Error::invalid(place, "file", "missing", allowed));
            }
            let text = files::read_capped_text(&path, MAX_CONFIG_BYTES)?;
            serde_json::from_str(&text).map_err(|e| {
                let found = format!("not one ({e})");
                Error::invalid(place, "content", found, "a JSON object by task")
            })
        };
        Ok(Self {
            prompts: read("dataset2prompt.json")?,
            lengths: read("dataset2maxlen.json")?,
            folder: config,
        })
    }

    /// A task's template and rule.
    fn of(&self, task: &str) -> Result<(Template, Rule)> {
        let place = |file: &str| self.folder.join(file).display().to_string();
        let prompts = place("dataset2prompt.json");
        let Some(text) = self.prompts.get(task).and_then(Value::as_str) else {
            return Err(Error::invalid(prompts, task, "no text", "a template"));
        };
        let template = Template::parse(&prompts, task, text)?;
        let length = self.lengths.get(task).and_then(Value::as_u64);
        let Some(length) = length.filter(|length| (1..=1 << 20).contains(length)) else {
            let found = self
                .lengths
                .get(task)
                .map_or("missing".into(), Value::to_string);
            let place = place("dataset2maxlen.json");
            return Err(Error::invalid(place, task, found, "1 to 1048576 tokens"));
        };
        let rule = rules::rule(task, length as usize).ok_or_else(|| {
            let found = "without a metric";
            Error::invalid("evaluation", task, found, "one of LongBench's tasks")
        })?;
        Ok((template, rule))
    }
}
