//! SentencePiece's BPE, which GGUF calls `llama`: every token has a score, and there are no merges.
//!
//! Of all neighbours in a text that together are a token, SentencePiece joins the pair whose token has the highest score,
//! the leftmost where it stands more than once. That is BPE with one merge for each way to cut a token into two tokens, in
//! the order of the wholes' scores. Characters without a token are spelled in byte tokens.

use super::{BYTE, NORMAL, Parts, TOKENS, USER_DEFINED, Vocabulary, same_length};
use crate::gguf::GgufFile;
use crate::tokenizer::limits::MAX_MERGES;
use polykv_core::{Error, Result};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::HashSet;

const SCORES: &str = "tokenizer.ggml.scores";
/// Published vocabularies reach 64 bytes (16 characters).
const MAX_PIECE_BYTES: usize = 256;
/// Pieces times their lengths squared, about the bytes that finding all merges reads; Gemma 3 has 26 million.
const MAX_SQUARES: usize = 1 << 29;
/// Stands for a space.
const SPACE: &str = "\u{2581}";

/// User-defined tokens are found in the text as it is typed: their spaces must be spaces.
pub(super) fn respell(vocabulary: &mut Vocabulary) {
    for (token, kind) in vocabulary.tokens.iter_mut().zip(&vocabulary.kinds) {
        if *kind == USER_DEFINED && token.contains(SPACE) {
            *token = Cow::Owned(token.replace(SPACE, " "));
        }
    }
}

/// # Errors
/// Scores that are missing, not finite or shared; a byte without a token; tokens beyond the limits on lengths and merges.
pub(super) fn parts<'a>(file: &GgufFile, vocabulary: &'a Vocabulary) -> Result<Parts<'a>> {
    check_bytes(file, vocabulary)?;
    let prefix = file
        .flag("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", SPACE)];
    let mut decoders = vec![
        replace(SPACE, " "),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        byte_fallback: true,
        ignore_merges: false,
        merges: merges(file, vocabulary)?,
        add_bos: true,
    })
}

/// Every byte needs its token, or characters would go missing.
fn check_bytes(file: &GgufFile, vocabulary: &Vocabulary) -> Result<()> {
    let bytes = vocabulary.iter().filter(|(_, kind)| *kind == BYTE);
    let bytes: HashSet<&str> = bytes.map(|(token, _)| token).collect();
    let mut all = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    match all.find(|byte| !bytes.contains(&**byte)) {
        None => Ok(()),
        Some(byte) => {
            let found = format!("no byte token {byte}");
            let allowed = "one for each of the 256 bytes";
            Err(Error::invalid(file.place(), TOKENS, found, allowed))
        }
    }
}

/// Every pair of ordinary tokens that is one as a whole, those of higher scores first. Control tokens, byte tokens, unused
/// and user-defined ones are no part of it, so that text cannot be merged to one of them.
fn merges<'a>(file: &GgufFile, vocabulary: &'a Vocabulary) -> Result<Vec<(&'a str, &'a str)>> {
    let refuse = |field: &str, found: String, allowed: String| {
        Err(Error::invalid(file.place(), field, found, allowed))
    };
    let Some(scores) = file.numbers(SCORES)? else {
        return refuse(SCORES, "missing".into(), "an array of numbers".into());
    };
    same_length(file, SCORES, scores.len(), vocabulary.tokens.len())?;
    let pieces = vocabulary.iter().zip(&scores);
    let pieces = pieces.filter(|((_, kind), _)| *kind == NORMAL);
    let pieces: Vec<(&str, f64)> = pieces.map(|((token, _), score)| (token, *score)).collect();
    let mut squares = 0_usize;
    for (piece, score) in &pieces {
        let length = piece.len();
        if length > MAX_PIECE_BYTES {
            let allowed = format!("at most {MAX_PIECE_BYTES} in a token that text is merged to");
            return refuse(TOKENS, format!("{length} bytes"), allowed);
        }
        if !score.is_finite() {
            let found = format!("{score} for {piece:?}");
            return refuse(SCORES, found, "finite numbers".into());
        }
        squares = squares.saturating_add(length.saturating_pow(2));
    }
    if squares > MAX_SQUARES {
        let found = format!("{squares} bytes, lengths squared and summed");
        return refuse(TOKENS, found, format!("at most {MAX_SQUARES}"));
    }

    let known: HashSet<&str> = pieces.iter().map(|(piece, _)| *piece).collect();
    let mut wholes: Vec<(&str, f64)> = pieces
        .into_iter()
        .filter(|(piece, _)| cuts(piece, &known).next().is_some())
        .collect();
    wholes.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    // Which of two comes first would be a matter of their places in the text, which BPE cannot say. Published vocabularies
    // have this for runs of spaces only, where every order ends in the same tokens.
    let mut neighbours = wholes.iter().zip(wholes.iter().skip(1));
    let tied = neighbours.find(|((a, x), (b, y))| x == y && !(is_run(a) && is_run(b)));
    if let Some(((a, score), (b, _))) = tied {
        let found = format!("{score} for {a:?} and for {b:?}");
        let allowed = "a score of its own for each token, but for runs of one character";
        return refuse(SCORES, found, allowed.into());
    }
    let merges = wholes.iter().flat_map(|(piece, _)| cuts(piece, &known));
    let merges: Vec<_> = merges.take(MAX_MERGES + 1).collect();
    if merges.len() > MAX_MERGES {
        let found = "more ways to cut a token into two tokens".to_owned();
        return refuse(TOKENS, found, format!("at most {MAX_MERGES}"));
    }
    Ok(merges)
}

fn is_run(piece: &str) -> bool {
    let mut chars = piece.chars();
    let first = chars.next();
    chars.all(|c| Some(c) == first)
}

/// The ways to cut a token into two tokens.
fn cuts<'a>(piece: &'a str, known: &HashSet<&str>) -> impl Iterator<Item = (&'a str, &'a str)> {
    let places = piece.char_indices().skip(1).map(|(at, _)| at);
    let pairs = places.map(|at| piece.split_at(at));
    pairs.filter(|(left, right)| known.contains(left) && known.contains(right))
}
