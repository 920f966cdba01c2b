//! model.safetensors.index.json and two shards.

use super::safetensors::bytes_of;
use polykv_models::load::safetensors;

pub fn run(input: &[u8]) {
    let [index, first, second] = super::pieces(input);
    let folder = super::Folder::new();
    folder.write("model.safetensors.index.json", index);
    folder.write("1.safetensors", first);
    folder.write("2.safetensors", second);
    match safetensors::read_folder(folder.path()) {
        Ok((_, tensors)) => assert!(bytes_of(&tensors) <= first.len() + second.len()),
        Err(error) => super::refused(&error),
    }
}
