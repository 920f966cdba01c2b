//! Text to token ids and back, from a tokenizer.json or from the vocabulary inside a GGUF file.

mod gguf;
mod stream;

pub use stream::Stream;

use crate::load::gguf::GgufFile;
use crate::load::refuse_pointer;
use polykv_core::{Error, Result};
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// The largest published files have about 35 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What the text of a special token (such as `<|im_end|>`) means inside the text to encode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// It becomes the special token: for templates and other trusted text.
    Parse,
    /// It becomes ordinary tokens that spell it: for text from users and files.
    AsText,
}

/// A tokenizer that never adds tokens of its own (but see [`Tokenizer::start`]), never truncates and never pads.
pub struct Tokenizer {
    place: String,
    parsing: tokenizers::Tokenizer,
    /// The same tokenizer, blind to special tokens in its input.
    literal: tokenizers::Tokenizer,
    special_ids: HashSet<u32>,
    start: Vec<u32>,
    vocab_size: usize,
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

/// The part of a tokenizer.json that has to be checked against what the crate made of it.
#[derive(serde::Deserialize)]
struct AddedTokens {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(serde::Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

impl Tokenizer {
    /// Reads a Hugging Face tokenizer.json of at most 64 MiB.
    pub fn from_json_file(path: &Path) -> Result<Self> {
        let place = path.display().to_string();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io(path, e))?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            let allowed = format!("up to {MAX_FILE_BYTES} bytes");
            return Err(Error::invalid(place, "size", "larger", allowed));
        }
        refuse_pointer(&place, &bytes)?;
        Self::from_json(&place, &bytes)
    }

    /// Builds the tokenizer of a GGUF file whose `tokenizer.ggml.model` is `gpt2` (byte-level BPE).
    ///
    /// Other models and unknown pre-tokenizers are refused by name.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let json = gguf::tokenizer_json(file)?;
        let bytes = serde_json::to_vec(&json)
            .map_err(|e| Error::invalid(file.place(), "tokenizer", e, "a vocabulary"))?;
        Self::from_json(file.place(), &bytes)
    }

    fn from_json(place: &str, bytes: &[u8]) -> Result<Self> {
        let refuse = |e: String| Error::invalid(place, "content", e, "a tokenizer.json");
        let listed: AddedTokens =
            serde_json::from_slice(bytes).map_err(|e| refuse(e.to_string()))?;
        let mut parsing = guarded(|| tokenizers::Tokenizer::from_bytes(bytes)).map_err(refuse)?;
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
        let last = parsing.get_vocab(true).into_values().max();
        let start = start(&parsing).map_err(refuse)?;
        let vocab_size = last.map_or(0, |id| id as usize + 1);
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
        })
    }

    /// Encodes text. With [`Specials::AsText`] the result never holds a special token.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        let tokenizer = match specials {
            Specials::Parse => &self.parsing,
            Specials::AsText => &self.literal,
        };
        let encoding =
            guarded(|| tokenizer.encode_fast(text, false)).map_err(|e| self.failed(e))?;
        let ids = encoding.get_ids().to_vec();
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

    /// What belongs before a text that is fed without a template: the begin token of models that were trained with
    /// one, else nothing. Templates write it themselves.
    pub fn start(&self) -> &[u32] {
        &self.start
    }

    /// The text of the ids; unknown ids are left out, incomplete UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded(|| self.parsing.decode(ids, skip_special)).map_err(|e| self.failed(e))
    }

    /// An incremental decoder for generated tokens.
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

    /// True for control tokens, which text from users must not produce.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// Refuses a tokenizer with ids beyond the rows of the model's embedding table.
    pub fn check_ids(&self, embedding_rows: usize) -> Result<()> {
        if self.vocab_size > embedding_rows {
            return Err(Error::invalid(
                &self.place,
                "highest token id",
                self.vocab_size - 1,
                format!("below the {embedding_rows} rows of the model's embedding"),
            ));
        }
        Ok(())
    }

    fn failed(&self, reason: String) -> Error {
        Error::Failed(format!("{}: tokenizer: {reason}", self.place))
    }
}

/// What the file's post-processor puts before a text.
fn start(tokenizer: &tokenizers::Tokenizer) -> std::result::Result<Vec<u32>, String> {
    let ids = |specials| {
        guarded(|| tokenizer.encode_fast("a", specials)).map(|found| found.get_ids().to_vec())
    };
    let (plain, whole) = (ids(false)?, ids(true)?);
    if plain.is_empty() {
        return Ok(Vec::new());
    }
    let at = whole.windows(plain.len()).position(|part| part == plain);
    Ok(whole[..at.unwrap_or(0)].to_vec())
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
