//! Facts hidden in a text that says nothing, with a question about them.

use super::filler;
use super::frame::{Frame, Framed, Parts};
use crate::LoadedModel;
use crate::tokenizer::Specials;
use polykv_core::{Error, Result};
use rand::Rng;

/// The shape of a prompt.
#[derive(Clone, Copy, Debug)]
pub struct Haystack {
    /// Tokens of the compressed prompt, at most; it ends at a sentence, up to one sentence below.
    pub length: usize,
    /// Whether the text is fed without the model's chat template.
    pub raw: bool,
    /// Whether the question runs over the compressed text instead of being part of it.
    pub question_after: bool,
}

impl Haystack {
    /// What is compressed, and what runs after it, with facts at depths from 0 to 1 and `lead_in` behind the question.
    ///
    /// # Errors
    /// A length too short for the facts and the question.
    pub fn around(
        &self,
        model: &LoadedModel,
        rng: &mut impl Rng,
        facts: &[(f64, String)],
        question: &str,
        lead_in: &[u32],
    ) -> Result<(Vec<u32>, Vec<u32>)> {
        let mut sentences = Vec::new();
        let mut count = 0_usize;
        while count < self.length {
            let sentence = format!(" {}", filler::sentence(rng));
            let tokens = model.tokenizer.encode(&sentence, Specials::AsText)?.len();
            // A tokenizer may drop all of it.
            count = count.saturating_add(tokens.max(1));
            sentences.push(sentence.trim_start().to_string());
        }
        let frame = Frame {
            model,
            raw: self.raw,
            question_after: self.question_after,
        };
        // A template ends the question itself.
        let end = if frame.has_template() { "" } else { "\n" };
        loop {
            let Framed { prompt, after, .. } = frame.encode(Parts {
                context: &hide(&sentences, facts),
                question: &format!("\n\n{question}{end}"),
                lead_in,
            })?;
            if prompt.len() <= self.length {
                return Ok((prompt, after));
            }
            if sentences.pop().is_none() {
                let allowed = format!("at least {}, needle and question", prompt.len());
                return Err(Error::invalid("evaluation", "length", self.length, allowed));
            }
        }
    }
}

/// The sentences with the facts among them; facts at one place stay in their order.
fn hide(sentences: &[String], facts: &[(f64, String)]) -> String {
    let mut placed: Vec<(usize, &str)> = facts
        .iter()
        .map(|(depth, fact)| {
            (
                (depth * sentences.len() as f64).round() as usize,
                fact.as_str(),
            )
        })
        .collect();
    placed.sort_by_key(|(place, _)| *place);
    let mut placed = placed.into_iter().peekable();
    let mut parts = Vec::new();
    for place in 0..=sentences.len() {
        while let Some((_, fact)) = placed.next_if(|(at, _)| *at <= place) {
            parts.push(fact);
        }
        parts.extend(sentences.get(place).map(String::as_str));
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_are_places_among_the_sentences() {
        let sentences: Vec<String> = ["a.", "b.", "c.", "d."].map(String::from).into();
        for (depth, wanted) in [
            (0.0, "X a. b. c. d."),
            (0.25, "a. X b. c. d."),
            (0.5, "a. b. X c. d."),
            (1.0, "a. b. c. d. X"),
        ] {
            assert_eq!(hide(&sentences, &[(depth, "X".into())]), wanted);
        }
        assert_eq!(hide(&[], &[(1.0, "X".into())]), "X");
        let facts = [(1.0, "Z"), (0.5, "X"), (0.5, "Y")].map(|(d, f)| (d, f.to_string()));
        assert_eq!(hide(&sentences, &facts), "a. b. X Y c. d. Z");
    }
}
