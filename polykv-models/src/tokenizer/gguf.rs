//! The vocabulary of a GGUF file as a tokenizer.json, so that both sources take one way into the tokenizers crate.

mod bpe;
mod sentencepiece;

use crate::gguf::GgufFile;
use polykv_core::{Error, Result};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::HashSet;

const MODEL: &str = "tokenizer.ggml.model";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const BOS: &str = "tokenizer.ggml.bos_token_id";

/// ggml's numbers for kinds of tokens.
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const BYTE: u64 = 6;

/// A tokenizer.json, of which vocabulary and merges are written straight from the file's texts.
#[derive(Serialize)]
struct Json<'a> {
    version: &'static str,
    added_tokens: Vec<Value>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Model<'a>,
}

#[derive(Serialize)]
struct Model<'a> {
    r#type: &'static str,
    byte_fallback: bool,
    /// Whether a word that is a token is taken whole, whatever the merges say.
    ignore_merges: bool,
    #[serde(serialize_with = "numbered")]
    vocab: &'a [Cow<'a, str>],
    merges: Vec<(&'a str, &'a str)>,
}

/// What one kind of tokenizer puts around the vocabulary.
struct Parts<'a> {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    byte_fallback: bool,
    ignore_merges: bool,
    merges: Vec<(&'a str, &'a str)>,
    /// Whether the published tokenizer puts a begin token before a text, for files that do not say.
    add_bos: bool,
}

/// Tokens with their kinds, in the order of their ids.
struct Vocabulary<'a> {
    tokens: Vec<Cow<'a, str>>,
    kinds: Vec<u64>,
}

/// The bytes of a tokenizer.json.
///
/// # Errors
/// A key that is missing or malformed; a tokenizer model or a pre-tokenizer that is not known, by name.
pub(super) fn tokenizer_json(file: &GgufFile) -> Result<Vec<u8>> {
    let sentencepiece = match file.text(MODEL)? {
        Some("gpt2") => false,
        Some("llama") => true,
        found => {
            let what = format!("{MODEL} {found:?}");
            let reason = format!(
                "{}: allowed are gpt2 (byte-level BPE) and llama (SentencePiece's BPE)",
                file.place()
            );
            return Err(Error::unsupported(what, reason));
        }
    };
    let mut vocabulary = Vocabulary::read(file, sentencepiece)?;
    if sentencepiece {
        sentencepiece::respell(&mut vocabulary);
    }
    vocabulary.check_names(file)?;
    let parts = match sentencepiece {
        true => sentencepiece::parts(file, &vocabulary)?,
        false => bpe::parts(file)?,
    };
    let json = Json {
        version: "1.0",
        added_tokens: added_tokens(file, &vocabulary, sentencepiece)?,
        normalizer: parts.normalizer,
        pre_tokenizer: parts.pre_tokenizer,
        post_processor: post_processor(file, &vocabulary.tokens, parts.add_bos)?,
        decoder: parts.decoder,
        model: Model {
            r#type: "BPE",
            byte_fallback: parts.byte_fallback,
            ignore_merges: parts.ignore_merges,
            vocab: &vocabulary.tokens,
            merges: parts.merges,
        },
    };
    serde_json::to_vec(&json)
        .map_err(|e| Error::invalid(file.place(), "tokenizer", e, "a vocabulary"))
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a GgufFile, kinds_needed: bool) -> Result<Self> {
        let missing = |field: &str, allowed: &str| {
            Error::invalid(file.place(), field, "missing", allowed.to_owned())
        };
        let tokens = file
            .texts(TOKENS)?
            .ok_or_else(|| missing(TOKENS, "an array of texts"))?;
        let kinds = match file.uints(TYPES)? {
            Some(kinds) => kinds,
            // Without them control tokens and byte tokens cannot be told from text.
            None if kinds_needed => return Err(missing(TYPES, "an array of whole numbers")),
            None => vec![NORMAL; tokens.len()],
        };
        same_length(file, TYPES, kinds.len(), tokens.len())?;
        Ok(Self {
            tokens: tokens.into_iter().map(Cow::Borrowed).collect(),
            kinds,
        })
    }

    fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        let kinds = self.kinds.iter().copied();
        self.tokens.iter().map(|token| &**token).zip(kinds)
    }

    fn check_names(&self, file: &GgufFile) -> Result<()> {
        let mut seen = HashSet::with_capacity(self.tokens.len());
        match self.tokens.iter().find(|token| !seen.insert(&***token)) {
            None => Ok(()),
            Some(token) => {
                let found = format!("{token:?} twice");
                Err(Error::invalid(
                    file.place(),
                    TOKENS,
                    found,
                    "each token once",
                ))
            }
        }
    }
}

/// # Errors
/// A list that does not have one entry for each token.
fn same_length(file: &GgufFile, field: &str, found: usize, tokens: usize) -> Result<()> {
    if found == tokens {
        return Ok(());
    }
    let found = format!("an array of {found}");
    let allowed = format!("{tokens}, as many as there are tokens");
    Err(Error::invalid(file.place(), field, found, allowed))
}

/// The tokens that are found in a text before anything else. Control tokens and the unknown token are special: plain text
/// does not become one of them.
fn added_tokens(
    file: &GgufFile,
    vocabulary: &Vocabulary,
    sentencepiece: bool,
) -> Result<Vec<Value>> {
    // As in the tokenizer.json of Phi-3: white space behind its control tokens goes.
    let strip = sentencepiece && file.text("general.architecture")? == Some("phi3");
    let keep = ["<unk>", "<s>", "<|endoftext|>"];
    let added = vocabulary.iter().enumerate();
    let added = added.filter(|(_, (_, kind))| matches!(*kind, UNKNOWN | CONTROL | USER_DEFINED));
    let json = added.map(|(id, (token, kind))| {
        json!({
            "id": id, "content": token, "special": kind != USER_DEFINED,
            "single_word": false, "lstrip": false, "rstrip": strip && !keep.contains(&token),
            "normalized": false,
        })
    });
    Ok(json.collect())
}

/// The begin token before a text, where the file asks for it.
fn post_processor(file: &GgufFile, tokens: &[Cow<str>], by_default: bool) -> Result<Value> {
    let add = file.flag("tokenizer.ggml.add_bos_token")?;
    let (true, Some(id)) = (add.unwrap_or(by_default), file.uint(BOS)?) else {
        return Ok(Value::Null);
    };
    let Some(token) = usize::try_from(id).ok().and_then(|at| tokens.get(at)) else {
        let allowed = format!("below {}, the number of tokens", tokens.len());
        return Err(Error::invalid(file.place(), BOS, id, allowed));
    };
    let begin = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |id: &str, type_id: u32| json!({"Sequence": {"id": id, "type_id": type_id}});
    Ok(json!({
        "type": "TemplateProcessing",
        "single": [begin, text("A", 0)],
        "pair": [begin, text("A", 0), text("B", 1)],
        "special_tokens": {&**token: {"id": token, "ids": [id], "tokens": [token]}},
    }))
}

/// Texts as a map from each to its place in the list.
fn numbered<S: Serializer>(
    tokens: &[Cow<str>],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_map(tokens.iter().enumerate().map(|(id, token)| (token, id)))
}

#[cfg(test)]
mod tests;
