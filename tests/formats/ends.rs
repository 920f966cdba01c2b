//! Which tokens end an answer.

use super::fixture;
use burn::tensor::Device;
use polykv::models::load;
use serde_json::{Value, json};

#[test]
fn end_tokens_come_from_every_file_that_names_some() {
    let dir = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        let content = std::fs::read(fixture("tiny-llama31").join(name)).unwrap();
        std::fs::write(dir.path().join(name), content).unwrap();
    };
    for name in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ] {
        copy(name);
    }
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let ends = || load::load(dir.path(), &Device::flex()).map(|model| model.eos_tokens);
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["eos_token_id"] = json!(0);
    write("config.json", &config.to_string());
    // `<|im_end|>`, which tokenizer_config.json names, is 2.
    assert_eq!(ends().unwrap(), [0, 2]);
    write("generation_config.json", r#"{"eos_token_id": [0, 7]}"#);
    assert_eq!(ends().unwrap(), [0, 7, 2]);
    write(
        "tokenizer_config.json",
        r#"{"eos_token": {"content": "<|im_start|>"}}"#,
    );
    assert_eq!(ends().unwrap(), [0, 7, 1]);
    write("generation_config.json", r#"{"eos_token_id": 320}"#);
    let message = ends().unwrap_err().to_string();
    assert!(
        message.contains("generation_config.json") && message.contains("320"),
        "{message}"
    );
}
