//! Anyone's own prompts: one JSON object per line, and which fields hold what.

use super::lines::{self, Line};
use super::longbench::{self, PromptOptions, at};
use super::metrics::Metric;
use super::question::{Question, Rule, fingerprint_of, infos};
use super::{Evaluator, Prediction, SampleInfo, Task, sample_of};
use crate::LoadedModel;
use crate::texts::frame::{Frame, Parts};
use crate::tokenizer::Specials;
use polykv_core::{Error, Result};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

/// The names of the fields in a line of JSON. A prompt is the text of `prompt` and, after a blank line, the text of
/// `question`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldMap {
    /// The field with the text of the prompt.
    pub prompt: String,
    /// The field with the references: a text or a list of texts, any of which is right.
    pub answers: String,
    /// The field with the question, if it is separate from the prompt.
    pub question: Option<String>,
    /// The field with the start of the answer, which is given to the model.
    pub prefix: Option<String>,
    /// The field with the name of the task. Without it a task is named after its file.
    pub task: Option<String>,
    /// The field with the classes, for the metric `classification`.
    pub classes: Option<String>,
}

/// How answers are written and scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scorer {
    /// One metric for all tasks.
    Metric(Metric),
    /// The rules that LongBench has for the task of the same name: metric, generation limit, use of the chat template,
    /// and whether an answer ends at a line break.
    LongBench,
}

/// Options of prompts from a user's own files.
#[derive(Clone, Debug)]
pub struct PromptsOptions {
    /// The fields of a line.
    pub map: FieldMap,
    /// How answers are scored.
    pub scorer: Scorer,
    /// How prompts are made.
    pub prompts: PromptOptions,
}

/// Greedy answers to the prompts of a file or folder, scored from 0 to 1.
#[derive(Debug)]
pub struct Prompts {
    questions: Vec<Question>,
}

impl FromStr for FieldMap {
    type Err = String;

    /// `prompt=F,answers=G` and optionally `question`, `prefix`, `task` and `classes`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut parts: Vec<(&str, String)> = Vec::new();
        for part in text.split(',') {
            let (name, field) = part.split_once('=').unwrap_or((part, ""));
            if field.is_empty() || parts.iter().any(|(other, _)| *other == name) {
                return Err(format!("'{part}' is not NAME=FIELD with each name once"));
            }
            parts.push((name, field.to_string()));
        }
        let mut take = |name: &str| {
            let at = parts.iter().position(|(other, _)| *other == name)?;
            Some(parts.remove(at).1)
        };
        let (prompt, answers) = (take("prompt"), take("answers"));
        let map = (prompt.zip(answers)).map(|(prompt, answers)| Self {
            prompt,
            answers,
            question: take("question"),
            prefix: take("prefix"),
            task: take("task"),
            classes: take("classes"),
        });
        match (map, parts.first()) {
            (Some(map), None) => Ok(map),
            (None, _) => Err(format!("'{text}' lacks prompt= or answers=")),
            (_, Some((name, _))) => Err(format!(
                "'{name}' is none of prompt, answers, question, prefix, task, classes"
            )),
        }
    }
}

impl FromStr for Scorer {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "longbench" => Ok(Self::LongBench),
            _ => Metric::from_str(text)
                .map(Self::Metric)
                .map_err(|message| format!("{message}, longbench")),
        }
    }
}

/// Files of prompts, read and checked before a model is loaded.
#[derive(Debug)]
pub struct PromptFiles {
    samples: Vec<(Line, Sample)>,
    options: PromptOptions,
}

impl PromptFiles {
    /// Reads a file, or all files `*.jsonl` of a folder.
    ///
    /// # Errors
    /// A bad line, by file and line; limits of zero; tasks that are asked for and not there.
    pub fn read(path: &Path, options: &PromptsOptions) -> Result<Self> {
        options.prompts.check()?;
        let mut samples: Vec<(Line, Sample)> = Vec::new();
        let most = options.prompts.limit.unwrap_or(usize::MAX);
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for file in lines::files(path)? {
            let name = file.file_stem().unwrap_or_default().to_string_lossy();
            for line in lines::read(&file)? {
                let sample = Sample::read(&name, &line, options)?;
                let only = &options.prompts.only;
                let count = counts.entry(sample.task.clone()).or_default();
                if (only.is_empty() || only.contains(&sample.task)) && *count < most {
                    *count = count.saturating_add(1);
                    samples.push((line, sample));
                }
            }
        }
        for task in &options.prompts.only {
            if !counts.contains_key(task) {
                let found = format!("'{task}'");
                let allowed = "a task of the files";
                return Err(Error::invalid(path.display(), "task", found, allowed));
            }
        }
        Ok(Self {
            samples,
            options: options.prompts.clone(),
        })
    }
}

impl Prompts {
    /// The prompts of the files for a model.
    ///
    /// # Errors
    /// A prompt that cannot be made within the limits.
    pub fn new(model: &LoadedModel, files: PromptFiles) -> Result<Self> {
        let PromptFiles { samples, options } = files;
        let questions = samples
            .into_par_iter()
            .map(|(line, sample)| sample.ask(model, line, &options))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { questions })
    }
}

impl Task for Prompts {
    fn name(&self) -> &str {
        "prompts"
    }

    fn samples(&self) -> Vec<SampleInfo> {
        infos(&self.questions)
    }

    fn fingerprint(&self) -> String {
        fingerprint_of(&self.questions)
    }

    fn run(&self, sample: usize, evaluator: &Evaluator<'_>) -> Result<Vec<Prediction>> {
        sample_of(&self.questions, sample)?.run(sample, evaluator)
    }
}

/// A line, read.
#[derive(Debug)]
struct Sample {
    task: String,
    prompt: String,
    question: String,
    prefix: String,
    answers: Vec<String>,
    classes: Vec<String>,
    rule: Rule,
    raw: bool,
}

impl Sample {
    fn read(file: &str, line: &Line, options: &PromptsOptions) -> Result<Self> {
        let map = &options.map;
        let field = |name: &Option<String>| match name {
            Some(name) => line.text(name).map(String::from),
            None => Ok(String::new()),
        };
        let task = match &map.task {
            Some(_) => field(&map.task)?,
            None => file.to_string(),
        };
        let tokens = options.prompts.max_new_tokens;
        let (rule, raw) = match options.scorer {
            Scorer::LongBench => {
                let tokens = tokens.or(longbench::new_tokens(&task)).unwrap_or(128);
                let rule = longbench::rule(&task, tokens).ok_or_else(|| {
                    let allowed = "one of LongBench's 21 tasks, whose rules are asked for";
                    Error::invalid(&line.place, "task", format!("'{task}'"), allowed)
                })?;
                (rule, !longbench::uses_chat(&task))
            }
            Scorer::Metric(metric) => {
                let rule = Rule {
                    metric,
                    max_new_tokens: tokens.unwrap_or(128),
                    first_line: false,
                    ends_at_newline: false,
                };
                (rule, false)
            }
        };
        let prompt = line.text(&map.prompt)?;
        if prompt.trim().is_empty() {
            let allowed = "at least one word";
            return Err(Error::invalid(&line.place, &map.prompt, "empty", allowed));
        }
        let answers = line.texts(&map.answers)?;
        let classes = match (&map.classes, rule.metric.needs_classes()) {
            (Some(name), true) => line.texts(name)?,
            (None, true) => {
                let allowed = "a field with the classes, which classification needs";
                return Err(Error::invalid("map", "classes", "missing", allowed));
            }
            (_, false) => Vec::new(),
        };
        rule.metric.check(&line.place, &answers, &classes)?;
        let question = field(&map.question)?;
        if options.prompts.question_after && question.is_empty() {
            let allowed = "a field with the question, which is to come after the prompt";
            return Err(Error::invalid(&line.place, "question", "missing", allowed));
        }
        Ok(Self {
            task,
            prompt: prompt.into(),
            question: match question.is_empty() {
                true => question,
                false => format!("\n\n{question}"),
            },
            prefix: field(&map.prefix)?,
            answers,
            classes,
            rule,
            raw,
        })
    }

    fn ask(self, model: &LoadedModel, line: Line, options: &PromptOptions) -> Result<Question> {
        let (limits, length) = options.limits(model, self.rule.max_new_tokens)?;
        let frame = Frame {
            model,
            raw: options.raw || self.raw,
            question_after: options.question_after,
        };
        let lead_in = model.tokenizer.encode(&self.prefix, Specials::AsText)?;
        let parts = Parts {
            context: &self.prompt,
            question: &self.question,
            lead_in: &lead_in,
        };
        Ok(Question {
            framed: frame
                .fit(parts, limits)
                .map_err(|error| at(&line.place, error))?,
            id: line.id,
            task: self.task,
            length,
            rule: self.rule,
            answers: self.answers,
            classes: self.classes,
        })
    }
}
