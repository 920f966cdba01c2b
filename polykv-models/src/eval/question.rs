//! A prompt with a question, whose greedy answer is compared with references.

use super::metrics::Metric;
use super::{Evaluator, Prediction, Prompted, SampleInfo, fingerprint, id_bytes};
use crate::texts::frame::Framed;
use polykv_core::Result;

/// How an answer is written and scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub metric: Metric,
    pub max_new_tokens: usize,
    /// Whether only the first line is scored.
    pub first_line: bool,
    /// Whether the answer also ends at a line break, after at least one token.
    pub ends_at_newline: bool,
}

/// One sample of a task.
#[derive(Debug)]
pub(super) struct Question {
    pub id: String,
    pub task: String,
    /// The most tokens that were asked for.
    pub length: usize,
    pub framed: Framed,
    pub rule: Rule,
    pub answers: Vec<String>,
    /// The classes, where the answer is one of several.
    pub classes: Vec<String>,
}

impl Question {
    fn info(&self) -> SampleInfo {
        SampleInfo {
            id: self.id.clone(),
            task: self.task.clone(),
            prompt_tokens: self.framed.prompt.len(),
        }
    }

    /// One prediction per plan, FullKV first.
    ///
    /// # Errors
    /// An error of the model or of a plan, NaN in logits or scores.
    pub fn run(&self, index: usize, evaluator: &Evaluator<'_>) -> Result<Vec<Prediction>> {
        let mut prompted = evaluator.prefill(&self.framed.prompt)?;
        let held = prompted.held()?;
        let answers = self.greedy(evaluator, &mut prompted)?;
        let plans = evaluator.plans().iter().zip(held);
        plans
            .zip(answers)
            .map(|((candidate, mut scores), tokens)| {
                let output = evaluator.model().tokenizer.decode(&tokens, true)?;
                scores.insert(self.rule.metric.name().into(), self.score(&output));
                Ok(Prediction {
                    task: self.task.clone(),
                    metric: self.rule.metric.name().into(),
                    sample: index,
                    id: self.id.clone(),
                    plan: candidate.name.clone(),
                    length: self.length,
                    prompt_tokens: self.framed.prompt.len(),
                    truncated: self.framed.truncated,
                    depth: None,
                    scores,
                    new_tokens: tokens.len(),
                    output: Some(output),
                    answers: self.answers.clone(),
                })
            })
            .collect()
    }

    fn score(&self, output: &str) -> f64 {
        let scored = match self.rule.first_line {
            true => {
                let text = output.trim_start_matches('\n');
                text.split('\n').next().unwrap_or_default()
            }
            false => output,
        };
        let metric = self.rule.metric;
        metric.score(scored, &self.answers, &self.classes)
    }

    /// The greedy answer of every plan.
    fn greedy(&self, evaluator: &Evaluator<'_>, prompted: &mut Prompted) -> Result<Vec<Vec<u32>>> {
        let mut nexts = evaluator.after(prompted, &self.framed.after)?;
        let mut stops = evaluator.model().eos_tokens.clone();
        if self.rule.ends_at_newline {
            stops.extend(evaluator.newline()?);
            // Otherwise an answer that starts with a line break would be empty.
            for next in &mut nexts {
                for &stop in &stops {
                    if let Some(logit) = next.get_mut(stop as usize) {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
        let most = self.rule.max_new_tokens;
        evaluator.greedy(&nexts, &mut prompted.caches, most, &stops)
    }
}

/// The facts about the questions as samples of a task.
pub(super) fn infos(questions: &[Question]) -> Vec<SampleInfo> {
    questions.iter().map(Question::info).collect()
}

/// The fingerprint of prompts, references and rules.
pub(super) fn fingerprint_of(questions: &[Question]) -> String {
    let parts: Vec<Vec<u8>> = questions
        .iter()
        .flat_map(|question| {
            let rule = format!(
                "{} {:?} {:?} {:?}",
                question.task, question.rule, question.answers, question.classes
            );
            let Framed { prompt, after, .. } = &question.framed;
            [id_bytes(prompt), id_bytes(after), rule.into_bytes()]
        })
        .collect();
    fingerprint(parts.iter().map(Vec::as_slice))
}
