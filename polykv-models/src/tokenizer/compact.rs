//! Byte-pair encoding from small tables.
//!
//! The tokenizers crate holds the text of each token twice and the merges in a hash map: 69 MB for the 262,144 tokens of Gemma 3, a
//! quarter of the bytes of its weights. What a word becomes is the same as there, and tests compare the two.

use super::raw::{Merges, Raw};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use tokenizers::models::bpe::Error;
use tokenizers::{Result, Token};

/// No place in a word.
const NONE: u32 = u32::MAX;

/// Ids may leave room for as many that are not used, beside twice as many as there are tokens.
const GAPS: usize = 1 << 16;

pub(super) struct CompactBpe {
    unknown: Option<u32>,
    fuse_unknown: bool,
    /// The ids of the tokens `<0x00>` to `<0xFF>`, if characters that no token spells are written with them.
    bytes: Option<Box<[Option<u32>; 256]>>,
    ignore_merges: bool,
    /// The texts of all tokens in the order of their ids.
    texts: String,
    /// For each id where its text ends; an id without a token has none.
    ends: Vec<u32>,
    /// Ids in the order of their texts.
    sorted: Vec<u32>,
    /// Tokens of one character.
    letters: HashMap<char, u32>,
    /// For each id where the merges with it on the left begin; one more.
    starts: Vec<u32>,
    /// By the left id, then by the right one.
    merges: Vec<Merge>,
}

struct Merge {
    right: u32,
    /// Lower ones come first.
    rank: u32,
    id: u32,
}

/// A piece of a word.
struct Symbol {
    id: u32,
    /// Bytes of the word; 0 once it is a part of the symbol before.
    len: u32,
    before: u32,
    next: u32,
}

impl CompactBpe {
    /// Nothing where the tables cannot say what the file does: random merges, marked pieces, texts or ids that are used twice,
    /// tokens without a text, an unknown token that is none, ids far apart.
    ///
    /// # Errors
    /// Merges of what is no token, as the crate reports them.
    pub fn new(raw: &Raw) -> Result<Option<Self>> {
        let marks = [&raw.continuing_subword_prefix, &raw.end_of_word_suffix];
        let marked = marks.into_iter().any(Option::is_some);
        if marked || raw.dropout.is_some_and(|dropout| dropout != 0.0) {
            return Ok(None);
        }
        let Some((texts, ends)) = in_order(raw) else {
            return Ok(None);
        };
        let mut new = Self {
            unknown: None,
            fuse_unknown: raw.fuse_unk.unwrap_or(false),
            bytes: None,
            ignore_merges: raw.ignore_merges.unwrap_or(false),
            texts,
            ends,
            sorted: Vec::new(),
            letters: HashMap::new(),
            starts: Vec::new(),
            merges: Vec::new(),
        };
        if !new.sort() {
            return Ok(None);
        }
        if let Some(unknown) = &raw.unk_token {
            new.unknown = new.id(unknown);
            if new.unknown.is_none() {
                return Ok(None);
            }
        }
        if raw.byte_fallback.unwrap_or(false) {
            let id = |byte| new.id(&format!("<0x{byte:02X}>"));
            new.bytes = Some(Box::new(std::array::from_fn(id)));
        }
        new.read_merges(&raw.merges)?;
        Ok(Some(new))
    }

    /// Fills the tables that find a token by its text; false if two have the same.
    fn sort(&mut self) -> bool {
        let all = 0..self.ends.len() as u32;
        let mut sorted: Vec<u32> = all.filter(|&id| !self.text(id).is_empty()).collect();
        sorted.sort_unstable_by_key(|&id| self.text(id));
        sorted.shrink_to_fit();
        let twice = sorted
            .windows(2)
            .any(|two| matches!(two, [a, b] if self.text(*a) == self.text(*b)));
        for &id in &sorted {
            let mut letters = self.text(id).chars();
            if let (Some(letter), None) = (letters.next(), letters.next()) {
                self.letters.insert(letter, id);
            }
        }
        self.letters.shrink_to_fit();
        self.sorted = sorted;
        !twice
    }

    fn read_merges(&mut self, all: &Merges) -> Result<()> {
        // A million searches take a second.
        let ids: HashMap<&str, u32> = self.tokens().collect();
        let mut found = Vec::with_capacity(all.len());
        let mut joined = String::new();
        for (rank, [left, right]) in all.iter().enumerate() {
            let id = |text: &str| {
                let missing = || Error::MergeTokenOutOfVocabulary(text.to_owned());
                ids.get(text).copied().ok_or_else(missing)
            };
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let merge = Merge {
                right: id(right)?,
                rank: rank as u32,
                id: id(&joined)?,
            };
            found.push((id(left)?, merge));
        }
        // Of a pair that is listed twice the last counts.
        found.sort_unstable_by_key(|(left, merge)| (*left, merge.right, Reverse(merge.rank)));
        found.dedup_by_key(|(left, merge)| (*left, merge.right));
        let mut starts = vec![0u32; self.ends.len().saturating_add(1)];
        for (left, _) in &found {
            if let Some(count) = starts.get_mut((*left as usize).saturating_add(1)) {
                *count = count.saturating_add(1);
            }
        }
        let mut start = 0u32;
        for count in &mut starts {
            start = start.saturating_add(*count);
            *count = start;
        }
        self.starts = starts;
        self.merges = found.into_iter().map(|(_, merge)| merge).collect();
        // Collected where the pairs were.
        self.merges.shrink_to_fit();
        Ok(())
    }

    pub fn has_unknown(&self) -> bool {
        self.unknown.is_some()
    }

    /// Whether every byte has a token that stands for it where no other does.
    pub fn falls_back(&self) -> bool {
        let bytes = self.bytes.as_ref();
        bytes.is_some_and(|bytes| bytes.iter().all(Option::is_some))
    }

    /// Whether a character is a token.
    pub fn has_letter(&self, letter: char) -> bool {
        self.letters.contains_key(&letter)
    }

    /// The text of a token, empty if there is none of that id.
    fn text(&self, id: u32) -> &str {
        let id = id as usize;
        let start = id
            .checked_sub(1)
            .and_then(|before| self.ends.get(before))
            .map_or(0, |&end| end as usize);
        let end = self.ends.get(id).map_or(0, |&end| end as usize);
        self.texts.get(start..end).unwrap_or_default()
    }

    pub fn id(&self, text: &str) -> Option<u32> {
        let place = self.sorted.binary_search_by(|&id| self.text(id).cmp(text));
        place.ok().and_then(|place| self.sorted.get(place)).copied()
    }

    pub fn token(&self, id: u32) -> Option<&str> {
        Some(self.text(id)).filter(|text| !text.is_empty())
    }

    /// All tokens with their ids.
    pub fn tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        let ids = 0..self.ends.len() as u32;
        ids.map(|id| (self.text(id), id))
            .filter(|(text, _)| !text.is_empty())
    }

    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    pub fn tokenize(&self, word: &str) -> Vec<Token> {
        if self.ignore_merges
            && let Some(id) = self.id(word)
        {
            return vec![Token::new(id, word.to_owned(), (0, word.len()))];
        }
        let mut symbols = self.symbols(word);
        self.merge(&mut symbols);
        let mut end = 0usize;
        let left = symbols.iter().filter(|symbol| symbol.len > 0);
        left.map(|symbol| {
            let start = end;
            end = end.saturating_add(symbol.len as usize);
            Token::new(symbol.id, self.text(symbol.id).to_owned(), (start, end))
        })
        .collect()
    }

    /// The characters of a word.
    fn symbols(&self, word: &str) -> Vec<Symbol> {
        let mut symbols = Vec::with_capacity(word.len());
        let mut unknown: Option<(u32, usize)> = None;
        let mut letter_bytes = [0; 4];
        for letter in word.chars() {
            if let Some(&id) = self.letters.get(&letter) {
                add(&mut symbols, unknown.take());
                add(&mut symbols, Some((id, letter.len_utf8())));
                continue;
            }
            let bytes = letter.encode_utf8(&mut letter_bytes).bytes();
            let spelled = self.bytes.as_ref().and_then(|known| {
                let ids = bytes.map(|byte| known.get(byte as usize).copied().flatten());
                ids.collect::<Option<Vec<u32>>>()
            });
            if let Some(ids) = spelled {
                for id in ids {
                    add(&mut symbols, Some((id, 1)));
                }
            } else if let Some(id) = self.unknown {
                let mut len = letter.len_utf8();
                match unknown.take() {
                    Some((_, before)) if self.fuse_unknown => len = len.saturating_add(before),
                    before => add(&mut symbols, before),
                }
                unknown = Some((id, len));
            }
        }
        add(&mut symbols, unknown);
        symbols
    }

    /// Joins neighbours by the merge of the lowest rank, of equal ones the first in the word, until there is none.
    fn merge(&self, symbols: &mut [Symbol]) {
        let pairs = symbols.windows(2).enumerate();
        let mut queue: BinaryHeap<Reverse<(u32, u32, u32)>> = pairs
            .filter_map(|(at, pair)| match pair {
                [left, right] => self.queued(at as u32, left.id, right.id),
                _ => None,
            })
            .collect();
        while let Some(Reverse((_, at, id))) = queue.pop() {
            let Some(left) = symbols.get(at as usize).filter(|left| left.len > 0) else {
                continue;
            };
            let Some(right) = symbols.get(left.next as usize) else {
                continue;
            };
            // Either may have been merged since.
            if self
                .find(left.id, right.id)
                .is_none_or(|merge| merge.id != id)
            {
                continue;
            }
            let (before, gone, next) = (left.before, left.next, right.next);
            let len = left.len.saturating_add(right.len);
            if let Some(right) = symbols.get_mut(gone as usize) {
                right.len = 0;
            }
            if let Some(left) = symbols.get_mut(at as usize) {
                (left.id, left.len, left.next) = (id, len, next);
            }
            if let Some(next) = symbols.get_mut(next as usize) {
                next.before = at;
                queue.extend(self.queued(at, id, next.id));
            }
            if let Some(one) = symbols.get(before as usize) {
                queue.extend(self.queued(before, one.id, id));
            }
        }
    }

    fn queued(&self, at: u32, left: u32, right: u32) -> Option<Reverse<(u32, u32, u32)>> {
        let merge = self.find(left, right)?;
        Some(Reverse((merge.rank, at, merge.id)))
    }

    fn find(&self, left: u32, right: u32) -> Option<&Merge> {
        let left = left as usize;
        let start = *self.starts.get(left)? as usize;
        let end = *self.starts.get(left.saturating_add(1))? as usize;
        let own = self.merges.get(start..end)?;
        let place = own.binary_search_by_key(&right, |merge| merge.right).ok()?;
        own.get(place)
    }
}

/// Appends a symbol to a word.
fn add(symbols: &mut Vec<Symbol>, new: Option<(u32, usize)>) {
    let Some((id, len)) = new else {
        return;
    };
    let at = symbols.len() as u32;
    let before = at.checked_sub(1).unwrap_or(NONE);
    if let Some(last) = symbols.last_mut() {
        last.next = at;
    }
    symbols.push(Symbol {
        id,
        len: len as u32,
        before,
        next: NONE,
    });
}

/// The texts of all tokens in the order of their ids, and where each ends; nothing if an id has two texts or an empty one, or
/// if ids are far apart.
fn in_order(raw: &Raw) -> Option<(String, Vec<u32>)> {
    let vocab = &raw.vocab;
    let mut tokens: Vec<(u32, &str)> = vocab.iter().collect();
    tokens.sort_by_key(|(id, _)| *id);
    let last = tokens.last().map_or(0, |(id, _)| *id as usize);
    let most = tokens.len().saturating_mul(2).saturating_add(GAPS);
    let mut texts = String::with_capacity(vocab.texts.len());
    let mut ends = Vec::with_capacity(last.min(most).saturating_add(1));
    for (id, text) in tokens {
        if text.is_empty() || (id as usize) < ends.len() || last > most {
            return None;
        }
        ends.resize(id as usize, texts.len() as u32);
        texts.push_str(text);
        ends.push(u32::try_from(texts.len()).ok()?);
    }
    Some((texts, ends))
}

#[cfg(test)]
mod tests;
