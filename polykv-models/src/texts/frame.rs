//! From text to the tokens of a prompt: the chat template around it, the question inside what is compressed or after it.

use crate::LoadedModel;
use crate::chat::{ChatTemplate, Message};
use crate::tokenizer::Specials;
use polykv_core::Result;

/// How a text is made a prompt.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    pub model: &'a LoadedModel,
    /// Whether the text is fed without the model's chat template.
    pub raw: bool,
    /// Whether the question runs over the compressed text instead of being part of it.
    pub question_after: bool,
}

/// A text in three parts, in their order.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// What is compressed in any case.
    pub context: &'a str,
    /// What comes after it in the same message.
    pub question: &'a str,
    /// The start of the answer, given to the model.
    pub lead_in: &'a [u32],
}

/// A prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Framed {
    /// What is compressed.
    pub prompt: Vec<u32>,
    /// What runs over the compressed cache before the answer.
    pub after: Vec<u32>,
    /// Whether the middle was cut out.
    pub truncated: bool,
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
