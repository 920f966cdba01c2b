//! A tokenizer.json of steps that are all known, with a few faults, and texts of the same letters.

use super::super::Draw;
use serde_json::{Map, Value, json};

/// The file and the texts.
pub fn tokenizer(draw: &mut Draw<'_>) -> (Vec<u8>, Vec<String>) {
    let (model, vocabulary) = model(draw);
    let mut file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "normalizer": step(draw, &normalizer, 0),
        "pre_tokenizer": step(draw, &pre_tokenizer, 0),
        "post_processor": step(draw, &post_processor, 0),
        "decoder": step(draw, &decoder, 0),
        "added_tokens": added(draw, &vocabulary),
        "model": model,
    });
    for _ in 0..draw.faults() {
        let depth = 1 + draw.below(5);
        spoil(draw, &mut file, depth);
    }
    let texts = (0..4).map(|_| (0..3).map(|_| draw.text()).collect());
    let texts = texts.collect();
    (file.to_string().into_bytes(), texts)
}

/// A model and its tokens, in the order of their ids.
fn model(draw: &mut Draw<'_>) -> (Value, Vec<String>) {
    let fallback = draw.flag();
    let mut vocabulary: Vec<String> = match draw.below(3) {
        0 => "abcdehlo1.<| \u{120}\u{10a}\u{c3}\u{a9}"
            .chars()
            .map(String::from)
            .collect(),
        1 => "abcdehlo1.\u{2581}\u{e9}\u{4e16}"
            .chars()
            .map(String::from)
            .collect(),
        // Every letter that stands for a byte, and more.
        _ => (0x21..0x144)
            .filter_map(char::from_u32)
            .map(String::from)
            .collect(),
    };
    if fallback {
        vocabulary.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    }
    let mut merges = Vec::new();
    for _ in 0..draw.below(16) {
        let (left, right) = (draw.below(vocabulary.len()), draw.below(vocabulary.len()));
        let (left, right) = (&vocabulary[left], &vocabulary[right]);
        let whole = format!("{left}{right}");
        merges.push(json!([left, right]));
        if whole.len() < 3000 && !vocabulary.contains(&whole) {
            vocabulary.push(whole);
        }
    }
    for special in ["<unk>", "<s>", "<|im_end|>", "##b"] {
        if !vocabulary.iter().any(|text| text == special) {
            vocabulary.push(special.to_owned());
        }
    }
    let ids: Map<String, Value> = vocabulary
        .iter()
        .enumerate()
        .map(|(id, text)| (text.clone(), json!(id)))
        .collect();
    let unknown = draw.pick(&[None, Some("<unk>"), Some("x")]);
    let model = match draw.below(8) {
        5 => json!({
            "type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": draw.pick(&["##", ""]),
            "max_input_chars_per_word": draw.pick(&[100, 1, 0]), "vocab": ids,
        }),
        6 => {
            let score = |id: usize| -(id as f64) / 8.0;
            let scored = vocabulary.iter().enumerate();
            let scored: Vec<Value> = scored.map(|(id, text)| json!([text, score(id)])).collect();
            json!({
                "type": "Unigram", "unk_id": draw.pick(&[Some(0), None, Some(1 << 20)]),
                "byte_fallback": fallback, "vocab": scored,
            })
        }
        7 => json!({"type": "WordLevel", "vocab": ids, "unk_token": "<unk>"}),
        _ => json!({
            "type": "BPE", "dropout": draw.pick(&[None, None, None, Some(0.5)]), "unk_token": unknown,
            "continuing_subword_prefix": draw.pick(&[None, None, None, Some("##")]),
            "end_of_word_suffix": draw.pick(&[None, None, None, Some("</w>")]),
            "fuse_unk": draw.flag(), "byte_fallback": fallback, "ignore_merges": draw.flag(),
            "vocab": ids, "merges": merges,
        }),
    };
    (model, vocabulary)
}

fn added(draw: &mut Draw<'_>, vocabulary: &[String]) -> Vec<Value> {
    let count = draw.below(6);
    let mut next = vocabulary.len();
    let token = |_| {
        let known = draw.below(vocabulary.len());
        let (id, content) = match draw.below(4) {
            0 => (known, vocabulary[known].clone()),
            1 => {
                next += 1;
                (next - 1, format!("<|{}|>", draw.text()))
            }
            2 => {
                next += 1;
                (next - 1, draw.text())
            }
            _ => {
                let id = vocabulary.iter().position(|text| text == "<s>");
                (id.unwrap_or(known), "<s>".to_owned())
            }
        };
        json!({
            "id": id, "content": content, "special": draw.flag(), "single_word": draw.rarely(), "lstrip": draw.rarely(),
            "rstrip": draw.rarely(), "normalized": draw.flag(),
        })
    };
    (0..count).map(token).collect()
}

/// One of the steps of a part, several of them, or none. `one` gives the type of the list, too, when it is asked for the
/// last number.
fn step(draw: &mut Draw<'_>, one: &dyn Fn(&mut Draw<'_>, usize) -> Value, depth: usize) -> Value {
    match draw.below(6) {
        0 | 1 => Value::Null,
        2 if depth < 3 => {
            let count = draw.below(4);
            let steps: Vec<Value> = (0..count)
                .map(|_| step(draw, one, depth + 1))
                .filter(|step| !step.is_null())
                .collect();
            let list = one(draw, usize::MAX);
            json!({"type": "Sequence", list.as_str().unwrap_or_default(): steps})
        }
        _ => {
            let which = draw.below(16);
            one(draw, which)
        }
    }
}

fn pattern(draw: &mut Draw<'_>) -> Value {
    let expressions = [
        "\\p{L}+|\\p{N}{1,3}|[^\\s\\p{L}]+|\\s+(?!\\S)|\\s+",
        "a*",
        "",
        "(?i:'s|'t)|x?",
        "[",
        "(a|aa)+b",
        " {2,}",
        "^",
        "(?=a)",
    ];
    match draw.flag() {
        true => json!({"Regex": draw.pick(&expressions)}),
        false => json!({"String": draw.pick(&[" ", "a", "", "\u{2581}", "ab", "\u{e9}"])}),
    }
}

fn behavior(draw: &mut Draw<'_>) -> &'static str {
    draw.pick(&[
        "Isolated",
        "Removed",
        "MergedWithPrevious",
        "MergedWithNext",
        "Contiguous",
    ])
}

fn metaspace(draw: &mut Draw<'_>) -> Value {
    json!({
        "type": "Metaspace", "replacement": draw.pick(&["\u{2581}", "a", "_"]),
        "prepend_scheme": draw.pick(&["always", "never", "first"]), "split": draw.flag(),
    })
}

fn byte_level(draw: &mut Draw<'_>) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": draw.flag(), "trim_offsets": draw.flag(), "use_regex": draw.flag(),
    })
}

fn replace(draw: &mut Draw<'_>) -> Value {
    let content = draw.pick(&["\u{2581}", "", " ", "aa", "aaaaaaaaaaaaaaaaaaaa"]);
    json!({"type": "Replace", "pattern": pattern(draw), "content": content})
}

fn strip(draw: &mut Draw<'_>) -> Value {
    let ends = [0_u64, 1, 2, 1 << 40];
    json!({"type": "Strip", "content": " ", "start": draw.pick(&ends), "stop": draw.pick(&ends)})
}

fn normalizer(draw: &mut Draw<'_>, which: usize) -> Value {
    match which {
        0 => json!({"type": "NFC"}),
        1 => json!({"type": "NFKD"}),
        2 => json!({"type": "NFKC"}),
        3 => json!({"type": "Lowercase"}),
        4 => json!({"type": "StripAccents"}),
        5 => json!({"type": "Nmt"}),
        6 => json!({"type": "Strip", "strip_left": draw.flag(), "strip_right": draw.flag()}),
        7 | 8 => json!({"type": "Prepend", "prepend": draw.pick(&["\u{2581}", "", "aaaa"])}),
        9 => json!({
            "type": "BertNormalizer", "clean_text": draw.flag(), "handle_chinese_chars": draw.flag(),
            "strip_accents": draw.pick(&[None, Some(true), Some(false)]), "lowercase": draw.flag(),
        }),
        10 => json!({"type": "ByteLevel"}),
        // An empty table, and one that is cut off.
        11 => {
            json!({"type": "Precompiled", "precompiled_charsmap": draw.pick(&["AAAAAA==", "BAAAAAAAAABhAA==", "AQ=="])})
        }
        usize::MAX => json!("normalizers"),
        _ => replace(draw),
    }
}

fn pre_tokenizer(draw: &mut Draw<'_>, which: usize) -> Value {
    match which {
        0 => json!({"type": "Whitespace"}),
        1 => json!({"type": "WhitespaceSplit"}),
        2 => json!({"type": "Digits", "individual_digits": draw.flag()}),
        3 => json!({"type": "Punctuation", "behavior": behavior(draw)}),
        4 => json!({"type": "CharDelimiterSplit", "delimiter": draw.pick(&["a", " ", "\u{e9}"])}),
        5 => json!({"type": "BertPreTokenizer"}),
        6 => json!({"type": "UnicodeScripts"}),
        7 | 8 => metaspace(draw),
        9..=12 => json!({
            "type": "Split", "pattern": pattern(draw), "behavior": behavior(draw), "invert": draw.flag(),
        }),
        usize::MAX => json!("pretokenizers"),
        _ => byte_level(draw),
    }
}

fn post_processor(draw: &mut Draw<'_>, which: usize) -> Value {
    let id = draw.pick(&[0, 1, 20, 70_000]);
    let text = |id: &str, kind: usize| json!({"Sequence": {"id": id, "type_id": kind}});
    match which {
        0..=7 => {
            let begin =
                json!({"SpecialToken": {"id": draw.pick(&["<s>", "<unk>", "x"]), "type_id": 0}});
            let ids = match draw.rarely() {
                true => vec![id; 70],
                false => vec![id],
            };
            let tokens = vec!["<s>"; ids.len()];
            json!({
                "type": "TemplateProcessing", "single": [begin, text("A", 0)],
                "pair": [text("A", 0), text("B", 1)],
                "special_tokens": {"<s>": {"id": "<s>", "ids": ids, "tokens": tokens}},
            })
        }
        8 | 9 => json!({"type": "BertProcessing", "sep": ["<s>", id], "cls": ["<s>", 0]}),
        10 | 11 => json!({
            "type": "RobertaProcessing", "sep": ["<s>", id], "cls": ["<s>", 0], "trim_offsets": draw.flag(),
            "add_prefix_space": draw.flag(),
        }),
        usize::MAX => json!("processors"),
        _ => byte_level(draw),
    }
}

fn decoder(draw: &mut Draw<'_>, which: usize) -> Value {
    match which {
        0 | 1 => replace(draw),
        2 => json!({"type": "ByteFallback"}),
        3 => json!({"type": "Fuse"}),
        4 | 5 => strip(draw),
        6 => json!({"type": "WordPiece", "prefix": draw.pick(&["##", ""]), "cleanup": draw.flag()}),
        7 => json!({"type": "BPEDecoder", "suffix": draw.pick(&["</w>", ""])}),
        8 => json!({
            "type": "CTC", "pad_token": "<s>", "word_delimiter_token": draw.pick(&["|", ""]), "cleanup": draw.flag(),
        }),
        9 => metaspace(draw),
        usize::MAX => json!("decoders"),
        _ => byte_level(draw),
    }
}

/// Puts something else in place of one value, `depth` levels below or where there is nothing below.
fn spoil(draw: &mut Draw<'_>, value: &mut Value, depth: usize) {
    let inner = match value {
        Value::Object(map) => {
            let which = draw.below(map.len().max(1));
            map.values_mut().nth(which)
        }
        Value::Array(list) => {
            let which = draw.below(list.len().max(1));
            list.get_mut(which)
        }
        _ => None,
    };
    match inner {
        Some(inner) if depth > 0 => spoil(draw, inner, depth - 1),
        _ => *value = other(draw),
    }
}

fn other(draw: &mut Draw<'_>) -> Value {
    match draw.below(8) {
        0 => Value::Null,
        1 => json!(draw.number()),
        2 => json!(-1.5),
        3 => json!(draw.text()),
        4 => json!("a".repeat(draw.pick(&[100, 2049, 5000]))),
        5 => json!([draw.text(), draw.number()]),
        6 => (0..70).fold(json!({}), |inner, _| json!({"normalizers": [inner]})),
        _ => json!(draw.flag()),
    }
}
