//! Readers that go away, outputs that are full, characters that a terminal would obey, texts as people have them.

use super::{LONG, text, write};
use crate::cli_support::{
    command, copy_of_tiny_model, generate, generate_args, generate_json, path_str, polykv,
    polykv_with, run, tiny_model,
};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const CACHE: &str = "/nonexistent/polykv-cache";

fn generating(more: &[&str]) -> Command {
    command(&generate_args(&tiny_model(), more), Path::new(CACHE))
}

#[cfg(target_os = "linux")]
fn full() -> Stdio {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    full.unwrap().into()
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_output_is_a_failure() {
    let code = |command: &mut Command| command.stdin(Stdio::null()).status().unwrap().code();
    let quiet = |more: &[&str]| {
        let mut command = generating(&[&["-p", "hi", "-n", "2"], more].concat());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    assert_eq!(code(quiet(&[]).stdout(full())), Some(4));
    assert_eq!(code(quiet(&["--json"]).stdout(full())), Some(4));
    assert_eq!(code(quiet(&[]).stderr(full())), Some(4));
    assert_eq!(code(quiet(&["--no-stats"]).stderr(full())), Some(0));
    let mut help = command(&["--help"], Path::new(CACHE));
    assert_eq!(code(help.stdout(full()).stderr(Stdio::null())), Some(4));
    let mut refused = command(&["plan", "show", "/nonexistent"], Path::new(CACHE));
    assert_eq!(code(refused.stdout(Stdio::null()).stderr(full())), Some(3));
}

#[test]
fn a_reader_that_goes_away_ends_the_answer_at_once_and_quietly() {
    // The tiny model would go on for minutes.
    let mut child = generating(&[
        "-p", "hi", "-n", "30000", "--policy", "tova", "--budget", "64",
    ]);
    let mut child = child
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let started = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// Nobody reads the numbers: that is a failure of the command, not a panic.
#[test]
fn nobody_at_standard_error_is_a_failure() {
    let mut command = generating(&["-p", "hi", "-n", "2"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(4));
}

/// What a model writes goes to a pipe as it is, and to a terminal without what a terminal obeys.
#[cfg(target_os = "linux")]
#[test]
fn answers_cannot_write_to_the_terminal() {
    let model = copy_of_tiny_model();
    let path = model.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let escape = serde_json::json!(
        {"type": "Replace", "pattern": {"Regex": "[a-zA-Z]"}, "content": "\u{1b}"});
    let decoders = serde_json::json!([escape, tokenizer["decoder"]]);
    tokenizer["decoder"] = serde_json::json!({"type": "Sequence", "decoders": decoders});
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let args = generate_args(model.path(), &["-p", "hi", "-n", "24", "--no-stats"]);
    let piped = polykv(&args).stdout;
    assert!(piped.contains('\u{1b}'), "{piped:?}");
    let words: Vec<String> = args.iter().map(|word| format!("'{word}'")).collect();
    let line = format!(
        "'{}' {} 2>/dev/null",
        env!("CARGO_BIN_EXE_polykv"),
        words.join(" ")
    );
    // It runs a command on a terminal of its own.
    let Ok(shown) = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .output()
    else {
        eprintln!("skipped: no `script` here");
        return;
    };
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains('\u{fffd}'), "{shown:?}");
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
}

#[test]
fn names_of_plans_cannot_write_to_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let plan = write(
        &dir,
        "plan.yaml",
        "schema: 1\nname: \"a\\e[2Jb\\a\"\nlayers: 3\nbudget: {tokens: 24}\nprefill: [{layers: 0-2, policy: tova}]\n",
    );
    let shown = polykv(&["plan", "show", &plan]);
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""));
    assert!(shown.stdout.contains("[2Jb"), "{:?}", shown.stdout);
    let stats = generate(&["-p", LONG, "-n", "2", "--plan", &plan]).stderr;
    let sent = |text: &str| text.chars().any(|c| c.is_control() && c != '\n');
    assert!(!sent(&shown.stdout) && !sent(&stats), "{stats:?}");
    // Data stays what it is.
    let shuffled = polykv(&["plan", "shuffle", &plan, "--seed", "1"]).stdout;
    assert!(
        shuffled.contains("\\e[2J") || shuffled.contains('\u{1b}'),
        "{shuffled:?}"
    );
}

#[test]
fn texts_may_begin_with_a_dash() {
    for prompt in ["-5 + 3 = ?", "- first item", "--- a diff", "--json"] {
        let given = generate_json(&["-p", prompt, "-n", "4"]);
        let stdin = polykv_with(
            &generate_args(&tiny_model(), &["--json", "-p", "-", "-n", "4"]),
            prompt.as_bytes(),
            Path::new(CACHE),
        );
        let read: serde_json::Value = serde_json::from_str(&stdin.stdout).unwrap();
        assert_eq!(text(&given), text(&read), "{prompt}");
    }
    generate(&["-p", "hi", "-n", "1", "--stop", "-", "--stop", "--"]);
    generate(&["-p", "hi", "-n", "1", "--answer-prefix", "- "]);
    generate(&["-p", "hi", "-n", "1", "--system", "- be brief"]);
}

#[test]
fn byte_order_marks_are_dropped_and_utf_16_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let plain = write(&dir, "plain.txt", LONG);
    let marked = write(&dir, "marked.txt", &format!("\u{feff}{LONG}"));
    let tokens = |file: &str| generate_json(&["-f", file, "-n", "2"])["prompt_tokens"].clone();
    assert_eq!(tokens(&plain), tokens(&marked));
    let piped = |text: &str| {
        let args = generate_args(&tiny_model(), &["--json", "-p", "-", "-n", "2"]);
        let answer = polykv_with(&args, text.as_bytes(), Path::new(CACHE));
        let json: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
        json["prompt_tokens"].clone()
    };
    assert_eq!(piped(&format!("\u{feff}{LONG}")), tokens(&plain));
    let plan =
        "schema: 1\nlayers: 3\nbudget: {tokens: 24}\nprefill: [{layers: 0-2, policy: tova}]\n";
    let shown = |mark: &str| {
        let plan = write(&dir, "plan.yaml", &format!("{mark}{plan}"));
        let answer = polykv(&["plan", "show", &plan]);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        answer.stdout
    };
    assert_eq!(shown("\u{feff}"), shown(""));
    // What an evaluation reads: a text, and lines of prompts.
    let model = tiny_model();
    let eval = |args: &[&str], name: &str, content: &str| {
        let scores = ["", "\u{feff}"].map(|mark| {
            let file = write(&dir, name, &format!("{mark}{content}"));
            let start = ["eval", "--device", "cpu", "--json", "-m", path_str(&model)];
            let answer = polykv(&[&start, args, &[&file]].concat());
            assert_eq!(answer.code, 0, "{}", answer.stderr);
            let json: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
            json["plans"].clone()
        });
        assert_eq!(scores[0], scores[1], "{name}");
        assert!(scores[0][0]["mean"].is_number(), "{name}: {}", scores[0]);
    };
    let ppl = [
        "--task",
        "ppl",
        "--length",
        "40",
        "--continuation",
        "8",
        "--limit",
        "1",
        "--text",
    ];
    eval(&ppl, "text.txt", &LONG.repeat(3));
    let prompts = [
        "--task",
        "prompts",
        "--map",
        "prompt=p,answers=a",
        "--metric",
        "f1",
        "--max-new-tokens",
        "2",
        "--data",
    ];
    eval(
        &prompts,
        "lines.jsonl",
        "{\"p\": \"A lamp.\", \"a\": \"lamp\"}\n",
    );
    let utf16: Vec<u8> = "\u{feff}hi"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let path = dir.path().join("wide.txt");
    std::fs::write(&path, utf16).unwrap();
    let answer = run(&mut generating(&["-f", path.to_str().unwrap()]), b"");
    assert_eq!(answer.code, 3);
    assert!(answer.stderr.contains("UTF-16"), "{}", answer.stderr);
}

#[test]
fn a_huge_text_is_refused_without_being_read_token_by_token() {
    let dir = tempfile::tempdir().unwrap();
    let huge = write(&dir, "huge.txt", &"a".repeat(8_000_000));
    let started = Instant::now();
    let answer = polykv(&generate_args(
        &tiny_model(),
        &["-f", &huge, "--raw", "-n", "2"],
    ));
    assert_eq!(answer.code, 3);
    assert!(answer.stderr.contains("at least"), "{}", answer.stderr);
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn more_threads_than_anybody_has_are_refused() {
    let started = Instant::now();
    let answer = run(
        generating(&["-p", "hi"]).env("RAYON_NUM_THREADS", "100000"),
        b"",
    );
    assert_eq!(answer.code, 3);
    assert!(
        answer.stderr.contains("RAYON_NUM_THREADS is 100000"),
        "{}",
        answer.stderr
    );
    assert!(started.elapsed() < Duration::from_secs(10));
}

/// A tokenizer that makes nothing of a text does not let a text be written without end.
#[test]
fn a_tokenizer_that_drops_text_ends() {
    let model = copy_of_tiny_model();
    let path = model.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    tokenizer["normalizer"] = serde_json::json!(
        {"type": "Replace", "pattern": {"Regex": "[^0-9<|>]+"}, "content": ""});
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    for task in ["needle", "ruler"] {
        let mut eval = command(
            &[
                "eval", "--device", "cpu", "--task", task, "--length", "128", "--limit", "1",
            ],
            Path::new(CACHE),
        );
        let mut child = eval
            .args(
                ["--only", "niah_single_2"]
                    .iter()
                    .filter(|_| task == "ruler"),
            )
            .args(["-m", path_str(model.path())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        let ended = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status.code(),
                None if started.elapsed() > Duration::from_secs(30) => {
                    child.kill().unwrap();
                    break None;
                }
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        assert!(matches!(ended, Some(0 | 3)), "{task}: {ended:?}");
    }
}

/// A budget that everything fits in evicts nothing, whoever splits it.
#[test]
fn a_surplus_never_cuts() {
    let full = generate_json(&["-p", LONG, "-n", "20"]);
    for policy in ["cake", "pyramidkv", "tova", "h2o", "lagkv"] {
        for allocator in ["uniform", "pyramid", "cake", "dynamic"] {
            let flags = [
                "--policy",
                policy,
                "--allocator",
                allocator,
                "--budget",
                "400",
            ];
            let json = generate_json(&[&["-p", LONG, "-n", "20"], &flags[..]].concat());
            assert_eq!(text(&json), text(&full), "{policy}, {allocator}");
            assert_eq!(
                json["kv"]["kept_min"].as_f64(),
                json["kv"]["seen"].as_f64(),
                "{policy}, {allocator}"
            );
        }
    }
    // Prompts of a few tokens, which some budgets once had no room for.
    for policy in ["cake", "lagkv"] {
        for allocator in ["cake", "dynamic"] {
            let flags = [
                "--policy",
                policy,
                "--allocator",
                allocator,
                "--budget",
                "64",
            ];
            generate(&[&["-p", "a", "--raw", "-n", "8"], &flags[..]].concat());
        }
    }
}
