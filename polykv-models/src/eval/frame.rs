//! From text to the tokens of a prompt: the chat template around it, the middle cut out of what is too long, the question
//! inside what is compressed or after it.

use crate::LoadedModel;
use crate::chat::{ChatTemplate, Message};
use crate::tokenizer::Specials;
use polykv_core::{Error, Result};

/// How a text is made a prompt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    pub model: &'a LoadedModel,
    /// Whether the text is fed without the model's chat template.
    pub raw: bool,
    /// Whether the question runs over the compressed text instead of being part of it.
    pub question_after: bool,
}

/// A text in three parts, in their order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts<'a> {
    /// What is compressed in any case.
    pub context: &'a str,
    /// What comes after it in the same message.
    pub question: &'a str,
    /// The start of the answer, given to the model.
    pub lead_in: &'a [u32],
}

/// A prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Framed {
    /// What is compressed.
    pub prompt: Vec<u32>,
    /// What runs over the compressed cache before the answer.
    pub after: Vec<u32>,
    /// Whether the middle was cut out.
    pub truncated: bool,
}

impl Framed {
    fn tokens(&self) -> usize {
        self.prompt.len() + self.after.len()
    }
}

/// How long a prompt may be, in tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Tokens of the text, the begin token included; the rest of its middle is cut out.
    pub text: Option<usize>,
    /// Tokens of everything before the answer; the text is cut further where the template needs the room.
    pub all: usize,
}

impl Frame<'_> {
    /// The tokens of the parts as they are.
    ///
    /// # Errors
    /// A template that does not render.
    pub fn encode(&self, parts: Parts<'_>) -> Result<Framed> {
        let Parts {
            context,
            question,
            lead_in,
        } = parts;
        let mut prompt = self.message(&format!("{context}{question}"))?;
        let mut after = Vec::new();
        if self.question_after {
            // Where the template puts the end of the text is found by leaving the question out.
            let alone = self.message(context)?;
            let common = prompt.iter().zip(&alone).take_while(|(a, b)| a == b);
            let common = common.count();
            after = prompt.split_off(common);
            after.extend(lead_in);
        } else {
            prompt.extend(lead_in);
        }
        Ok(Framed {
            prompt,
            after,
            truncated: false,
        })
    }

    /// [`Frame::encode`] of what the limits leave of the text: its first and its last half.
    ///
    /// # Errors
    /// As [`Frame::encode`]; limits that leave nothing; a question to be run after the text that is longer than the half
    /// that is kept.
    pub fn fit(&self, parts: Parts<'_>, limits: Limits) -> Result<Framed> {
        let whole = self.encode(parts)?;
        // In its template a text has no fewer tokens than alone, so that short ones need not be counted.
        if whole.tokens() <= limits.all.min(limits.text.unwrap_or(usize::MAX)) {
            return Ok(whole);
        }
        let text = format!("{}{}", parts.context, parts.question);
        let ids = self.model.tokenizer.encode(&text, Specials::AsText)?;
        let begin = self.model.tokenizer.start().len();
        let most = limits.text.unwrap_or(usize::MAX);
        let mut left = most.min(begin + ids.len());
        let mut framed = match left < begin + ids.len() {
            true => self.cut(parts, &ids, left)?,
            false => whole,
        };
        // What the template adds, and how a text is split anew where it was cut, is only known from the result.
        while framed.tokens() > limits.all {
            let excess = framed.tokens() - limits.all;
            left = left.saturating_sub(excess.max(2));
            framed = self.cut(parts, &ids, left)?;
        }
        Ok(framed)
    }

    /// The parts with `left` of the text's tokens `ids`, the begin token counted.
    fn cut(&self, parts: Parts<'_>, ids: &[u32], left: usize) -> Result<Framed> {
        let tokenizer = &self.model.tokenizer;
        let half = left / 2;
        if half == 0 {
            let found = format!("{left} tokens");
            return Err(Error::invalid("prompt", "room", found, "more tokens"));
        }
        let first = half.saturating_sub(tokenizer.start().len());
        let first = tokenizer.decode(&ids[..first], true)?;
        let last = tokenizer.decode(&ids[ids.len() - half..], true)?;
        let text = format!("{first}{last}");
        let question = match self.question_after {
            true => parts.question,
            false => "",
        };
        let Some(context) = text.strip_suffix(question) else {
            let found = format!("{} bytes", question.len());
            let allowed = format!("what {half} tokens hold, half of the prompt's limit");
            return Err(Error::invalid("prompt", "question", found, allowed));
        };
        let framed = self.encode(Parts {
            context,
            question,
            ..parts
        })?;
        Ok(Framed {
            truncated: true,
            ..framed
        })
    }

    pub fn has_template(&self) -> bool {
        self.template().is_some()
    }

    fn template(&self) -> Option<&ChatTemplate> {
        self.model.chat.as_ref().filter(|_| !self.raw)
    }

    /// A user's message that waits for the answer, or the text after the begin token.
    fn message(&self, text: &str) -> Result<Vec<u32>> {
        let tokenizer = &self.model.tokenizer;
        match self.template() {
            Some(chat) => chat.encode(tokenizer, &[Message::new("user", text)], true),
            None => {
                let ids = tokenizer.encode(text, Specials::AsText)?;
                Ok([tokenizer.start(), &ids].concat())
            }
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests;
