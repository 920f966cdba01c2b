//! From generated tokens to the text of an answer.

use crate::stop::StopMatcher;
use crate::tokenizer::{Stream, Tokenizer};
use polykv_core::Result;

/// Text of tokens as it becomes certain, up to a stop text.
#[derive(Debug)]
pub(crate) struct AnswerText<'a> {
    stream: Stream<'a>,
    stop: StopMatcher,
    stopped: bool,
}

impl<'a> AnswerText<'a> {
    pub fn new(tokenizer: &'a Tokenizer, stops: &[String]) -> Self {
        Self {
            stream: tokenizer.stream(true),
            stop: StopMatcher::new(stops),
            stopped: false,
        }
    }

    /// Whether a stop text was met.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Takes the next token. Returns the text that became certain, which may be empty.
    ///
    /// # Errors
    /// A token that the tokenizer refuses.
    pub fn push(&mut self, token: u32) -> Result<String> {
        Ok(match self.stream.push(token)? {
            Some(piece) => self.pass(&piece),
            None => String::new(),
        })
    }

    /// Ends the text: returns what was held back.
    ///
    /// # Errors
    /// Tokens that the tokenizer refuses.
    pub fn finish(&mut self) -> Result<String> {
        if self.stopped {
            return Ok(String::new());
        }
        let mut rest = match self.stream.flush()? {
            Some(piece) => self.pass(&piece),
            None => String::new(),
        };
        if !self.stopped {
            rest.push_str(&self.stop.finish());
        }
        Ok(rest)
    }

    fn pass(&mut self, piece: &str) -> String {
        let (text, stopped) = self.stop.push(piece);
        self.stopped = stopped;
        text
    }
}
