//! The metadata of a tokenizer.

use super::super::Draw;
use super::write::{F32, I32, TEXT, Value};
use std::collections::HashSet;

/// ggml's numbers for kinds of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// The values, and the number of tokens.
pub fn values(draw: &mut Draw<'_>) -> (Vec<(String, Value)>, u64) {
    let sentencepiece = draw.flag();
    let mut vocabulary = match sentencepiece {
        true => sentences(),
        false => letters(),
    };
    let mut merges = Vec::new();
    for _ in 0..draw.below(24) {
        let pieces: Vec<&str> = vocabulary
            .iter()
            .filter(|(_, kind)| *kind == NORMAL)
            .map(|(text, _)| text.as_str())
            .collect();
        let (left, right) = (draw.pick(&pieces), draw.pick(&pieces));
        let (merge, whole) = (format!("{left} {right}"), format!("{left}{right}"));
        if whole.len() < 300 && !vocabulary.iter().any(|(text, _)| *text == whole) {
            vocabulary.push((whole, NORMAL));
        }
        merges.push(merge);
    }
    let ends = ["<|im_start|>", "<|im_end|>", "<tool>", "\u{2581}x", "</s>"];
    for end in ends {
        let kind = draw.pick(&[CONTROL, USER_DEFINED, NORMAL, UNKNOWN, 5]);
        vocabulary.push((end.to_owned(), kind));
    }
    if draw.rarely() {
        let text = draw.text();
        vocabulary.push((text, draw.pick(&[CONTROL, USER_DEFINED, NORMAL, BYTE])));
    }
    // Each token once, but for a fault.
    let mut seen = HashSet::new();
    if !draw.rarely() {
        vocabulary.retain(|(text, _)| seen.insert(text.clone()));
    }
    let count = vocabulary.len() as u64;
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let texts = vocabulary.iter().map(|(text, _)| Value::text(text));
    let kinds = vocabulary.iter().map(|(_, kind)| Value::i32(*kind));
    let mut values = vec![
        (
            key("model"),
            Value::text(if sentencepiece { "llama" } else { "gpt2" }),
        ),
        (key("tokens"), Value::list(TEXT, texts)),
        (key("token_type"), Value::list(I32, kinds)),
    ];
    if sentencepiece {
        let tie = draw.rarely();
        let score = |index: usize| if tie { -1.0 } else { -(index as f32) };
        let scores = (0..vocabulary.len()).map(|index| Value::f32(score(index)));
        values.push((key("scores"), Value::list(F32, scores)));
        if draw.flag() {
            values.push((key("add_space_prefix"), Value::flag(draw.flag())));
        }
    } else {
        let pre = [
            "default",
            "gpt-2",
            "smollm",
            "llama-bpe",
            "dbrx",
            "qwen2",
            "gpt-4o",
            "tekken",
            "other",
        ];
        values.push((key("pre"), Value::text(draw.pick(&pre))));
        let merges = merges.iter().map(|merge| Value::text(merge));
        values.push((key("merges"), Value::list(TEXT, merges)));
    }
    for name in ["bos", "eos", "padding", "unknown", "eot"] {
        if draw.flag() {
            let id = match draw.rarely() {
                true => draw.number(),
                false => draw.below(count as usize) as u64,
            };
            values.push((key(&format!("{name}_token_id")), Value::u32(id)));
        }
    }
    if draw.flag() {
        values.push((key("add_bos_token"), Value::flag(draw.flag())));
    }
    (values, count)
}

/// A few of the letters that stand for bytes, or all of them.
fn letters() -> Vec<(String, i32)> {
    let plain = (b'!'..=b'~').map(char::from);
    let others = (0x100..0x144).filter_map(char::from_u32);
    let rest = (0xa1..=0xff)
        .filter(|code| *code != 0xad)
        .filter_map(char::from_u32);
    let all = plain.chain(others).chain(rest);
    all.map(|letter| (letter.to_string(), NORMAL)).collect()
}

fn sentences() -> Vec<(String, i32)> {
    let bytes = (0..=255).map(|byte| (format!("<0x{byte:02X}>"), BYTE));
    let start = [("<unk>", UNKNOWN), ("<s>", CONTROL)].map(|(text, kind)| (text.to_owned(), kind));
    let letters = "\u{2581}abcdehlo.1\u{e9}\u{4e16}".chars();
    let letters = letters.map(|letter| (letter.to_string(), NORMAL));
    start.into_iter().chain(bytes).chain(letters).collect()
}
