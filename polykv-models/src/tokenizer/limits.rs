//! What a tokenizer.json may hold, checked before the tokenizers crate builds anything of it.
//!
//! A file of a few kilobytes can make a text grow a thousand million times, or keep the crate busy for minutes. The
//! limits are far above what published files hold.

use polykv_core::{Error, Result};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::fmt;

/// Bytes of one token as the file spells it.
const MAX_TOKEN_BYTES: usize = 2048;
const MAX_ADDED_TOKENS: usize = 100_000;
/// Tokens of a vocabulary and merges, each of which takes some hundred bytes of memory. The largest published vocabularies
/// have 260,000 tokens and 514,000 merges.
const MAX_VOCAB: usize = 1 << 20;
pub(super) const MAX_MERGES: usize = 1 << 21;
/// Steps of the normalizer, the pre-tokenizer, the post-processor or the decoder.
const MAX_STEPS: usize = 64;
/// Bytes that the replacements of a normalizer or decoder, one after the other, may make of one byte.
const MAX_GROWTH: usize = 64;
/// Bytes that the normalizer and the pre-tokenizer together may make of one byte. A character map of SentencePiece with a
/// Metaspace behind it, as T5 and XLM-R have them, may make 132.
const MAX_GROWTH_TO_PIECES: usize = 256;
/// Bytes of a regular expression or of a text that is put before or between others.
const MAX_TEXT_BYTES: usize = 4096;
const MAX_PREFIX_BYTES: usize = 64;
/// Entries of a list of the post-processor, such as the tokens around a text.
const MAX_ENTRIES: usize = 64;

/// The keys under which steps hold other steps.
const STEP_LISTS: [&str; 4] = ["normalizers", "pretokenizers", "processors", "decoders"];

/// The part of a tokenizer.json that is looked at.
#[derive(Deserialize)]
pub(super) struct Listed {
    #[serde(default)]
    pub added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    model: Model,
}

#[derive(Deserialize)]
pub(super) struct AddedToken {
    pub id: u32,
    pub content: String,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

impl Listed {
    /// Whether every byte of a text is in one of its tokens: no added token swallows the white space beside it, and what the
    /// normalizer puts in place of a text is no shorter.
    pub fn keeps_all_text(&self) -> bool {
        let strips = |token: &AddedToken| token.lstrip || token.rstrip;
        !self.added_tokens.iter().any(strips) && never_shrinks(&self.normalizer)
    }
}

#[derive(Default, Deserialize)]
struct Model {
    #[serde(default)]
    vocab: Entries,
    #[serde(default)]
    merges: Entries,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
}

/// Checks a file's limits.
///
/// # Errors
/// The limit that is passed; content that is no tokenizer.json.
pub(super) fn check(place: &str, bytes: &[u8]) -> Result<Listed> {
    let listed: Listed = serde_json::from_slice(bytes)
        .map_err(|e| Error::invalid(place, "content", e, "a tokenizer.json"))?;
    let at_most = |field: &str, found: usize, most: usize, unit: &str| match found > most {
        true => {
            let found = format!("{found} {unit}");
            Err(Error::invalid(
                place,
                field,
                found,
                format!("at most {most}"),
            ))
        }
        false => Ok(()),
    };
    for (name, part) in [
        ("normalizer", &listed.normalizer),
        ("pre_tokenizer", &listed.pre_tokenizer),
        ("post_processor", &listed.post_processor),
        ("decoder", &listed.decoder),
    ] {
        at_most(name, steps(part), MAX_STEPS, "steps")?;
        at_most(
            &format!("pattern of {name}"),
            longest_pattern(part),
            MAX_TEXT_BYTES,
            "bytes",
        )?;
    }
    let of = |name: &str, part: &Value, factor: fn(&Value) -> Factor| {
        growth(part, factor).map_err(|why| Error::invalid(place, name, why, "a step that is known"))
    };
    let normalizer = of("normalizer", &listed.normalizer, encoded)?;
    let decoder = of("decoder", &listed.decoder, replaced)?;
    let pieces = of("pre_tokenizer", &listed.pre_tokenizer, encoded)?.saturating_mul(normalizer);
    for (parts, growth, most) in [
        ("the normalizer", normalizer, MAX_GROWTH),
        ("the decoder", decoder, MAX_GROWTH),
        ("normalizer and pre_tokenizer", pieces, MAX_GROWTH_TO_PIECES),
    ] {
        at_most(
            &format!("growth of texts by {parts}"),
            growth,
            most,
            "times",
        )?;
    }
    let entries = longest_list(&listed.post_processor);
    at_most("list of post_processor", entries, MAX_ENTRIES, "entries")?;
    at_most(
        "added_tokens",
        listed.added_tokens.len(),
        MAX_ADDED_TOKENS,
        "tokens",
    )?;
    let model = &listed.model;
    at_most("model.vocab", model.vocab.count, MAX_VOCAB, "tokens")?;
    at_most("model.merges", model.merges.count, MAX_MERGES, "merges")?;
    let added = listed.added_tokens.iter().map(|token| token.content.len());
    for (name, found) in [
        ("token of added_tokens", added.max().unwrap_or_default()),
        ("token of model.vocab", model.vocab.longest),
        ("text of model.merges", model.merges.longest),
    ] {
        // Merges are pairs, which may be written as one text with a space.
        let most = if name.ends_with("merges") {
            2 * MAX_TOKEN_BYTES + 1
        } else {
            MAX_TOKEN_BYTES
        };
        at_most(name, found, most, "bytes")?;
    }
    let marks = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
    let marks = marks.into_iter().flatten().map(String::len).max();
    at_most(
        "prefix or suffix of model",
        marks.unwrap_or_default(),
        MAX_PREFIX_BYTES,
        "bytes",
    )?;
    Ok(listed)
}

fn steps(part: &Value) -> usize {
    let lists = STEP_LISTS
        .iter()
        .filter_map(|key| part.get(key)?.as_array());
    let inner: Vec<usize> = lists.flatten().map(steps).collect();
    1_usize.saturating_add(inner.into_iter().fold(0, usize::saturating_add))
}

/// All values within one, itself included.
fn walk(value: &Value, see: &mut dyn FnMut(&Value)) {
    see(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, see)),
        Value::Object(items) => items.values().for_each(|item| walk(item, see)),
        _ => {}
    }
}

fn longest_list(part: &Value) -> usize {
    let mut longest = 0;
    walk(part, &mut |value| {
        longest = longest.max(value.as_array().map_or(0, Vec::len));
    });
    longest
}

fn longest_pattern(part: &Value) -> usize {
    let mut longest = 0;
    walk(part, &mut |value| {
        let texts = [
            "Regex",
            "String",
            "prepend",
            "content",
            "replacement",
            "prefix",
            "suffix",
        ];
        let found = texts.iter().filter_map(|key| value.get(key)?.as_str());
        longest = longest.max(found.map(str::len).max().unwrap_or_default());
    });
    longest
}

/// How many bytes a step makes of one byte, at most, or why that is not known.
type Factor = std::result::Result<usize, String>;

/// How many bytes a step, with the steps inside it, may make of one byte, if `factor` tells it of one without.
fn growth(step: &Value, factor: fn(&Value) -> Factor) -> Factor {
    let mut whole = factor(step)?;
    for key in STEP_LISTS {
        let inner = step.get(key).and_then(Value::as_array);
        for inner in inner.into_iter().flatten() {
            whole = whole.saturating_mul(growth(inner, factor)?);
        }
    }
    Ok(whole)
}

/// Of a step on the way to tokens. What follows can grow again with each step of its kind; lower case and the forms of Unicode
/// change a text that has been through them no more.
fn encoded(step: &Value) -> Factor {
    let text = |key: &str| step.get(key).and_then(Value::as_str);
    match text("type") {
        // Most bytes become a character of two; a space before each piece is two as well.
        Some("ByteLevel") if step["add_prefix_space"] == false => Ok(2),
        Some("ByteLevel") => Ok(4),
        // Spaces around a character of three bytes.
        Some("BertNormalizer") => Ok(2),
        // In place of a space, and before a piece of one byte.
        Some("Metaspace") => Ok(text("replacement").map_or(3, str::len).saturating_add(1)),
        _ => replaced(step),
    }
}

/// Of a step that puts a text in place of another.
fn replaced(step: &Value) -> Factor {
    let text = |key: &str| step.get(key).and_then(Value::as_str);
    match (step.get("pattern"), text("content"), text("prepend")) {
        (Some(pattern), Some(content), _) => {
            Ok(match pattern["String"].as_str().or(pattern.as_str()) {
                Some("") => content.len().saturating_add(1),
                Some(pattern) => content.len().div_ceil(pattern.len()).max(1),
                // An expression may match at every byte without taking it.
                None => content.len().saturating_add(1),
            })
        }
        (_, _, Some(prepend)) if prepend.len() > MAX_PREFIX_BYTES => {
            Err(format!("a prefix of {} bytes", prepend.len()))
        }
        _ => text("precompiled_charsmap").map_or(Ok(1), longest_of_map),
    }
}

fn never_shrinks(step: &Value) -> bool {
    let text = |pointer: &str| step.pointer(pointer).and_then(Value::as_str);
    match text("/type") {
        None => step.is_null(),
        Some("Prepend") => true,
        Some("Replace") => {
            let texts = (text("/pattern/String"), text("/content"));
            matches!(texts, (Some(from), Some(to)) if to.len() >= from.len())
        }
        Some("Sequence") => {
            let steps = step.get("normalizers").and_then(Value::as_array);
            steps.is_some_and(|steps| steps.iter().all(never_shrinks))
        }
        Some(_) => false,
    }
}

/// The longest text that a character map of SentencePiece puts in place of another: after a table of which the first four
/// bytes tell the size, the texts follow, each with a zero behind it.
fn longest_of_map(base64: &str) -> std::result::Result<usize, String> {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(base64)
        .map_err(|e| format!("a character map that is no base64: {e}"))?;
    let short = || "a character map that is cut off".to_owned();
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(short)?;
    let size = usize::try_from(u32::from_le_bytes(*size)).map_err(|_| short())?;
    let texts = rest.get(size..).ok_or_else(short)?;
    let longest = texts.split(|byte| *byte == 0).map(<[u8]>::len).max();
    Ok(longest.unwrap_or_default().max(1))
}

/// The keys of a map, or what a list holds. Nothing is kept of them: vocabularies have hundreds of thousands.
#[derive(Default)]
struct Entries {
    count: usize,
    /// Length in bytes of the longest text.
    longest: usize,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map or a list of tokens")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Entries, A::Error> {
                let mut found = Entries::default();
                while let Some((key, _)) = map.next_entry::<Entries, IgnoredAny>()? {
                    found.count = found.count.saturating_add(1);
                    found.longest = found.longest.max(key.longest);
                }
                Ok(found)
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> std::result::Result<Entries, A::Error> {
                let mut found = Entries::default();
                while let Some(inner) = list.next_element::<Entries>()? {
                    found.count = found.count.saturating_add(1);
                    found.longest = found.longest.max(inner.longest);
                }
                Ok(found)
            }

            fn visit_str<E>(self, text: &str) -> std::result::Result<Entries, E> {
                Ok(Entries {
                    count: 0,
                    longest: text.len(),
                })
            }

            // The scores beside the tokens of a Unigram vocabulary.
            fn visit_f64<E>(self, _: f64) -> std::result::Result<Entries, E> {
                Ok(Entries::default())
            }

            fn visit_i64<E>(self, _: i64) -> std::result::Result<Entries, E> {
                Ok(Entries::default())
            }

            fn visit_u64<E>(self, _: u64) -> std::result::Result<Entries, E> {
                Ok(Entries::default())
            }

            fn visit_unit<E>(self) -> std::result::Result<Entries, E> {
                Ok(Entries::default())
            }
        }
        deserializer.deserialize_any(Texts)
    }
}

#[cfg(test)]
mod tests;
