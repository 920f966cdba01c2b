//! Tokens of a rendered prompt, with those of the messages kept apart from those of the template.

use super::Message;
use crate::tokenizer::{Specials, Tokenizer};
use polykv_core::Result;
use std::hash::{BuildHasher, Hasher, RandomState};

/// A rendered prompt, cut at the borders of the messages.
#[derive(Debug, PartialEq)]
pub(super) enum Piece<'a> {
    Template(&'a str),
    Content(&'a str),
}

/// One stand-in per message that no content can hold, because nobody can guess 64 random bits.
pub(super) fn marks(count: usize) -> Vec<String> {
    let nonce = RandomState::new().build_hasher().finish();
    (0..count)
        .map(|i| format!("\u{E000}{nonce:016x}.{i}\u{E001}"))
        .collect()
}

/// Finds in `rendered` what `marked` shows as template text and as message text, which a template may trim.
///
/// `None` when the two renderings differ in more than the messages' text.
pub(super) fn split<'a>(
    marked: &str,
    rendered: &'a str,
    marks: &[String],
    messages: &'a [Message],
) -> Option<Vec<Piece<'a>>> {
    let mut pieces = Vec::new();
    let (mut marked, mut rest) = (marked, rendered);
    loop {
        let next = next_mark(marked, marks);
        let literal = next.map_or(marked, |(at, _)| &marked[..at]);
        rest.strip_prefix(literal)?;
        let (template, after) = rest.split_at(literal.len());
        pieces.push(Piece::Template(template));
        let Some((at, index)) = next else {
            return after.is_empty().then_some(pieces);
        };
        marked = &marked[at + marks[index].len()..];
        let following = next_mark(marked, marks).map_or(marked, |(at, _)| &marked[..at]);
        let content = messages[index].content.as_str();
        let forms = [
            content,
            content.trim(),
            content.trim_start(),
            content.trim_end(),
        ];
        let form = forms.into_iter().find(|form| {
            after
                .strip_prefix(form)
                .is_some_and(|tail| tail.starts_with(following))
        })?;
        pieces.push(Piece::Content(form));
        rest = &after[form.len()..];
    }
}

/// Byte position and message index of the first mark.
fn next_mark(text: &str, marks: &[String]) -> Option<(usize, usize)> {
    // The number in the mark is read instead of searching for every mark.
    let prefix = marks.first()?.strip_suffix("0\u{E001}")?;
    let at = text.find(prefix)?;
    let number = &text[at + prefix.len()..];
    let index: usize = number[..number.find('\u{E001}')?].parse().ok()?;
    (index < marks.len()).then_some((at, index))
}

pub(super) fn spells_special(tokenizer: &Tokenizer, messages: &[Message]) -> Result<bool> {
    let contents = messages.iter().map(|m| m.content.as_str());
    // Joined both ways, because a template may put contents side by side, trimmed or not.
    for joined in [
        contents.clone().collect::<String>(),
        contents.map(str::trim).collect(),
    ] {
        let ids = tokenizer.encode(&joined, Specials::Parse)?;
        if ids.iter().any(|id| tokenizer.is_special(*id)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Keeps `whole` when all its special tokens come from the template, else encodes the pieces apart.
///
/// Apart, merges across the borders of a message are lost, so the first way is taken whenever it is safe.
pub(super) fn encode_pieces(
    tokenizer: &Tokenizer,
    pieces: &[Piece],
    whole: Vec<u32>,
) -> Result<Vec<u32>> {
    let specials = |ids: &[u32]| -> Vec<u32> {
        let special = ids.iter().filter(|id| tokenizer.is_special(**id));
        special.copied().collect()
    };
    let mut apart = Vec::new();
    for piece in pieces {
        apart.extend(match piece {
            Piece::Template(text) => tokenizer.encode(text, Specials::Parse)?,
            Piece::Content(text) => tokenizer.encode(text, Specials::AsText)?,
        });
    }
    Ok(if specials(&whole) == specials(&apart) {
        whole
    } else {
        apart
    })
}
