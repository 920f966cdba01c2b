//! From the path that a user gives as the model to a folder or a GGUF file.

use super::safetensors::has_weights;
use crate::gguf::parts::first_name;
use polykv_core::{Error, Result};
use std::path::{Path, PathBuf};

/// Names that an error lists.
const SHOWN: usize = 4;

/// The checkpoint folder or the GGUF file that a path stands for. A folder that has no safetensors weights and exactly
/// one GGUF file, whole or split into parts, stands for that file.
///
/// # Errors
/// A folder with several GGUF models and no weights else; a single file of a checkpoint in place of its folder.
pub fn locate(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return match extension(path) {
            Some("safetensors" | "json") => Err(Error::invalid(
                path.display(),
                "model",
                "one file of a checkpoint",
                "the folder that holds it with config.json and tokenizer.json, or a .gguf file",
            )),
            _ => Ok(path.to_owned()),
        };
    }
    if has_weights(path) {
        return Ok(path.to_owned());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| Error::io(path, e))? {
        let file = entry.map_err(|e| Error::io(path, e))?.path();
        if extension(&file) == Some("gguf") && file.is_file() {
            files.push(file);
        }
    }
    // Of the parts of a split file, one stands for all.
    let set = |file: &PathBuf| {
        let name = file.file_name().map(|name| name.to_string_lossy());
        name.map(|name| first_name(&name))
    };
    files.sort_by_cached_key(|file| (set(file), file.clone()));
    files.dedup_by_key(|file| set(file));
    match files.as_slice() {
        [] => Ok(path.to_owned()),
        [file] => Ok(file.clone()),
        several => {
            let name = |file: &PathBuf| file.file_name().map(|n| n.to_string_lossy().into_owned());
            let names: Vec<String> = several.iter().take(SHOWN).filter_map(name).collect();
            let more = if several.len() > SHOWN { ", …" } else { "" };
            let found = format!("{}: {}{more}", several.len(), names.join(", "));
            let allowed = "one, or the path of one of them as the model";
            Err(Error::invalid(
                path.display(),
                "number of GGUF models",
                found,
                allowed,
            ))
        }
    }
}

fn extension(path: &Path) -> Option<&str> {
    path.extension()?.to_str()
}
