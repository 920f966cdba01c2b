//! Prompts of a limited length: the middle is cut out of what is too long.

use crate::texts::frame::{Frame, Framed, Parts};
use crate::tokenizer::Specials;
use polykv_core::{Error, Result};

/// How long a prompt may be, in tokens.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of the text, the begin token included; the rest of its middle is cut out.
    pub text: Option<usize>,
    /// Tokens of everything before the answer; the text is cut further where the template needs the room.
    pub all: usize,
}

impl Frame<'_> {
    /// [`Frame::encode`] of what the limits leave of the text: its first and its last half.
    ///
    /// # Errors
    /// The errors of [`Frame::encode`]; limits that leave nothing; a question to be run after the text that is longer
    /// than the half that is kept.
    pub fn fit(&self, parts: Parts<'_>, limits: Limits) -> Result<Framed> {
        let whole = self.encode(parts)?;
        // In its template a text has no fewer tokens than alone, so that short ones need not be counted.
        if whole.tokens() <= limits.all.min(limits.text.unwrap_or(usize::MAX)) {
            return Ok(whole);
        }
        let text = format!("{}{}", parts.context, parts.question);
        let ids = self.model.tokenizer.encode(&text, Specials::AsText)?;
        let begin = self.model.tokenizer.start().len();
        let tokens = begin.saturating_add(ids.len());
        let mut left = tokens.min(limits.text.unwrap_or(usize::MAX));
        let mut framed = match left < tokens {
            true => self.cut(parts, &ids, left)?,
            false => whole,
        };
        // What the template adds, and how a text is split anew where it was cut, is only known from the result.
        while framed.tokens() > limits.all {
            let excess = framed.tokens().saturating_sub(limits.all);
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
        // Begin tokens may be more than half of it.
        let first = half.saturating_sub(tokenizer.start().len());
        let first = tokenizer.decode(ids.get(..first).unwrap_or(ids), true)?;
        let last = ids.len().saturating_sub(half);
        let last = tokenizer.decode(ids.get(last..).unwrap_or(ids), true)?;
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
}

impl Framed {
    fn tokens(&self) -> usize {
        self.prompt.len().saturating_add(self.after.len())
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests;
