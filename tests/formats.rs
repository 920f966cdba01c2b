//! Weight files: shards with an index, and GGUF with its number formats, whole and split, against
//! `tests/fixtures/generate.py`.

#![cfg(feature = "flex")]

#[path = "formats/block_model.rs"]
mod block_model;
#[path = "formats/blocks.rs"]
mod blocks;
#[path = "formats/ends.rs"]
mod ends;
#[path = "formats/families.rs"]
mod families;
#[path = "formats/gguf.rs"]
mod gguf;
#[path = "formats/shards.rs"]
mod shards;
#[path = "formats/split.rs"]
mod split;
#[path = "formats/writer.rs"]
mod writer;

use std::path::{Path, PathBuf};

const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}
