//! RULER (Hsieh et al. 2024, arXiv 2404.06654): 13 synthetic tasks at any length.

mod builtin;
#[allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "made of lists that are not empty, at sizes that the prompt's length bounds"
)]
mod niah;
#[allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "made of lists that are not empty, at sizes that the prompt's length bounds"
)]
mod qa;
mod source;
mod texts;
#[allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "made of lists that are not empty, at sizes that the prompt's length bounds"
)]
mod tracking;
#[allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "made of lists that are not empty, at sizes that the prompt's length bounds"
)]
mod words;

use super::metrics::Metric;
use super::question::{Question, Rule, fingerprint_of, infos};
use super::{Evaluator, Prediction, SampleInfo, Task, sample_of};
use crate::LoadedModel;
use crate::texts::draw::{check_counts, check_length};
use crate::texts::frame::{Frame, Parts};
use crate::tokenizer::Specials;
use polykv_core::{Error, Result};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rayon::prelude::*;
use std::path::PathBuf;
use texts::Texts;

const NAMES: [&str; 13] = [
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
    "qa_1",
    "qa_2",
];

/// Sentences, words and the like have a token each, but for words that are left out by rounding.
const MOST_PER_TOKEN: usize = 16;

/// Options of RULER.
#[derive(Clone, Debug)]
pub struct RulerOptions {
    /// Lengths of prompt and answer together, in tokens.
    pub lengths: Vec<usize>,
    /// The tasks to run; all 13 if empty.
    pub only: Vec<String>,
    /// Samples per task and length.
    pub limit: usize,
    /// Seed of the words, numbers and texts.
    pub seed: u64,
    /// Whether the start of the answer is given to the model, as RULER does.
    pub answer_prefix: bool,
    /// Whether the question, and the start of the answer with it, runs over the compressed text instead of being part
    /// of what is compressed.
    pub question_after: bool,
    /// Whether the text is fed without the model's chat template.
    pub raw: bool,
    /// A copy of RULER, whose templates and texts are used. Without it built-in ones are used, and the scores cannot be
    /// compared with published ones.
    pub source: Option<RulerSource>,
}

/// A user's copy of RULER.
#[derive(Clone, Debug)]
pub struct RulerSource {
    /// The repository, or its folder scripts/data/synthetic.
    pub folder: PathBuf,
    /// The text that needles are hidden in: plain, or a JSON object with the text under `text`.
    pub haystack: PathBuf,
}

/// RULER (Hsieh et al. 2024, arXiv 2404.06654). Greedy answers are scored from 0 to 1: by the share of the references
/// that the answer contains, or for `qa_1` and `qa_2` by whether it contains any.
#[derive(Debug)]
pub struct Ruler {
    questions: Vec<Question>,
    genuine: bool,
}

/// A prompt's text.
struct Draft {
    /// Up to where the question starts.
    context: String,
    question: String,
    /// The start of the answer.
    lead_in: String,
    answers: Vec<String>,
}

/// The material of one sample of a task.
struct Maker<'a> {
    task: &'static str,
    texts: &'a Texts,
    /// Tokens of prompt and answer together.
    length: usize,
    /// Index of the sample.
    index: usize,
    seed: u64,
}

/// The words and templates of the tasks, read and checked before a model is loaded.
#[derive(Debug)]
pub struct RulerTexts {
    texts: Texts,
    tasks: Vec<&'static str>,
    options: RulerOptions,
}

impl RulerTexts {
    /// Reads the words and templates of the tasks: those of a copy of RULER, or the built-in ones.
    ///
    /// # Errors
    /// An unknown task; counts of zero; a copy of RULER that lacks something, by file.
    pub fn read(options: &RulerOptions) -> Result<Self> {
        check_counts(&[
            ("limit", options.limit),
            ("number of lengths", options.lengths.len()),
        ])?;
        if let Some(name) = options
            .only
            .iter()
            .find(|one| !NAMES.contains(&one.as_str()))
        {
            let found = format!("'{name}'");
            return Err(Error::invalid(
                "evaluation",
                "task",
                found,
                NAMES.join(", "),
            ));
        }
        let wanted =
            |name: &&str| options.only.is_empty() || options.only.iter().any(|one| one == name);
        let tasks: Vec<&'static str> = NAMES.iter().copied().filter(|name| wanted(name)).collect();
        let texts = match &options.source {
            Some(source) => Texts::read(source, &tasks)?,
            None => builtin::texts(options.seed),
        };
        Ok(Self {
            texts,
            tasks,
            options: options.clone(),
        })
    }
}

impl Ruler {
    /// The prompts for a model.
    ///
    /// # Errors
    /// Lengths beyond the model's context or too short for a task.
    pub fn new(model: &LoadedModel, texts: RulerTexts) -> Result<Self> {
        let RulerTexts {
            texts,
            tasks,
            options,
        } = texts;
        let context = model.model.config().max_positions;
        for &length in &options.lengths {
            check_length(length, 0, context)?;
        }
        let mut makers = Vec::new();
        for &length in &options.lengths {
            for &task in &tasks {
                makers.extend((0..options.limit).map(|index| Maker {
                    task,
                    texts: &texts,
                    length,
                    index,
                    seed: options.seed,
                }));
            }
        }
        let frame = Frame {
            model,
            raw: options.raw,
            question_after: options.question_after,
        };
        let questions = makers
            .par_iter()
            .map(|maker| maker.question(frame, options.answer_prefix))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            questions,
            genuine: options.source.is_some(),
        })
    }
}

impl Task for Ruler {
    fn name(&self) -> &str {
        match self.genuine {
            true => "ruler",
            false => "ruler-style",
        }
    }

    fn samples(&self) -> Vec<SampleInfo> {
        infos(&self.questions)
    }

    fn fingerprint(&self) -> String {
        fingerprint_of(&self.questions)
    }

    fn sets(&self) -> Vec<(String, Vec<String>)> {
        let of = |range: std::ops::Range<usize>| {
            let names = NAMES.get(range).unwrap_or_default().iter();
            names.map(ToString::to_string).collect()
        };
        [
            ("retrieval", of(0..8)),
            ("multi-hop tracing", of(8..9)),
            ("aggregation", of(9..11)),
            ("question answering", of(11..13)),
            ("13 tasks", of(0..13)),
        ]
        .map(|(name, tasks)| (name.to_string(), tasks))
        .into()
    }

    fn run(&self, sample: usize, evaluator: &Evaluator<'_>) -> Result<Vec<Prediction>> {
        sample_of(&self.questions, sample)?.run(sample, evaluator)
    }
}

impl Maker<'_> {
    /// The largest prompt that fits.
    fn question(&self, frame: Frame<'_>, answer_prefix: bool) -> Result<Question> {
        let rule = Rule {
            metric: match self.task {
                "qa_1" | "qa_2" => Metric::Substring,
                _ => Metric::SubstringAll,
            },
            max_new_tokens: self.texts.wording(self.task).new_tokens,
            first_line: false,
            ends_at_newline: false,
        };
        let make = |size: usize| -> Result<_> {
            let draft = self.draft(size)?;
            let lead_in = match answer_prefix {
                true => frame
                    .model
                    .tokenizer
                    .encode(&draft.lead_in, Specials::AsText)?,
                false => Vec::new(),
            };
            let framed = frame.encode(Parts {
                context: &draft.context,
                question: &draft.question,
                lead_in: &lead_in,
            })?;
            let prompt = framed.prompt.len().saturating_add(framed.after.len());
            let tokens = prompt.saturating_add(rule.max_new_tokens);
            Ok((tokens, framed, draft.answers))
        };
        let least = self.least();
        let mut best = make(least)?;
        if best.0 > self.length {
            let place = format!("evaluation of {}", self.task);
            let allowed = format!("at least {}, the shortest prompt and its answer", best.0);
            return Err(Error::invalid(place, "length", self.length, allowed));
        }
        // Sizes are bounded by what a doubled size shows, then halved in between. Without a limit, a tokenizer that drops
        // text would let them grow for good.
        let most = self.length.saturating_mul(MOST_PER_TOKEN);
        let (mut fits, mut step) = (least, 16_usize);
        let mut too_much: Option<usize> = None;
        loop {
            let room = too_much.map(|bound| bound.saturating_sub(fits));
            let size = match room {
                Some(0 | 1) => break,
                Some(room) => fits.saturating_add(room / 2),
                None => fits.saturating_add(step),
            };
            step = step.saturating_mul(2);
            match make(size)? {
                found if found.0 <= self.length && size <= most => (fits, best) = (size, found),
                _ => too_much = Some(size),
            }
        }
        let (_, framed, answers) = best;
        Ok(Question {
            id: format!("{}@{}#{}", self.task, self.length, self.index),
            task: self.task.into(),
            length: self.length,
            framed,
            rule,
            answers,
            classes: Vec::new(),
        })
    }

    /// The same words for all sizes and lengths, as far as they are in both.
    fn rng(&self) -> StdRng {
        let task = NAMES
            .iter()
            .position(|name| *name == self.task)
            .unwrap_or(0);
        let sample = (task as u64) << 32 | self.index as u64;
        StdRng::seed_from_u64(self.seed ^ sample.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The smallest size at which the answer has room.
    fn least(&self) -> usize {
        match self.task {
            "vt" => tracking::LINES,
            "cwe" => words::COMMON,
            "fwe" => words::LEAST_CODED,
            "qa_1" | "qa_2" => qa::least(self),
            _ => niah::least(self.task),
        }
    }

    fn draft(&self, size: usize) -> Result<Draft> {
        match self.task {
            "vt" => Ok(tracking::draft(self, size)),
            "cwe" => words::common(self, size),
            "fwe" => Ok(words::frequent(self, size)),
            "qa_1" | "qa_2" => Ok(qa::draft(self, size)),
            _ => Ok(niah::draft(self, size)),
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests;
