//! Text of generated tokens as they come, although a character may be spread over several tokens.

use super::Tokenizer;
use polykv_core::Result;

/// Tokens that are decoded together at most; bounds the work when a model emits no valid UTF-8 at all.
const MAX_WINDOW: usize = 256;
/// An unfinished character of up to three bytes shows as at most three of these at the end.
const UNFINISHED: char = '\u{FFFD}';
const MAX_UNFINISHED: usize = 3;

/// Incremental decoder; the concatenation of all its texts is what decoding all tokens at once gives.
#[derive(Debug)]
pub struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Recent tokens. Some were written out already: decoders may treat the first token of a text differently.
    window: Vec<u32>,
    /// Tokens of the window up to the last complete text.
    done_tokens: usize,
    /// Bytes of the window's text that were written out.
    done_bytes: usize,
}

impl<'a> Stream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self {
            tokenizer,
            skip_special,
            window: Vec::new(),
            done_tokens: 0,
            done_bytes: 0,
        }
    }

    /// Takes the next token and gives the text that became certain, if any.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window, self.skip_special)?;
        let open = text
            .chars()
            .rev()
            .take_while(|c| *c == UNFINISHED)
            .take(MAX_UNFINISHED)
            .count();
        let certain = text.len() - open * UNFINISHED.len_utf8();
        let new = self.take_new(&text[..certain]);
        if open == 0 {
            self.advance()?;
        } else if self.window.len() >= MAX_WINDOW {
            let rest = self.take_new(&text);
            self.restart();
            return Ok(join(new, rest));
        }
        Ok(new)
    }

    /// Ends the text: gives what was held back, with U+FFFD for bytes that form no character.
    pub fn flush(&mut self) -> Result<Option<String>> {
        let text = self.tokenizer.decode(&self.window, self.skip_special)?;
        let rest = self.take_new(&text);
        self.restart();
        Ok(rest)
    }

    fn take_new(&mut self, text: &str) -> Option<String> {
        // A decoder that rewrites its past gives nothing here until the text grows again.
        let new = text.get(self.done_bytes..).filter(|new| !new.is_empty())?;
        self.done_bytes = text.len();
        Some(new.to_owned())
    }

    /// After a complete text only the tokens since the last one stay, as context of the next.
    fn advance(&mut self) -> Result<()> {
        self.window.drain(..self.done_tokens);
        self.done_tokens = self.window.len();
        let text = self.tokenizer.decode(&self.window, self.skip_special)?;
        self.done_bytes = text.len();
        Ok(())
    }

    fn restart(&mut self) {
        self.window.clear();
        self.done_tokens = 0;
        self.done_bytes = 0;
    }
}

fn join(first: Option<String>, second: Option<String>) -> Option<String> {
    match (first, second) {
        (Some(a), Some(b)) => Some(a + &b),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Specials, Tokenizer};
    use super::*;
    use crate::load::gguf::testing::tiny_llama;

    fn tiny() -> Tokenizer {
        Tokenizer::from_gguf(&tiny_llama().open()).unwrap()
    }

    fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
        let mut stream = tokenizer.stream(true);
        let mut texts = Vec::new();
        for id in ids {
            texts.extend(stream.push(*id).unwrap());
        }
        texts.extend(stream.flush().unwrap());
        texts
    }

    #[test]
    fn characters_come_whole() {
        let tokenizer = tiny();
        // One token per byte: the accent takes two, the emoji four.
        let ids = tokenizer
            .encode("a\u{E9}\u{1F600}b", Specials::AsText)
            .unwrap();
        assert_eq!(ids.len(), 8);
        assert_eq!(
            streamed(&tokenizer, &ids),
            ["a", "\u{E9}", "\u{1F600}", "b"]
        );
    }

    #[test]
    fn equals_decoding_at_once() {
        let tokenizer = tiny();
        let text = "he said: \u{4F60}\u{597D} \u{1F600}\u{1F680}<|im_end|>\n".repeat(50);
        let mut ids = tokenizer.encode(&text, Specials::Parse).unwrap();
        ids.extend([0xE4, 0xBD].map(|b: u32| byte_token(&tokenizer, b)));
        let whole = tokenizer.decode(&ids, true).unwrap();
        assert!(whole.ends_with(UNFINISHED));
        assert_eq!(streamed(&tokenizer, &ids).concat(), whole);
    }

    #[test]
    fn endless_garbage_is_written_out() {
        let tokenizer = tiny();
        let ids = vec![byte_token(&tokenizer, 0x80); 1000];
        let mut stream = tokenizer.stream(true);
        let mut length = 0;
        for id in &ids {
            length += stream.push(*id).unwrap().map_or(0, |t| t.chars().count());
            assert!(stream.window.len() <= MAX_WINDOW);
        }
        length += stream.flush().unwrap().map_or(0, |t| t.chars().count());
        assert_eq!(length, 1000);
    }

    /// In the test vocabulary the ids of bytes are the bytes.
    fn byte_token(tokenizer: &Tokenizer, byte: u32) -> u32 {
        assert!(tokenizer.vocab_size() > 256);
        byte
    }
}
