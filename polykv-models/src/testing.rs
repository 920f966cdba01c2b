//! The tiny model with a context of any length.

use crate::{LoadedModel, load};
use burn::tensor::Device;
use std::path::Path;

pub fn tiny(context: usize) -> LoadedModel {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-llama31");
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ] {
        let content = std::fs::read(fixture.join(name)).unwrap();
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    let config = std::fs::read_to_string(fixture.join("config.json")).unwrap();
    let (old, new) = (
        "\"max_position_embeddings\": 512",
        format!("\"max_position_embeddings\": {context}"),
    );
    assert!(config.contains(old));
    std::fs::write(dir.path().join("config.json"), config.replace(old, &new)).unwrap();
    load(dir.path(), &Device::flex()).unwrap()
}
