//! GGUF files that were split into parts.

use super::gguf::{logits, tiny_qwen3};
use super::writer::split;
use burn::tensor::Device;
use polykv::Storage;
use polykv::models::load;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A whole file and its parts, in two folders.
fn whole_and_parts() -> (TempDir, PathBuf, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole.gguf");
    tiny_qwen3().write(&whole);
    let folder = dir.path().join("split");
    std::fs::create_dir(&folder).unwrap();
    // The first part without tensors is what `--no-tensor-first-split` gives.
    let parts = split(&whole, &folder, &[0, 20]);
    (dir, whole, parts)
}

fn refusal(path: &Path) -> String {
    let error = load::load_weights(path, Storage::F32, &Device::flex()).unwrap_err();
    let message = error.to_string();
    assert!(error.is_refusal(), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

#[test]
fn parts_and_their_folder_equal_the_whole_file() {
    let (_dir, whole, parts) = whole_and_parts();
    let device = Device::flex();
    let prompt: Vec<i64> = (3..93).collect();
    let load = |path: &Path| load::load_weights(path, Storage::F32, &device).unwrap();
    let expected = load(&whole);
    let folder = parts[0].parent().unwrap().to_owned();
    assert_eq!(load::locate(&folder).unwrap(), parts[0]);
    for path in parts.iter().chain([&folder]) {
        let model = load(path);
        assert_eq!(load::config(path).unwrap(), *expected.config());
        assert_eq!(logits(&*model, &prompt), logits(&*expected, &prompt));
    }
}

#[test]
fn a_missing_part_is_named_wherever_loading_starts() {
    for missing in 0..3 {
        let (_dir, _, parts) = whole_and_parts();
        std::fs::remove_file(&parts[missing]).unwrap();
        let name = parts[missing].file_name().unwrap().to_str().unwrap();
        let folder = parts[0].parent().unwrap().to_owned();
        for path in parts.iter().filter(|path| path.exists()).chain([&folder]) {
            let message = refusal(path);
            assert!(
                message.contains(&format!("{name}: file is missing")),
                "{message}"
            );
        }
    }
}

#[test]
fn parts_of_two_sets_are_not_taken_for_one_model() {
    let (_dir, whole, parts) = whole_and_parts();
    let folder = parts[0].parent().unwrap();
    // The same model in two parts, beside its three.
    let others = split(&whole, folder, &[10]);
    let message = refusal(folder);
    for part in [
        "number of GGUF models is 2",
        "-00001-of-00002.gguf",
        "-00001-of-00003.gguf",
    ] {
        assert!(message.contains(part), "no {part} in {message}");
    }
    // A part of one set under the name of another's.
    std::fs::copy(&others[1], &parts[2]).unwrap();
    let message = refusal(&parts[0]);
    let name = parts[2].file_name().unwrap().to_str().unwrap();
    assert!(
        message.contains(name) && message.contains("split.no is 1; allowed: 2"),
        "{message}"
    );
}

#[test]
fn a_weight_that_is_no_number_is_named_with_its_part() {
    let (_dir, _, parts) = whole_and_parts();
    let mut bytes = std::fs::read(&parts[2]).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&parts[2], bytes).unwrap();
    let message = refusal(&parts[0]);
    let name = parts[2].file_name().unwrap().to_str().unwrap();
    assert!(
        message.contains(name) && message.contains("NaN"),
        "{message}"
    );
}
