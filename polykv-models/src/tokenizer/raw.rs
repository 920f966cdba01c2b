//! The BPE model of a tokenizer.json as its text states it, with few allocations: there may be a million merges.

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use tokenizers::models::bpe::{self, BPE, BpeBuilder, Error};

#[derive(Deserialize)]
pub(super) struct Raw {
    pub dropout: Option<f32>,
    pub unk_token: Option<String>,
    pub continuing_subword_prefix: Option<String>,
    pub end_of_word_suffix: Option<String>,
    pub fuse_unk: Option<bool>,
    pub byte_fallback: Option<bool>,
    pub ignore_merges: Option<bool>,
    pub vocab: Vocab,
    pub merges: Merges,
}

impl Raw {
    /// The crate's own model.
    ///
    /// # Errors
    /// Those of the crate.
    pub fn crates(self) -> tokenizers::Result<BPE> {
        let vocab = self.vocab.iter();
        let vocab: bpe::Vocab = vocab.map(|(id, text)| (text.to_owned(), id)).collect();
        let merges = self
            .merges
            .iter()
            .map(|[a, b]| (a.to_owned(), b.to_owned()));
        let mut builder = BpeBuilder::new().vocab_and_merges(vocab, merges.collect());
        if let Some(dropout) = self.dropout {
            builder = builder.dropout(dropout);
        }
        if let Some(token) = self.unk_token {
            builder = builder.unk_token(token);
        }
        if let Some(prefix) = self.continuing_subword_prefix {
            builder = builder.continuing_subword_prefix(prefix);
        }
        if let Some(suffix) = self.end_of_word_suffix {
            builder = builder.end_of_word_suffix(suffix);
        }
        builder
            .fuse_unk(self.fuse_unk.unwrap_or(false))
            .byte_fallback(self.byte_fallback.unwrap_or(false))
            .ignore_merges(self.ignore_merges.unwrap_or(false))
            .build()
    }
}

/// Texts side by side, with the id of each.
#[derive(Default)]
pub(super) struct Vocab {
    pub texts: String,
    tokens: Vec<(usize, u32)>,
}

impl Vocab {
    /// Ids and texts in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        let mut start = 0;
        self.tokens.iter().map(move |&(end, id)| {
            let text = self.texts.get(start..end).unwrap_or_default();
            start = end;
            (id, text)
        })
    }
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(VocabVisitor)
    }
}

struct VocabVisitor;

impl<'de> Visitor<'de> for VocabVisitor {
    type Value = Vocab;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tokens to ids")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
        let mut vocab = Vocab::default();
        while map.next_key_seed(Push(&mut vocab.texts))?.is_some() {
            let id = map.next_value()?;
            vocab.tokens.push((vocab.texts.len(), id));
        }
        Ok(vocab)
    }
}

/// The two parts of each merge side by side, with where each ends.
#[derive(Default)]
pub(super) struct Merges {
    texts: String,
    ends: Vec<[usize; 2]>,
}

impl Merges {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = [&str; 2]> {
        let mut start = 0;
        self.ends.iter().map(move |&[middle, end]| {
            let both = [start..middle, middle..end];
            start = end;
            both.map(|part| self.texts.get(part).unwrap_or_default())
        })
    }
}

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(MergesVisitor)
    }
}

struct MergesVisitor;

impl<'de> Visitor<'de> for MergesVisitor {
    type Value = Merges;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of merges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merges, A::Error> {
        let mut merges = Merges::default();
        while seq.next_element_seed(One(&mut merges))?.is_some() {}
        Ok(merges)
    }
}

/// A merge as two texts, or as one text with a space between the parts.
struct One<'a>(&'a mut Merges);

impl<'de> DeserializeSeed<'de> for One<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for One<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("two texts, or one with a space between its parts")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        let Self(merges) = self;
        if text.starts_with("#version") {
            return Ok(());
        }
        let line = merges.len().saturating_add(1);
        let parts = text.split_once(' ').filter(|(_, b)| !b.contains(' '));
        let (a, b) = parts.ok_or_else(|| E::custom(Error::BadMerges(line)))?;
        merges.texts.push_str(a);
        let middle = merges.texts.len();
        merges.texts.push_str(b);
        merges.ends.push([middle, merges.texts.len()]);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self(merges) = self;
        let mut ends = [0; 2];
        for (count, end) in ends.iter_mut().enumerate() {
            let part = seq.next_element_seed(Push(&mut merges.texts))?;
            part.ok_or_else(|| A::Error::invalid_length(count, &"two texts"))?;
            *end = merges.texts.len();
        }
        if seq.next_element::<serde::de::IgnoredAny>()?.is_some() {
            return Err(A::Error::invalid_length(3, &"two texts"));
        }
        merges.ends.push(ends);
        Ok(())
    }
}

/// Appends a text to others.
struct Push<'a>(&'a mut String);

impl<'de> DeserializeSeed<'de> for Push<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Push<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.push_str(text);
        Ok(())
    }
}
