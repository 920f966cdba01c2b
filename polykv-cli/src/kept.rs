//! Which tokens of a prompt the layers kept.

use burn::tensor::{Int, Tensor};
use polykv::models::tokenizer::Tokenizer;
use polykv::{Error, KvCache, LayerCache, Result, ops};
use std::ops::Range;
use std::path::Path;

/// The positions of all entries at one moment. Taking it costs no time that is measured: nothing is read back yet.
pub struct Snapshot(Vec<Option<Tensor<3, Int>>>);

/// How many KV heads keep a position: one list per layer, one number per position.
pub type HeadCounts = Vec<Vec<usize>>;

impl Snapshot {
    pub fn of(cache: &KvCache) -> Self {
        Self(cache.layers().iter().map(LayerCache::positions).collect())
    }

    /// # Errors
    /// A device that fails.
    pub fn read(self) -> Result<HeadCounts> {
        let count = |positions: Option<Tensor<3, Int>>| {
            let Some(positions) = positions else {
                return Ok(Vec::new());
            };
            let positions: Vec<i64> = positions.try_into_vec_as().map_err(ops::read_error)?;
            let last = positions.iter().max().map_or(0, |&last| last as usize + 1);
            let mut counts = vec![0; last];
            for position in positions {
                counts[position as usize] += 1;
            }
            Ok(counts)
        };
        self.0.into_iter().map(count).collect()
    }
}

/// A piece of the prompt's text: a token, or several whose bytes form characters only together.
#[derive(Debug, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    pub positions: Range<usize>,
    /// A control token of the tokenizer, which no text spells.
    pub special: bool,
    /// KV heads that keep its positions, summed over them; one number per layer.
    pub heads: Vec<usize>,
}

/// The prompt in pieces, in order; their positions have no gaps.
///
/// # Errors
/// Ids that the tokenizer fails on.
pub fn tokens(tokenizer: &Tokenizer, ids: &[u32], counts: &HeadCounts) -> Result<Vec<Token>> {
    let mut stream = tokenizer.stream(false);
    let mut tokens = Vec::new();
    let mut start = 0;
    for (position, &id) in ids.iter().enumerate() {
        let end = position + 1;
        let mut text = stream.push(id)?;
        if end == ids.len() {
            text = Some(text.unwrap_or_default() + &stream.flush()?.unwrap_or_default());
        }
        let Some(text) = text else {
            continue;
        };
        let heads = |layer: &Vec<usize>| layer.iter().take(end).skip(start).sum();
        tokens.push(Token {
            text,
            positions: start..end,
            special: tokenizer.is_special(id),
            heads: counts.iter().map(heads).collect(),
        });
        start = end;
    }
    Ok(tokens)
}

/// Finds out before the work whether a file can be written where it is wanted.
///
/// # Errors
/// A folder that is not there, or a folder in the file's place.
pub fn check_path(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => path,
    };
    let refuse = |found: &str| {
        let place = path.display().to_string();
        Err(Error::invalid(
            place,
            "path",
            found,
            "a file in a folder that exists",
        ))
    };
    match (folder.is_dir(), path.is_dir()) {
        (false, _) => refuse("in no folder"),
        (true, true) => refuse("a folder"),
        (true, false) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polykv::models::tokenizer::Specials;

    fn tokenizer() -> Tokenizer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-llama31");
        Tokenizer::from_json_file(&folder.join("tokenizer.json")).unwrap()
    }

    #[test]
    fn pieces_cover_the_prompt_and_hold_whole_characters() {
        let tokenizer = tokenizer();
        let text = "a gr\u{FC}n \u{1F600}\u{4F60}b<|im_end|>\n";
        let ids = tokenizer.encode(text, Specials::Parse).unwrap();
        let counts = vec![vec![1; ids.len()], vec![2; ids.len()], vec![2]];
        let tokens = tokens(&tokenizer, &ids, &counts).unwrap();
        let texts: Vec<&str> = tokens.iter().map(|token| token.text.as_str()).collect();
        assert_eq!(texts.concat(), text);
        assert!(!text.contains('\u{FFFD}') && tokens.len() < ids.len());
        let mut next = 0;
        for token in &tokens {
            assert_eq!(token.positions.start, next);
            next = token.positions.end;
            let count = token.positions.len();
            let first = if token.positions.start == 0 { 2 } else { 0 };
            assert_eq!(token.heads, [count, 2 * count, first]);
            assert_eq!(token.special, token.text == "<|im_end|>");
        }
        assert_eq!(next, ids.len());
    }

    #[test]
    fn bytes_of_no_character_are_shown_too() {
        let tokenizer = tokenizer();
        let smile = tokenizer.encode("x\u{1F600}", Specials::AsText).unwrap();
        let cut = &smile[..smile.len() - 1];
        let tokens = tokens(&tokenizer, cut, &Vec::new()).unwrap();
        let last = tokens.last().unwrap();
        assert_eq!(last.positions.end, cut.len());
        assert!(last.text.contains('\u{FFFD}'), "{last:?}");
    }

    #[test]
    fn paths_need_a_folder() {
        assert!(check_path(Path::new("page.html")).is_ok());
        for (path, found) in [
            ("/nonexistent/page.html", "in no folder"),
            ("/", "a folder"),
        ] {
            let message = check_path(Path::new(path)).unwrap_err().to_string();
            assert!(
                message.contains(path) && message.contains(found),
                "{message}"
            );
        }
    }
}
