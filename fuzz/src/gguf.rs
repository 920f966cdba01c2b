//! A GGUF file: header, config, tensors, tokenizer and chat template.

use super::{config, template, tokenizer};
use polykv_models::chat::ChatTemplate;
use polykv_models::gguf::{self, GgufFile};
use polykv_models::tokenizer::Tokenizer;
use std::sync::Arc;

pub fn run(input: &[u8]) {
    let folder = super::Folder::new();
    let path = folder.write("model.gguf", input);
    match GgufFile::open(&path) {
        Ok(file) => opened(Arc::new(file), input.len()),
        Err(error) => super::refused(&error),
    }
}

fn opened(file: Arc<GgufFile>, bytes: usize) {
    match file.config() {
        Ok(config) => {
            config::accepted(&config);
            match gguf::tensors(&file, &config) {
                Ok(tensors) => tensors.iter().for_each(|tensor| match tensor.data() {
                    Ok(data) => assert_eq!(*data.shape(), tensor.shape),
                    Err(error) => super::refused(&error),
                }),
                Err(error) => super::refused(&error),
            }
        }
        Err(error) => super::refused(&error),
    }
    let held = file.tensor_names().filter_map(|name| file.tensor(name));
    let held: usize = held.map(|tensor| tensor.range.len()).sum();
    assert!(held <= bytes, "{held} bytes of tensors in {bytes}");
    match Tokenizer::from_gguf(&file) {
        Ok(tokenizer) => tokenizer::accepted(tokenizer),
        Err(error) => super::refused(&error),
    }
    match ChatTemplate::from_gguf(&file) {
        Ok(Some(template)) => template::rendered(&template),
        Ok(None) => {}
        Err(error) => super::refused(&error),
    }
}
