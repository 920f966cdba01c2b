//! Qwen2.5-Coder-0.5B-Instruct against transformers and llama.cpp, where `scripts/qwen25-coder` has fetched it.
//!
//! The tests fetch nothing: its packages are a stranger's and hold 491 MB. Nothing requires it, `POLYKV_REQUIRE_MODEL` neither.

use super::{
    Golden, check_greedy, check_logits, check_long_prompt, check_perplexity, check_tokenizer,
    greedy, ids, loaded, root,
};
use burn::tensor::Device;
use polykv::models::chat::Message;
use polykv::models::load::load_as;
use polykv::models::tokenizer::Specials;
use polykv::models::{Generator, LoadedModel};
use polykv::{Plan, Storage};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

/// None, with a message, where nobody has fetched the file.
fn file() -> Option<PathBuf> {
    let script = root().join("scripts/qwen25-coder");
    let output = match Command::new("python3")
        .arg(&script)
        .arg("--cached")
        .output()
    {
        Ok(output) => output,
        Err(error) => {
            eprintln!("skipped: python3: {error}");
            return None;
        }
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    if !output.status.success() {
        eprintln!(
            "skipped: {} ({} fetches it)",
            text(&output.stderr),
            script.display()
        );
        return None;
    }
    Some(text(&output.stdout).into())
}

fn messages(chat: &Value) -> Vec<Message> {
    let list = chat["messages"].as_array().unwrap().iter();
    let part = |message: &Value, name: &str| message[name].as_str().unwrap().to_string();
    list.map(|message| Message::new(part(message, "role"), part(message, "content")))
        .collect()
}

fn prompt(model: &LoadedModel, chat: &Value) -> Vec<u32> {
    let template = model.chat.as_ref().unwrap();
    let found = template.encode(&model.tokenizer, &messages(chat), true);
    found.unwrap()
}

/// The model's own template, as transformers renders it.
fn check_chats(model: &LoadedModel, golden: &Golden) {
    let chats = golden.json["chats"].as_array().unwrap();
    assert!(chats.len() >= 2);
    for chat in chats {
        let template = model.chat.as_ref().unwrap();
        let text = template.render(&messages(chat), true).unwrap();
        assert_eq!(text, chat["text"].as_str().unwrap());
        assert_eq!(prompt(model, chat), ids(&chat["ids"]), "{text:?}");
    }
}

/// An answer from a text, to the end of the turn.
fn check_answer(generator: &mut Generator, prompt: &[u32], golden: &Golden) {
    let answer = &golden.json["answer"];
    let wanted = ids(&answer["ids"]);
    let (mut tokens, text) = greedy(generator, prompt, wanted.len() + 1);
    assert_eq!(text, answer["text"].as_str().unwrap());
    if tokens.last() == Some(&END_OF_TURN) {
        tokens.pop();
    }
    assert_eq!(tokens, wanted);
}

/// `<|im_end|>`.
const END_OF_TURN: u32 = 151_645;

#[test]
fn qwen_reads_and_writes_tokens_as_transformers_does() {
    let Some(path) = file() else { return };
    let tokenizer = check_tokenizer(&path, &Golden::read("qwen25"));
    assert!(tokenizer.start().is_empty());
    let text = "<|im_start|>user\n<|fim_prefix|><|im_end|>";
    let parsed = tokenizer.encode(text, Specials::Parse).unwrap();
    assert_eq!(parsed, [151_644, 872, 198, 151_659, END_OF_TURN]);
    let literal = tokenizer.encode(text, Specials::AsText).unwrap();
    assert!(!literal.iter().any(|id| tokenizer.is_special(*id)));
    assert_eq!(tokenizer.decode(&literal, true).unwrap(), text);
}

#[test]
fn qwen_equals_transformers_and_llama_cpp() {
    let Some(path) = file() else { return };
    let golden = Golden::read("qwen25");
    let model = loaded(&path);
    // <|im_end|> by its key; by their texts <|endoftext|>, <|fim_pad|>, <|repo_name|> and <|file_sep|>.
    assert_eq!(
        model.eos_tokens,
        [END_OF_TURN, 151_643, 151_662, 151_663, 151_664]
    );
    check_chats(&model, &golden);
    check_logits(&model, &golden, 5e-3);
    check_perplexity(&model, &golden, 5e-3);
    check_long_prompt(&model, &golden, 5e-3);
    let question = prompt(&model, &golden.json["answer"]);
    let plan = Plan::full(model.model.config().layers.len());
    let generator = &mut Generator::new(model, plan).unwrap();
    check_greedy(generator, &golden);
    check_answer(generator, &question, &golden);
}

/// Computed from the blocks of the file: another answer by chance only, as llama.cpp's would be.
#[test]
fn qwen_answers_from_the_blocks_of_its_file() {
    let Some(path) = file() else { return };
    let golden = Golden::read("qwen25");
    let model = load_as(&path, Storage::Native, &Device::flex()).unwrap();
    let question = prompt(&model, &golden.json["answer"]);
    let plan = Plan::full(model.model.config().layers.len());
    check_answer(
        &mut Generator::new(model, plan).unwrap(),
        &question,
        &golden,
    );
}
