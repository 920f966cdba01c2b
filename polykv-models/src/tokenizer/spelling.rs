//! The bytes that tokens stand for.

use super::Tokenizer;
use polykv_core::{Error, Result};
use serde_json::Value;
use std::collections::HashMap;

/// Before the text of special tokens, as llguidance wants it; no text holds this byte.
const SPECIAL: u8 = 0xff;

/// How a vocabulary writes bytes.
enum Writing {
    /// Every character stands for a byte, in the way of GPT-2.
    Levels(HashMap<char, u8>),
    /// Text with `▁` for spaces, and `<0x0A>` for a byte that no token has.
    Fallback,
}

impl Tokenizer {
    /// For every id below [`Tokenizer::vocab_size`] the bytes that it stands for inside a text; empty for ids that are not used.
    /// Special tokens have their name behind a byte 255.
    ///
    /// # Errors
    /// A decoder that is neither byte-level nor has byte fallback.
    pub(crate) fn spellings(&self) -> Result<Vec<Vec<u8>>> {
        let writing = self.writing()?;
        let added = self.parsing.get_added_tokens_decoder();
        let mut spellings = vec![Vec::new(); self.vocab_size];
        for (text, id) in self.parsing.get_vocab(true) {
            let Some(spelling) = spellings.get_mut(id as usize) else {
                continue;
            };
            *spelling = match &writing {
                _ if self.is_special(id) => [&[SPECIAL], text.as_bytes()].concat(),
                _ if added.contains_key(&id) => text.into_bytes(),
                Writing::Levels(bytes) => {
                    let bytes = text.chars().map(|c| bytes.get(&c).copied());
                    let bytes: Vec<u8> = bytes.collect::<Option<_>>().unwrap_or_default();
                    // No text has this byte, and a token of it must not pass for a special one.
                    match bytes.contains(&SPECIAL) {
                        true => Vec::new(),
                        false => bytes,
                    }
                }
                Writing::Fallback => match byte(&text) {
                    Some(SPECIAL) => Vec::new(),
                    Some(byte) => vec![byte],
                    None => text.replace('▁', " ").into_bytes(),
                },
            };
        }
        Ok(spellings)
    }

    fn writing(&self) -> Result<Writing> {
        let decoder = serde_json::to_value(self.parsing.get_decoder());
        let decoder = decoder.map_err(|error| self.failed(error.to_string()))?;
        let kind = |step: &Value, kind: &str| step.get("type").is_some_and(|found| found == kind);
        let steps = decoder.get("decoders").and_then(Value::as_array);
        let steps = steps.map_or(std::slice::from_ref(&decoder), Vec::as_slice);
        if steps.iter().any(|step| kind(step, "ByteLevel")) {
            return Ok(Writing::Levels(levels()));
        }
        if steps.iter().any(|step| kind(step, "ByteFallback")) {
            return Ok(Writing::Fallback);
        }
        Err(Error::unsupported(
            "knowing the bytes of tokens",
            format!("{}: the tokenizer's decoder is {decoder}", self.place),
        ))
    }
}

/// The byte of a token such as `<0x0A>`.
fn byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let plain = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Printable bytes stand for themselves, the others follow from U+0100 on.
fn levels() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..);
    let others = (0..=255).filter(|byte| !printable(*byte));
    let shifted = ('\u{100}'..).zip(others);
    let own = (0..=255).filter(|byte| printable(*byte));
    own.map(|byte| (char::from(byte), byte))
        .chain(shifted)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Specials;
    use serde_json::json;
    use std::path::Path;

    /// A vocabulary of bytes and some words, as SentencePiece writes it.
    fn fallback() -> Tokenizer {
        let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
        let words = ["▁", "t", "h", "e", "th", "the", "▁the"].map(String::from);
        let vocab: serde_json::Map<_, _> = bytes
            .chain(words)
            .enumerate()
            .map(|(id, token)| (token, id.into()))
            .collect();
        let json = json!({
            "version": "1.0", "added_tokens": [], "pre_tokenizer": null, "post_processor": null,
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            ]},
            "model": {"type": "BPE", "byte_fallback": true, "unk_token": null, "vocab": vocab,
                "merges": ["t h", "th e", "▁ the"]},
        });
        Tokenizer::from_json("t", json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn the_spellings_of_a_texts_tokens_are_the_text() {
        let fixture = "../tests/fixtures/tiny-llama31/tokenizer.json";
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture);
        for tokenizer in [Tokenizer::from_json_file(&fixture).unwrap(), fallback()] {
            let spellings = tokenizer.spellings().unwrap();
            assert_eq!(spellings.len(), tokenizer.vocab_size());
            for text in [
                "the sea and\n the ship",
                "{\"a\": [1, 2]}",
                "naïve \u{1F600} 世界",
            ] {
                let ids = tokenizer.encode(text, Specials::AsText).unwrap();
                let bytes = ids.iter().flat_map(|id| spellings[*id as usize].clone());
                assert_eq!(String::from_utf8(bytes.collect()).unwrap(), text);
            }
            let special = spellings
                .iter()
                .zip(0..)
                .find(|(bytes, _)| bytes.first() == Some(&SPECIAL));
            assert!(special.is_none_or(|(_, id)| tokenizer.is_special(id)));
        }
    }

    #[test]
    fn a_decoder_that_is_not_known_is_named() {
        let json = json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "CTC", "pad_token": "x", "word_delimiter_token": "|", "cleanup": true},
            "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
        });
        let tokenizer = Tokenizer::from_json("t", json.to_string().as_bytes()).unwrap();
        let error = tokenizer.spellings().unwrap_err().to_string();
        assert!(error.contains("CTC"), "{error}");
    }

    #[test]
    fn bytes_of_both_writings() {
        let levels = levels();
        assert_eq!(levels.len(), 256);
        for (c, byte) in [('A', b'A'), ('Ġ', b' '), ('Ċ', b'\n'), ('ÿ', 255)] {
            assert_eq!(levels[&c], byte);
        }
        for (text, found) in [
            ("<0x0A>", Some(10)),
            ("<0xff>", Some(255)),
            ("<0x+1>", None),
            ("<0xÿ>", None),
            ("<0x0AB>", None),
            ("a", None),
        ] {
            assert_eq!(byte(text), found, "{text}");
        }
    }
}
