//! Memory that a budget or a number format frees, as the operating system sees it: fresh processes on the same prompt.
//!
//! Where the model is neither in the cache nor to be had, the test is skipped with a message; `POLYKV_REQUIRE_MODEL=1`
//! makes that a failure.

#![cfg(target_os = "linux")]

use std::fmt::Write;
use std::process::Command;

fn prompt() -> String {
    const WORDS: [&str; 12] = [
        "the harbour",
        "an old wooden gate",
        "seven green apples",
        "a letter from the north",
        "the evening train",
        "a quiet garden",
        "the bells",
        "a painter",
        "rain on the roof",
        "the market",
        "two ferries",
        "a lamp",
    ];
    let mut text = String::new();
    for i in 0..560 {
        let [a, b, c] = [i % 12, i * 5 % 12, i * i % 12];
        let _ = write!(
            text,
            "Nobody compared {} with {} before {}. ",
            WORDS[a], WORDS[b], WORDS[c]
        );
    }
    text
}

struct Run {
    prompt_tokens: u64,
    kv_bytes: u64,
    process_peak: u64,
}

fn run(prompt: &std::path::Path, compression: &[&str]) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_polykv"))
        .args(["generate", "-m", "smollm2-135m", "-n", "2", "--json", "-f"])
        .arg(prompt)
        .args(compression)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    Run {
        prompt_tokens: json["prompt_tokens"].as_u64().unwrap(),
        kv_bytes: json["kv"]["peak_bytes"].as_u64().unwrap(),
        process_peak: json["process_peak_bytes"].as_u64().unwrap(),
    }
}

/// Whether the model can be had, which is said otherwise.
fn has_model() -> bool {
    match polykv::models::hub::resolve("smollm2-135m", false, &mut |_| {}) {
        Ok(_) => true,
        Err(error) => {
            let required = std::env::var_os("POLYKV_REQUIRE_MODEL").is_some();
            assert!(!required, "{error}");
            eprintln!("skipped: {error}");
            false
        }
    }
}

#[test]
fn peak_resident_memory_falls_by_what_the_cache_saves() {
    if !has_model() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, prompt()).unwrap();
    let full = run(&file, &[]);
    let trimmed = run(&file, &["--policy", "snapkv", "--budget", "256"]);
    assert!(
        (7000..8192).contains(&full.prompt_tokens),
        "{} tokens",
        full.prompt_tokens
    );
    let saving = full.kv_bytes - trimmed.kv_bytes;
    let freed = full.process_peak.saturating_sub(trimmed.process_peak);
    println!(
        "{} tokens: KV peak {} -> {} bytes, process peak {} -> {} bytes",
        full.prompt_tokens,
        full.kv_bytes,
        trimmed.kv_bytes,
        full.process_peak,
        trimmed.process_peak
    );
    assert!(
        freed as f64 >= 0.8 * saving as f64,
        "freed {freed} of {saving} bytes"
    );
}

/// Weights of the model in f32, and in the blocks of its file.
const WEIGHTS: u64 = 134_515_008 * 4;
const BLOCKS: u64 = 96_436_224;
/// The pages of the program that were touched, about 28 MB with wgpu, and the tokenizer; not what reading it took.
const BESIDE: u64 = 60_000_000;

#[test]
fn blocks_are_held_as_they_are_and_nothing_beside_them() {
    if !has_model() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, "A letter from the north.").unwrap();
    let wide = run(&file, &["--dtype", "f32"]);
    let native = run(&file, &["--dtype", "native"]);
    let freed = wide.process_peak.saturating_sub(native.process_peak);
    println!(
        "process peak {} bytes in f32, {} in blocks",
        wide.process_peak, native.process_peak
    );
    assert!(
        freed as f64 >= 0.9 * (WEIGHTS - BLOCKS) as f64,
        "freed {freed} bytes of {}",
        WEIGHTS - BLOCKS
    );
    let beside = native.process_peak.saturating_sub(BLOCKS + native.kv_bytes);
    println!("{beside} bytes beside blocks and cache");
    assert!(beside < BESIDE, "{beside} bytes beside blocks and cache");
}
