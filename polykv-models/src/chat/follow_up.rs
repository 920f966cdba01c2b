//! The next turn of a conversation whose earlier turns are tokens already.

use super::encode::{encode_pieces, marks, spells_special, split};
use super::{ChatTemplate, Message};
use crate::tokenizer::{Specials, Tokenizer};
use polykv_core::Result;

impl ChatTemplate {
    /// The token ids that follow an answer of the model: the markup that ends it, `text` as the next message of the user, and
    /// the start of the next answer. Special tokens come from the template only, never from `text`.
    ///
    /// # Errors
    /// What [`ChatTemplate::encode`] refuses, and a template that does not show the answers before the last message.
    pub fn follow_up(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
        let now = self.now();
        let marks = marks(3);
        // Nobody can guess the marks that stand for what was said before.
        let [before, answer, next] = marks.as_slice() else {
            return Err(self.refuse("there are no marks for three messages"));
        };
        let [before, answer, next] = [before, answer, next].map(String::as_str);
        let messages = [
            Message::new("user", before),
            Message::new("assistant", answer),
            Message::new("user", text),
        ];
        let rendered = self.render_at(now, &messages, true)?;
        let Some((_, tail)) = rendered.split_once(answer) else {
            return Err(self.refuse("the template does not show the answer before a message"));
        };
        let whole = tokenizer.encode(tail, Specials::Parse)?;
        let marked = self.render_with(now, &messages, &[before, answer, next], true);
        let marked = marked.ok();
        let marked = marked.as_deref().and_then(|all| all.split_once(answer));
        match marked.and_then(|(_, marked)| split(marked, tail, &marks, &messages)) {
            Some(pieces) => encode_pieces(tokenizer, &pieces, whole),
            None if spells_special(tokenizer, &messages[2..])? => {
                Err(self
                    .refuse("the template inspects the text of messages that spell special tokens"))
            }
            None => Ok(whole),
        }
    }

    /// [`ChatTemplate::follow_up`] after the last token of the answer, `pending`, which is fed before: an answer that has ended
    /// by itself has its end token already.
    ///
    /// # Errors
    /// As for [`ChatTemplate::follow_up`].
    pub fn next_turn(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        pending: Option<u32>,
    ) -> Result<Vec<u32>> {
        let ids = self.follow_up(tokenizer, text)?;
        let ended = pending.is_some() && ids.first().copied() == pending;
        Ok(ids.get(usize::from(ended)..).unwrap_or_default().to_vec())
    }

    /// Whether the prompt of a conversation that ends with an answer and the user's next message begins with the prompt that the
    /// answer was given to, and with the answer: [`ChatTemplate::follow_up`] goes on from there. Templates that drop an answer's
    /// thoughts once another message follows change what was said before.
    ///
    /// # Errors
    /// A template that does not render the messages.
    pub fn continues(&self, messages: &[Message]) -> Result<bool> {
        let [before @ .., answer, _] = messages else {
            return Ok(true);
        };
        let now = self.now();
        let prompt = self.render_at(now, before, true)?;
        let whole = self.render_at(now, messages, true)?;
        let after = whole.strip_prefix(&prompt);
        // White space around an answer is the template's own affair.
        Ok(after.is_some_and(|after| after.trim_start().starts_with(answer.content.trim())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_follow_up_is_the_end_of_the_whole_conversation() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-llama31");
        let tokenizer = Tokenizer::from_json_file(&folder.join("tokenizer.json")).unwrap();
        let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
        let chat = ChatTemplate::new("template", source, "", "");
        for text in ["And now?", " spaced ", "<|im_end|> spelled"] {
            let said = [
                Message::new("user", "Hello"),
                Message::new("assistant", "Hi"),
                Message::new("user", text),
            ];
            let whole = chat.encode(&tokenizer, &said, true).unwrap();
            let next = chat.follow_up(&tokenizer, text).unwrap();
            assert!(whole.ends_with(&next), "{text}");
            let end = tokenizer.encode("<|im_end|>", Specials::Parse).unwrap();
            assert_eq!(next.first(), end.first());
            let specials = next.iter().filter(|id| tokenizer.is_special(**id));
            // The end of the answer, a turn of the user, the start of the next answer.
            assert_eq!(specials.count(), 4, "{text}");
        }
        let turns = ["Hello", "<think>So?</think> Hi ", "And now?"];
        let turns: Vec<_> = ["user", "assistant", "user"]
            .into_iter()
            .zip(turns)
            .map(|(role, text)| Message::new(role, text))
            .collect();
        assert!(chat.continues(&turns).unwrap());
        let forgets = source.replace("m.content", "m.content.split('</think>')[-1]");
        let forgets = ChatTemplate::new("template", &forgets, "", "");
        assert!(!forgets.continues(&turns).unwrap());
        assert!(forgets.continues(&turns[..1]).unwrap());
        let last = "{{ messages[-1].content }}";
        let error = ChatTemplate::new("template", last, "", "").follow_up(&tokenizer, "x");
        let error = error.unwrap_err().to_string();
        assert!(error.contains("does not show the answer"), "{error}");
    }
}
