//! What bad input gets: exit code 3 (2 for what the command line's own grammar knows), one line that names the thing,
//! the value found and the value allowed, nothing on standard output, no panic.

mod cli_support;

#[path = "refusals/calibrate.rs"]
mod calibrate;
#[path = "refusals/config.rs"]
mod config;
#[path = "refusals/eval.rs"]
mod eval;
#[path = "refusals/plan.rs"]
mod plan;
#[path = "refusals/run.rs"]
mod run;
#[path = "refusals/text.rs"]
mod text;
#[path = "refusals/weights.rs"]
mod weights;

use cli_support::{Answer, copy_of_tiny_model, generate_args, polykv};
use serde_json::Value;
use std::path::Path;

/// One line that starts as errors do and holds all `parts`.
fn check(what: &str, code: i32, parts: &[&str], answer: &Answer) {
    let Answer {
        code: found,
        stdout,
        stderr,
    } = answer;
    assert_eq!(*found, code, "{what}: {stderr}");
    assert_eq!(stdout, "", "{what}");
    assert_eq!(stderr.lines().count(), 1, "{what}: {stderr}");
    assert!(stderr.starts_with("error: "), "{what}: {stderr}");
    assert!(!stderr.contains("panicked"), "{what}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{what}: no '{part}' in {stderr}");
    }
}

/// Spoils a copy of the tiny model and runs it.
fn refused(what: &str, spoil: impl FnOnce(&Path), parts: &[&str]) {
    let model = copy_of_tiny_model();
    spoil(model.path());
    let answer = polykv(&generate_args(model.path(), &["-p", "Hello", "-n", "2"]));
    check(what, 3, parts, &answer);
}

/// Replaces one file of the model, which the error must name.
fn refused_file(file: &str, content: impl AsRef<[u8]>, parts: &[&str]) {
    let parts = [&[file], parts].concat();
    let what = parts.join(", ");
    let spoil = |model: &Path| std::fs::write(model.join(file), content).unwrap();
    refused(&what, spoil, &parts);
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

/// The lines of a table, cut at ` | `.
fn rows(table: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    let lines = table.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| line.split(" | ").map(str::trim).collect())
}
