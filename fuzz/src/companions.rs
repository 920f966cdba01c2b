//! tokenizer_config.json and special_tokens_map.json, beside a tokenizer of our own.

use super::{template, tokenizer};
use polykv_models::chat::ChatTemplate;
use polykv_models::tokenizer::Tokenizer;

/// Letters, two tokens that are special and two that are not.
const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
    "pre_tokenizer": null, "post_processor": null, "decoder": null,
    "added_tokens": [{"id": 4, "content": "<s>", "special": true, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false}, {"id": 5, "content": "<t>", "special": false, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false}],
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
        "vocab": {"a": 0, "b": 1, " ": 2, "ab": 3, "<s>": 4, "<t>": 5, "</s>": 6}, "merges": ["a b"]}}"#;

pub fn run(input: &[u8]) {
    let [config, map] = super::pieces(input);
    let folder = super::Folder::new();
    let path = folder.write("tokenizer.json", TOKENIZER.as_bytes());
    folder.write("tokenizer_config.json", config);
    folder.write("special_tokens_map.json", map);
    match ChatTemplate::from_folder(folder.path()) {
        Ok(Some(template)) => template::rendered(&template),
        Ok(None) => {}
        Err(error) => super::refused(&error),
    }
    match Tokenizer::from_json_file(&path) {
        Ok(tokenizer) => tokenizer::accepted(tokenizer, &[]),
        Err(error) => super::refused(&error),
    }
}
