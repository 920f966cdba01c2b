//! Safetensors files in shards, with an index.

use super::fixture;
use super::{INDEX, SHARDS};
use burn::tensor::Device;
use polykv::Storage;
use polykv::models::load;
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

fn copy_of_shards() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", INDEX, SHARDS[0], SHARDS[1]] {
        let content = std::fs::read(fixture("tiny-qwen3").join(name)).unwrap();
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

fn edit_index(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join(INDEX);
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut index["weight_map"]);
    std::fs::write(path, index.to_string()).unwrap();
}

#[test]
fn an_index_at_odds_with_its_shards_is_refused() {
    const NORM: &str = "model.norm.weight";
    const HEAD: &str = "lm_head.weight";
    type Spoil = fn(&Path);
    let cases: [(Spoil, &[&str]); 8] = [
        (
            |folder| std::fs::remove_file(folder.join(SHARDS[1])).unwrap(),
            &[SHARDS[1], "No such file"],
        ),
        (
            |folder| edit_index(folder, |map| map["model.extra.weight"] = json!(SHARDS[0])),
            &[SHARDS[0], "model.extra.weight", "missing", INDEX],
        ),
        (
            |folder| {
                edit_index(folder, |map| {
                    map.as_object_mut().unwrap().remove(HEAD);
                });
            },
            &[SHARDS[0], HEAD, "not listed", INDEX],
        ),
        (
            |folder| edit_index(folder, |map| map[HEAD] = json!(SHARDS[1])),
            &[SHARDS[0], HEAD, "not listed", INDEX],
        ),
        (
            |folder| edit_index(folder, |map| map[HEAD] = json!("../model.safetensors")),
            &[INDEX, "\"../model.safetensors\"", "plain name"],
        ),
        // A tensor in both shards.
        (
            |folder| {
                std::fs::copy(folder.join(SHARDS[0]), folder.join(SHARDS[1])).unwrap();
            },
            &[SHARDS[1], "not listed", INDEX],
        ),
        (
            |folder| {
                let text = std::fs::read_to_string(folder.join(INDEX)).unwrap();
                let twice = format!("\"{NORM}\": \"{}\", \"{NORM}\"", SHARDS[0]);
                let text = text.replace(&format!("\"{NORM}\""), &twice);
                std::fs::write(folder.join(INDEX), text).unwrap();
            },
            &[INDEX, NORM, "twice"],
        ),
        (
            |folder| std::fs::write(folder.join(INDEX), vec![b' '; (8 << 20) + 1]).unwrap(),
            &[INDEX, "size", "8388609 bytes", "8388608"],
        ),
    ];
    for (spoil, parts) in cases {
        let folder = copy_of_shards();
        spoil(folder.path());
        let error = load::load_weights(folder.path(), Storage::F32, &Device::flex()).unwrap_err();
        let message = error.to_string();
        assert!(
            error.is_refusal() && message.lines().count() == 1,
            "{message}"
        );
        for part in parts {
            assert!(message.contains(part), "no {part} in {message}");
        }
    }
}
