//! Running the binary on copies of the tiny model.

// Each test binary uses its part of this.
#![allow(dead_code)]

pub mod server;

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a run of the binary left.
pub struct Answer {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

pub fn tiny_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-llama31")
}

/// A folder that the caller may spoil.
pub fn copy_of_tiny_model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ] {
        // Not fs::copy, which would keep a file read-only.
        let content = std::fs::read(tiny_model().join(name)).unwrap();
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

/// `polykv` with these arguments, without anybody's downloaded models.
pub fn polykv<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Answer {
    polykv_with(args, b"", Path::new("/nonexistent/polykv-cache"))
}

pub fn polykv_with<S: AsRef<std::ffi::OsStr>>(args: &[S], stdin: &[u8], cache: &Path) -> Answer {
    run(&mut command(args, cache), stdin)
}

/// `polykv` with a hub, or none, and without anybody's token.
pub fn command<S: AsRef<std::ffi::OsStr>>(args: &[S], cache: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polykv"));
    command
        .args(args)
        .env("POLYKV_CACHE", cache)
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .env("HF_TOKEN_PATH", "/nonexistent/token")
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("TRANSFORMERS_OFFLINE")
        .env_remove("HF_TOKEN");
    command
}

pub fn run(command: &mut Command, stdin: &[u8]) -> Answer {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A child that reads nothing may be gone before this is written.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    Answer {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The arguments of `generate` on a model, followed by `more`.
pub fn generate_args(model: &Path, more: &[&str]) -> Vec<String> {
    let model = model.to_str().unwrap();
    let start = ["generate", "--device", "cpu", "--model", model];
    start.iter().chain(more).map(ToString::to_string).collect()
}

/// `generate` on the tiny model, which must work.
pub fn generate(more: &[&str]) -> Answer {
    let answer = polykv(&generate_args(&tiny_model(), more));
    assert_eq!(answer.code, 0, "{more:?}: {}", answer.stderr);
    answer
}

/// The object of `generate --json`.
pub fn generate_json(more: &[&str]) -> Value {
    let answer = generate(&[&["--json"], more].concat());
    assert_eq!(answer.stderr, "", "{more:?}");
    serde_json::from_str(&answer.stdout).unwrap()
}

pub fn path_str(path: &Path) -> &str {
    path.to_str().unwrap()
}
