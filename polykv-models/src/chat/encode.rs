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
        let literal = next.as_ref().map_or(marked, |next| next.before);
        let after = rest.strip_prefix(literal)?;
        pieces.push(Piece::Template(rest.get(..literal.len())?));
        let Some(next) = next else {
            return after.is_empty().then_some(pieces);
        };
        marked = next.after;
        let following = next_mark(marked, marks).map_or(marked, |next| next.before);
        let content = messages.get(next.index)?.content.as_str();
        let forms = [
            content,
            content.trim(),
            content.trim_start(),
            content.trim_end(),
        ];
        let (form, tail) = forms.into_iter().find_map(|form| {
            let tail = after.strip_prefix(form)?;
            tail.starts_with(following).then_some((form, tail))
        })?;
        pieces.push(Piece::Content(form));
        rest = tail;
    }
}

/// A mark in a text.
struct Mark<'t> {
    before: &'t str,
    /// Of its message.
    index: usize,
    after: &'t str,
}

/// The first mark.
fn next_mark<'t>(text: &'t str, marks: &[String]) -> Option<Mark<'t>> {
    // The number in the mark is read instead of searching for every mark.
    let prefix = marks.first()?.strip_suffix("0\u{E001}")?;
    let (before, number) = text.split_once(prefix)?;
    let (number, after) = number.split_once('\u{E001}')?;
    let index = number.parse().ok().filter(|index| *index < marks.len())?;
    Some(Mark {
        before,
        index,
        after,
    })
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
