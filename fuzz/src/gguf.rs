//! A GGUF file, or the parts of one: header, config, tensors, tokenizer and chat template.

mod recipe;
mod vocabulary;
mod write;

use super::{Draw, config, template, tokenizer};
use polykv_models::chat::ChatTemplate;
use polykv_models::gguf::{self, GgufFile};
use polykv_models::tokenizer::Tokenizer;
use std::path::PathBuf;
use std::sync::Arc;

pub fn run(input: &[u8]) {
    let folder = super::Folder::new();
    let files = match Draw::of(input) {
        Some(mut draw) => recipe::files(&mut draw),
        None => vec![("model.gguf".to_owned(), input.to_vec())],
    };
    let bytes = files.iter().map(|(_, content)| content.len()).sum();
    let paths: Vec<PathBuf> = files
        .iter()
        .map(|(name, content)| folder.write(name, content))
        .collect();
    // Any part stands for all of them.
    match GgufFile::open(&paths[paths.len() - 1]) {
        Ok(file) => opened(Arc::new(file), bytes),
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
    let held = file
        .tensor_names()
        .filter_map(|name| Some((name, file.tensor(name)?)));
    let held = held.map(|(name, tensor)| {
        let mut own = Vec::new();
        match file.append_part(name, 0..tensor.elements(), &mut own) {
            Ok(()) => assert_eq!(own.len(), tensor.range.len()),
            Err(error) => super::refused(&error),
        }
        tensor.range.len()
    });
    let held: usize = held.sum();
    assert!(held <= bytes, "{held} bytes of tensors in {bytes}");
    match Tokenizer::from_gguf(&file) {
        Ok(tokenizer) => tokenizer::accepted(tokenizer, &[]),
        Err(error) => super::refused(&error),
    }
    match ChatTemplate::from_gguf(&file) {
        Ok(Some(template)) => template::rendered(&template),
        Ok(None) => {}
        Err(error) => super::refused(&error),
    }
}
