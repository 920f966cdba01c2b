//! Text of generated tokens as they come, although a character may be spread over several tokens.

use super::Tokenizer;
use polykv_core::Result;

/// Tokens that are decoded together at most; bounds the work when a model emits no valid UTF-8 at all.
const MAX_WINDOW: usize = 256;
/// What decoders write for a byte that is, so far, no part of a character.
const UNFINISHED: char = '\u{FFFD}';

/// An incremental decoder. The concatenation of its texts equals the text of all tokens decoded at once, as long as the
/// bytes of the tokens form whole characters. Where bytes are missing, the characters before them stay as they were
/// written.
///
/// Decoders with byte tokens take a run of them for UTF-8 as a whole or not at all, so that a character that was
/// complete reads as unfinished again while the next one comes. All of an unfinished end is therefore held back, and
/// what was written of it is remembered.
#[derive(Debug)]
pub struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Recent tokens. Some were written out already: decoders may treat the first token of a text differently.
    window: Vec<u32>,
    /// Tokens of the window up to the last complete text.
    done_tokens: usize,
    /// The window's text that was written out.
    done: String,
}

impl<'a> Stream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self {
            tokenizer,
            skip_special,
            window: Vec::new(),
            done_tokens: 0,
            done: String::new(),
        }
    }

    /// Takes the next token and returns the text that became certain, if any.
    ///
    /// # Errors
    /// A token that the tokenizer refuses.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window, self.skip_special)?;
        let certain = text.trim_end_matches(UNFINISHED);
        let new = self.take_new(certain);
        if certain.len() == text.len() {
            self.advance()?;
        } else if self.window.len() >= MAX_WINDOW {
            let rest = self.take_new(&text);
            self.restart();
            return Ok(join(new, rest));
        }
        Ok(new)
    }

    /// Ends the text: returns what was held back, with U+FFFD for bytes that form no character.
    ///
    /// # Errors
    /// Tokens that the tokenizer refuses.
    pub fn flush(&mut self) -> Result<Option<String>> {
        let text = self.tokenizer.decode(&self.window, self.skip_special)?;
        let rest = self.take_new(&text);
        self.restart();
        Ok(rest)
    }

    fn take_new(&mut self, text: &str) -> Option<String> {
        let new = text
            .get(self.written(text)..)
            .filter(|new| !new.is_empty())?;
        let new = new.to_owned();
        self.done = text.to_owned();
        Some(new)
    }

    /// Bytes of `text` that were written out, although some may read otherwise now.
    fn written(&self, text: &str) -> usize {
        let same = |(a, b): &(char, char)| a == b;
        let common = text.chars().zip(self.done.chars()).take_while(same);
        let common: usize = common.map(|(c, _)| c.len_utf8()).sum();
        // A run of byte tokens that is no UTF-8 as a whole has one mark for each of its bytes.
        let rest = self.done.len().saturating_sub(common);
        common.saturating_add(rest.saturating_mul(UNFINISHED.len_utf8()))
    }

    /// After a complete text only the tokens since the last one stay, as context of the next.
    fn advance(&mut self) -> Result<()> {
        self.window.drain(..self.done_tokens);
        self.done_tokens = self.window.len();
        self.done = self.tokenizer.decode(&self.window, self.skip_special)?;
        Ok(())
    }

    fn restart(&mut self) {
        self.window.clear();
        self.done_tokens = 0;
        self.done.clear();
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
    use crate::gguf::testing::tiny_llama;

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

    /// Without a token for any character: each is spelled in byte tokens.
    fn byte_fallback() -> Tokenizer {
        let mut vocab = serde_json::Map::new();
        for byte in 0..256 {
            vocab.insert(format!("<0x{byte:02X}>"), byte.into());
        }
        for (token, id) in [
            ("\u{2581}a", 256),
            ("b", 257),
            ("\u{2581}", 258),
            ("a", 259),
        ] {
            vocab.insert(token.into(), id.into());
        }
        let steps = serde_json::json!([
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]);
        let json = serde_json::json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": steps},
            "model": {"type": "BPE", "byte_fallback": true, "unk_token": null, "vocab": vocab, "merges": []},
        });
        Tokenizer::from_json("t", json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn byte_tokens_of_several_characters_come_whole() {
        let tokenizer = byte_fallback();
        let text = "\u{4E16}\u{754C}\u{E9}\u{1F600}b\u{4E16}";
        let ids: Vec<u32> = text
            .bytes()
            .map(|b| if b == b'b' { 257 } else { b.into() })
            .collect();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        let parts = [
            "\u{4E16}",
            "\u{754C}",
            "\u{E9}",
            "\u{1F600}",
            "b",
            "\u{4E16}",
        ];
        assert_eq!(streamed(&tokenizer, &ids), parts);
    }

    #[test]
    fn a_byte_without_its_character_costs_no_text() {
        let tokenizer = byte_fallback();
        // An e with an accent, a first byte alone, then tokens with a space and without.
        let ids = [0xC3, 0xA9, 0xE4, 256, 257];
        let text = streamed(&tokenizer, &ids).concat();
        assert_eq!(text, "\u{E9}\u{FFFD} ab");
        let ids = [256, 0xC3, 0xA9, 0xE4];
        let text = streamed(&tokenizer, &ids).concat();
        assert_eq!(text, "a\u{E9}\u{FFFD}");
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
