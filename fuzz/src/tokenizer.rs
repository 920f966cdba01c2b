//! tokenizer.json, and text through it.

mod recipe;

use super::Draw;
use polykv_models::tokenizer::{Specials, Tokenizer};

/// Short texts of each kind that makes tokenizers stumble.
const TEXTS: [&str; 7] = [
    "",
    " ",
    "Hello, world! 12345\n\n\tx",
    "<|im_start|>user\nhe said<|im_end|></s><s><unk>",
    "e\u{301}\u{fb01}\u{4e16}\u{754c}\u{1f600}\u{1f1e6}\u{200d}\u{feff}\u{0}\u{7f}\u{2028}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "fn main() { let a = b\"\\x00\"; } // ------------------------------------------------",
];

pub fn run(input: &[u8]) {
    let folder = super::Folder::new();
    let (content, texts) = match Draw::of(input) {
        Some(mut draw) => recipe::tokenizer(&mut draw),
        None => (input.to_vec(), Vec::new()),
    };
    let path = folder.write("tokenizer.json", &content);
    match Tokenizer::from_json_file(&path) {
        Ok(tokenizer) => accepted(tokenizer, &texts),
        Err(error) => super::refused(&error),
    }
}

/// What holds for every tokenizer that was accepted, whatever file it came from; `texts` are tried beside those of every
/// input.
pub fn accepted(tokenizer: Tokenizer, texts: &[String]) {
    let rows = tokenizer.vocab_size();
    let start = tokenizer.start();
    assert!(start.iter().all(|&id| (id as usize) < rows));
    let tokenizer = match tokenizer.fit(rows) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return super::refused(&error),
    };
    let long = "a b\u{e9} ".repeat(60);
    let texts = texts.iter().map(String::as_str);
    for text in TEXTS.into_iter().chain([long.as_str()]).chain(texts) {
        let [parsed, literal] =
            [Specials::Parse, Specials::AsText].map(|specials| tokenizer.encode(text, specials));
        // A model of another kind may know no token for a text: an error, but of no file.
        for ids in [&parsed, &literal].into_iter().flatten() {
            assert!(ids.iter().all(|&id| (id as usize) < rows));
            assert!(ids.len() >= tokenizer.least_tokens(text), "{text:?}");
        }
        if let Ok(ids) = literal {
            assert!(!ids.iter().any(|&id| tokenizer.is_special(id)), "{text:?}");
        }
        if let Ok(ids) = parsed {
            let _ = tokenizer.decode(&ids, true);
            let mut stream = tokenizer.stream(false);
            if ids.iter().take(40).all(|&id| stream.push(id).is_ok()) {
                let _ = stream.flush();
            }
        }
    }
}
