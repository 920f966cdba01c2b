//! Text to token ids and back, from a tokenizer.json or from the vocabulary inside a GGUF file.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

mod bound;
mod compact;
pub(crate) mod companions;
mod gguf;
mod limits;
mod raw;
mod shared;
#[cfg(feature = "guided")]
mod spelling;
mod stream;

pub use stream::Stream;

use crate::gguf::GgufFile;
use crate::stored::refuse_pointer;
use companions::Companions;
use polykv_core::{Error, Result, files};
use shared::SharedTokenizer;
use std::collections::HashSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// The largest published files have about 35 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What the text of a special token (such as `<|im_end|>`) means inside the text to encode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// The text becomes the special token: for templates and other trusted text.
    Parse,
    /// The text becomes ordinary tokens that spell it: for text from users and files.
    AsText,
}

/// A tokenizer that never adds tokens of its own (but see [`Tokenizer::start`]), never truncates and never pads.
pub struct Tokenizer {
    place: String,
    parsing: SharedTokenizer,
    /// The same tokenizer, blind to special tokens in its input.
    literal: SharedTokenizer,
    special_ids: HashSet<u32>,
    start: Vec<u32>,
    vocab_size: usize,
    /// The most bytes of text that one token stands for; `None` where no such bound is known.
    longest: Option<usize>,
    /// Rows of the model's embedding, once they are known; tokens behind them cannot be fed.
    rows: usize,
}

// Derived, it would print the whole vocabulary.
impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("place", &self.place)
            .field("vocab_size", &self.vocab_size)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a Hugging Face tokenizer.json of at most 64 MiB. Tokens that only the tokenizer_config.json or the
    /// special_tokens_map.json beside it call special are special as well.
    ///
    /// # Errors
    /// Files that cannot be read or are too large; content that is no tokenizer.json or is beyond the limits on steps,
    /// lengths of tokens and growth of texts.
    pub fn from_json_file(path: &Path) -> Result<Self> {
        let bytes = files::read_capped(path, MAX_FILE_BYTES)?;
        let place = path.display().to_string();
        refuse_pointer(&place, &bytes)?;
        let mut tokenizer = Self::from_json(&place, &bytes)?;
        let companions = Companions::read(path.parent().unwrap_or(Path::new(".")))?;
        tokenizer.add_special(&companions.special_texts());
        Ok(tokenizer)
    }

    /// Builds the tokenizer of a GGUF file whose `tokenizer.ggml.model` is `gpt2` (byte-level BPE) or `llama`
    /// (SentencePiece's BPE with byte fallback).
    ///
    /// # Errors
    /// Another tokenizer model or an unknown pre-tokenizer, by name; a vocabulary that is missing, malformed or beyond the
    /// limits.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        Self::from_json(file.place(), &gguf::tokenizer_json(file)?)
    }

    /// Like [`Self::from_gguf`], but the file has no vocabulary afterwards: while the tokenizer is built, there is one less.
    pub(crate) fn take_from(file: &mut GgufFile) -> Result<Self> {
        let json = gguf::tokenizer_json(file)?;
        file.forget_vocabulary();
        Self::from_json(file.place(), &json)
    }

    /// A lower bound on the number of tokens in a text, computed from its length alone; 0 where no bound is known. With it a
    /// text that is far beyond a model's context is refused before it is tokenized.
    pub fn least_tokens(&self, text: &str) -> usize {
        self.longest
            .map_or(0, |longest| text.len().div_ceil(longest.max(1)))
    }

    fn from_json(place: &str, bytes: &[u8]) -> Result<Self> {
        let refuse = |e: String| Error::invalid(place, "content", e, "a tokenizer.json");
        let listed = limits::check(place, bytes)?;
        let mut parsing = guarded(|| SharedTokenizer::from_bytes(bytes)).map_err(refuse)?;
        // A file may ask for either; both would change prompts without a word.
        guarded(|| parsing.with_truncation(None).map(|_| ())).map_err(refuse)?;
        parsing.with_padding(None);
        for token in &listed.added_tokens {
            // The crate renumbers added tokens that do not follow the vocabulary.
            let given = parsing.token_to_id(&token.content);
            if given.is_some_and(|id| id != token.id) {
                let field = format!("id of added token {:?}", cut(&token.content));
                let allowed = format!("{} in this vocabulary", given.unwrap_or_default());
                return Err(Error::invalid(place, field, token.id, allowed));
            }
        }
        let special_ids = parsing
            .get_added_tokens_decoder()
            .into_iter()
            .filter_map(|(id, token)| token.special.then_some(id))
            .collect();
        let (mut vocab_size, mut longest) = (0, 0);
        let mut count = |text: &str, id: u32| {
            vocab_size = (id as usize).saturating_add(1).max(vocab_size);
            longest = text.len().max(longest);
        };
        parsing.get_model().each_token(&mut count);
        for (id, token) in parsing.get_added_tokens_decoder() {
            count(&token.content, id);
        }
        // Normalizers and added tokens may drop text, and unknown words may become one token whatever their length.
        let exact = parsing.get_model().compact().is_some_and(|bpe| {
            let keeps = listed.keeps_all_text() && !bpe.has_unknown();
            keeps && bound::keeps_all_bytes(bpe, parsing.get_pre_tokenizer())
        });
        let start = start(&parsing).map_err(refuse)?;
        if let Some(id) = start.iter().find(|&&id| id as usize >= vocab_size) {
            let field = "token of post_processor";
            return Err(Error::invalid(
                place,
                field,
                id,
                format!("below {vocab_size}"),
            ));
        }
        let mut literal = parsing.clone();
        literal.set_encode_special_tokens(true);
        parsing.set_encode_special_tokens(false);
        Ok(Self {
            place: place.to_owned(),
            parsing,
            literal,
            special_ids,
            start,
            vocab_size,
            longest: exact.then_some(longest),
            rows: usize::MAX,
        })
    }

    /// Makes tokens of the vocabulary special, apart from those that plain text can hold as well.
    fn add_special(&mut self, texts: &[String]) {
        let given = |text: &String| {
            let id = self.parsing.token_to_id(text)?;
            (!self.is_special(id)).then(|| (id, text.clone()))
        };
        let tokens: Vec<(u32, String)> = texts.iter().filter_map(given).collect();
        if tokens.is_empty() {
            return;
        }
        let plain = |literal: &SharedTokenizer, id: u32, text: &str| {
            let found = guarded(|| literal.encode_fast(text, false));
            found.is_ok_and(|found| found.get_ids().contains(&id))
        };
        let mut probe = self.literal.clone();
        for (id, text) in &tokens {
            make_special(&mut probe, *id, text);
        }
        for (id, text) in tokens {
            if !plain(&probe, id, &text) {
                make_special(&mut self.parsing, id, &text);
                make_special(&mut self.literal, id, &text);
                self.special_ids.insert(id);
            }
        }
    }

    /// The tokenizer for a model whose embedding has this many rows.
    ///
    /// Added tokens behind the last row, such as a `<pad>` that was put in for training, stay without use: text spells
    /// them with ordinary tokens, and a template that writes one is refused when it is encoded.
    ///
    /// # Errors
    /// A vocabulary with ids behind the last row, apart from added tokens.
    pub fn fit(mut self, rows: usize) -> Result<Self> {
        let behind = |id: &u32| *id as usize >= rows;
        let mut highest = None;
        let model = self.parsing.get_model();
        model.each_token(|_, id| highest = highest.max(Some(id)));
        if let Some(id) = highest.filter(behind) {
            let allowed = format!("below the {rows} rows of the model's embedding");
            return Err(Error::invalid(&self.place, "highest token id", id, allowed));
        }
        let added = self.parsing.get_added_tokens_decoder();
        for (id, token) in added.into_iter().filter(|(id, _)| behind(id)) {
            make_special(&mut self.parsing, id, &token.content);
            make_special(&mut self.literal, id, &token.content);
            self.special_ids.insert(id);
        }
        self.rows = rows;
        Ok(self)
    }

    /// Encodes text to token ids. With [`Specials::AsText`] the result never holds a special token.
    ///
    /// # Errors
    /// Text that the tokenizer refuses, ids that the model has no embedding for, and a vocabulary that spells plain
    /// text with special tokens.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        let tokenizer = match specials {
            Specials::Parse => &self.parsing,
            Specials::AsText => &self.literal,
        };
        let encoding =
            guarded(|| tokenizer.encode_fast(text, false)).map_err(|e| self.failed(e))?;
        let ids = encoding.get_ids().to_vec();
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.rows) {
            let found = format!(
                "{:?}",
                cut(&self.parsing.id_to_token(*id).unwrap_or_default())
            );
            let allowed = format!("ids below the {} rows of the model's embedding", self.rows);
            let field = format!("token {id} of the text");
            return Err(Error::invalid(&self.place, field, found, allowed));
        }
        if specials == Specials::AsText
            && let Some(id) = ids.iter().find(|id| self.is_special(**id))
        {
            // Only a vocabulary that reaches special tokens by merges or as its unknown token gets here.
            let found = self.parsing.id_to_token(*id).unwrap_or_default();
            return Err(Error::invalid(
                &self.place,
                "token of plain text",
                cut(&found),
                "ordinary tokens",
            ));
        }
        Ok(ids)
    }

    /// The token ids before a text that is fed without a chat template: the begin token of models that were trained
    /// with one, else nothing. Chat templates write it themselves.
    pub fn start(&self) -> &[u32] {
        &self.start
    }

    /// Decodes token ids to text. Unknown ids are left out, incomplete UTF-8 becomes U+FFFD, and `skip_special` leaves
    /// out special tokens.
    ///
    /// # Errors
    /// Ids that the tokenizer refuses.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded(|| self.parsing.decode(ids, skip_special)).map_err(|e| self.failed(e))
    }

    /// An incremental decoder for generated tokens. `skip_special` leaves out special tokens.
    pub fn stream(&self, skip_special: bool) -> Stream<'_> {
        Stream::new(self, skip_special)
    }

    /// One more than the highest id, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token, given as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.parsing.token_to_id(token)
    }

    /// Whether an id is a special token, which text from users must not produce.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    fn failed(&self, reason: String) -> Error {
        Error::Failed(format!("{}: tokenizer: {reason}", self.place))
    }
}

/// Makes a token special in the crate's sense, and keeps how it was matched.
fn make_special(tokenizer: &mut SharedTokenizer, id: u32, text: &str) {
    let known = tokenizer.get_added_tokens_decoder().remove(&id);
    let known = known.filter(|token| token.content == text);
    let token = known.unwrap_or_else(|| tokenizers::AddedToken::from(text, true));
    let special = tokenizers::AddedToken {
        special: true,
        ..token
    };
    tokenizer.add_special_tokens(&[special]);
}

/// What the file's post-processor puts before a text.
fn start(tokenizer: &SharedTokenizer) -> std::result::Result<Vec<u32>, String> {
    let ids = |specials| {
        guarded(|| tokenizer.encode_fast("a", specials)).map(|found| found.get_ids().to_vec())
    };
    let (plain, whole) = (ids(false)?, ids(true)?);
    if plain.is_empty() {
        return Ok(Vec::new());
    }
    let at = whole.windows(plain.len()).position(|part| part == plain);
    Ok(whole.into_iter().take(at.unwrap_or(0)).collect())
}

/// Runs a call into the tokenizers crate; its panics become errors like any other.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(cut(&e.to_string())),
        Err(_) => Err("a panic inside the tokenizers crate".into()),
    }
}

/// One short line.
fn cut(text: &str) -> String {
    text.chars()
        .take(200)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests;
