//! A number hidden in a long text, and the question for it.

use super::windows::id;
use super::{Evaluator, Prediction, SampleInfo, Task, fingerprint, id_bytes, metrics, sample_of};
use crate::LoadedModel;
use crate::texts::draw::{check_counts, check_length};
use crate::texts::haystack::Haystack;
use crate::tokenizer::Specials;
use polykv_core::{Error, KvCache, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Tokens that an answer may have beyond its number and, where the model has to write it, the lead-in.
const SPARE: usize = 8;

/// Made-up places that a number can belong to.
const PLACES: [&str; 12] = [
    "Orlenby",
    "Tessmark",
    "Kilvara",
    "Brenholt",
    "Ashmoor",
    "Dunwick",
    "Farrowby",
    "Halsten",
    "Mirefield",
    "Norrigan",
    "Pellworth",
    "Quarrington",
];

/// Options of the needle task.
#[derive(Clone, Debug)]
pub struct NeedleOptions {
    /// Lengths of the compressed prompt, in tokens. A prompt ends at the last sentence that fits.
    pub lengths: Vec<usize>,
    /// Places of the needle in the text, from 0 (start) to 1 (end).
    pub depths: Vec<f64>,
    /// Samples per length and depth.
    pub limit: usize,
    /// Whether the start of the answer ("The special magic number for … is ") is given to the model. It makes the last
    /// query of the prompt point at the needle, which favours policies that follow the last query.
    pub answer_prefix: bool,
    /// Whether the question, and the start of the answer with it, runs over the compressed text instead of being part
    /// of what is compressed.
    pub question_after: bool,
    /// Whether the answer's likelihood is measured token by token under the decode rules. Otherwise it is measured in
    /// one pass that evicts nothing.
    pub decode: bool,
    /// Whether the text is fed without the model's chat template.
    pub raw: bool,
    /// Whether the greedy answer is generated; without it only the likelihood is measured.
    pub generate: bool,
    /// Seed of the words, numbers and texts.
    pub seed: u64,
}

/// The needle task: a number is hidden in a long text, and a question asks for it. Its scores are `exact`, 1 if the
/// first number in the greedy answer is the hidden one, and `nll`, the mean negative log-likelihood of the hidden
/// number's tokens after the start of the answer. `exact` is absent if no answer is generated.
#[derive(Debug)]
pub struct Needle {
    samples: Vec<Sample>,
    decode: bool,
    generate: bool,
}

#[derive(Debug)]
struct Sample {
    length: usize,
    depth: f64,
    number: String,
    /// Token ids of the compressed prompt.
    prompt: Vec<u32>,
    /// Token ids that run over the compressed cache before the answer.
    after: Vec<u32>,
    /// The start of the answer, if the model is not given it.
    lead_in: Vec<u32>,
    answer: Vec<u32>,
}

impl Needle {
    /// The samples for a model.
    ///
    /// # Errors
    /// Depths outside 0 to 1; lengths too short for the question or beyond the model's context.
    pub fn new(model: &LoadedModel, options: &NeedleOptions) -> Result<Self> {
        check_counts(&[
            ("limit", options.limit),
            ("number of lengths", options.lengths.len()),
            ("number of depths", options.depths.len()),
        ])?;
        if let Some(depth) = options.depths.iter().find(|d| !(0.0..=1.0).contains(*d)) {
            return Err(Error::invalid("evaluation", "depth", depth, "0 to 1"));
        }
        let context = model.model.config().max_positions;
        let seeds: Vec<u64> = StdRng::seed_from_u64(options.seed)
            .random_iter()
            .take(options.limit)
            .collect();
        let mut samples = Vec::new();
        for &length in &options.lengths {
            check_length(length, 0, context)?;
            for &depth in &options.depths {
                for &seed in &seeds {
                    let sample = Sample::make(model, options, length, depth, seed)?;
                    check_length(length, sample.more(), context)?;
                    samples.push(sample);
                }
            }
        }
        Ok(Self {
            samples,
            decode: options.decode,
            generate: options.generate,
        })
    }
}

impl Sample {
    /// The words depend on the seed alone, so that lengths and depths differ in nothing else.
    fn make(
        model: &LoadedModel,
        options: &NeedleOptions,
        length: usize,
        depth: f64,
        seed: u64,
    ) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let place = PLACES.get(rng.random_range(0..PLACES.len()));
        let place = place.copied().unwrap_or_default();
        let number = rng.random_range(100_000..1_000_000u32).to_string();
        let encode = |text: &str| model.tokenizer.encode(text, Specials::AsText);
        let lead_in = encode(&format!("The special magic number for {place} is "))?;
        let question = format!("What is the special magic number for {place}?");
        let needle = format!("The special magic number for {place} is {number}.");

        let haystack = Haystack {
            length,
            raw: options.raw,
            question_after: options.question_after,
        };
        let prefix = match options.answer_prefix {
            true => &lead_in[..],
            false => &[],
        };
        let facts = [(depth, needle)];
        let (prompt, after) = haystack.around(model, &mut rng, &facts, &question, prefix)?;
        Ok(Self {
            length,
            depth,
            answer: encode(&number)?,
            number,
            prompt,
            after,
            lead_in: match options.answer_prefix {
                true => Vec::new(),
                false => lead_in,
            },
        })
    }

    /// Tokens that may be run after the prompt.
    fn more(&self) -> usize {
        self.after.len().saturating_add(self.longest_answer())
    }

    fn longest_answer(&self) -> usize {
        let answer = self.lead_in.len().saturating_add(self.answer.len());
        answer.saturating_add(SPARE)
    }

    /// Per plan the mean over the number's tokens, the lead-in before them.
    fn answer_nlls(
        &self,
        evaluator: &Evaluator<'_>,
        nexts: &[Vec<f32>],
        caches: &mut [KvCache],
        decode: bool,
    ) -> Result<Vec<f64>> {
        let tokens = [&self.lead_in[..], &self.answer].concat();
        let nlls = evaluator.nlls(nexts, caches, &tokens, decode)?;
        let of_answer = |nlls: &Vec<f64>| {
            let nlls = nlls.get(self.lead_in.len()..);
            metrics::mean(nlls.unwrap_or_default())
        };
        Ok(nlls.iter().map(of_answer).collect())
    }
}

impl Task for Needle {
    fn name(&self) -> &str {
        "needle"
    }

    fn samples(&self) -> Vec<SampleInfo> {
        let samples = self.samples.iter().enumerate();
        samples
            .map(|(index, sample)| SampleInfo {
                id: id(self.name(), index),
                task: self.name().into(),
                prompt_tokens: sample.prompt.len(),
            })
            .collect()
    }

    fn fingerprint(&self) -> String {
        let samples = self.samples.iter();
        let parts = samples.flat_map(|sample| {
            [
                &sample.prompt,
                &sample.after,
                &sample.lead_in,
                &sample.answer,
            ]
        });
        let parts: Vec<Vec<u8>> = parts.map(|ids| id_bytes(ids)).collect();
        fingerprint(parts.iter().map(Vec::as_slice))
    }

    fn run(&self, index: usize, evaluator: &Evaluator<'_>) -> Result<Vec<Prediction>> {
        let sample = sample_of(&self.samples, index)?;
        let mut prompted = evaluator.prefill(&sample.prompt)?;
        let held = prompted.held()?;
        let nexts = evaluator.after(&mut prompted, &sample.after)?;
        let answers = match self.generate {
            true => {
                let (mut copies, most) = (prompted.caches.clone(), sample.longest_answer());
                let stops = &evaluator.model().eos_tokens;
                let answers = evaluator.greedy(&nexts, &mut copies, most, stops)?;
                answers.into_iter().map(Some).collect()
            }
            false => vec![None; held.len()],
        };
        let nlls = sample.answer_nlls(evaluator, &nexts, &mut prompted.caches, self.decode)?;
        let plans = evaluator.plans().iter().zip(held).zip(nlls);
        plans
            .zip(answers)
            .map(|(((candidate, mut scores), nll), answer)| {
                scores.insert("nll".into(), nll);
                let mut new_tokens = 0;
                let mut output = None;
                if let Some(tokens) = answer {
                    let text = evaluator.model().tokenizer.decode(&tokens, true)?;
                    let exact = metrics::first_number(&text) == Some(&sample.number);
                    scores.insert("exact".into(), f64::from(u8::from(exact)));
                    new_tokens = tokens.len();
                    output = Some(text);
                }
                Ok(Prediction {
                    task: self.name().into(),
                    metric: match self.generate {
                        true => "exact".into(),
                        false => "nll".into(),
                    },
                    sample: index,
                    id: id(self.name(), index),
                    plan: candidate.name.clone(),
                    length: sample.length,
                    prompt_tokens: sample.prompt.len(),
                    truncated: false,
                    depth: Some(sample.depth),
                    scores,
                    new_tokens,
                    output,
                    answers: vec![sample.number.clone()],
                })
            })
            .collect()
    }
}
