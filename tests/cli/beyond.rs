//! `polykv generate --beyond-context`.

use super::{LONG, text};
use crate::cli_support::{generate_args, generate_json, path_str, polykv, tiny_model};

const PACKED: [&str; 2] = ["--beyond-context", "packed"];

/// About 480 tokens of the 512 of the tiny model, whose answers go on for long with this seed.
fn long(more: &[&str]) -> serde_json::Value {
    let prompt = LONG.repeat(4) + &" 0".repeat(10);
    let run = ["-p", &prompt, "-n", "200", "--temp", "1", "--seed", "1"];
    generate_json(&[&run[..], more].concat())
}

fn number(json: &serde_json::Value, field: &str) -> u64 {
    json.pointer(field).unwrap().as_u64().unwrap()
}

#[test]
fn a_budget_goes_on_beyond_the_context() {
    let budget = ["--policy", "tova", "--budget", "64"];
    let stopped = long(&budget);
    assert_eq!(
        (&stopped["finish"], number(&stopped, "/kv/seen")),
        (&"length".into(), 512)
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.session");
    let file = path_str(&file);
    let json = long(&[&budget[..], &PACKED, &["--save-session", file]].concat());
    assert_eq!(
        (&json["finish"], number(&json, "/new_tokens")),
        (&"length".into(), 200)
    );
    let seen = number(&json, "/kv/seen");
    assert_eq!(seen, number(&json, "/prompt_tokens") + 199);
    assert!(seen > 600);
    assert_eq!(json["kv"]["kept_max"], 64.0);
    // Nothing is moved before the context ends.
    assert!(text(&json).starts_with(text(&stopped).trim_end_matches('\u{fffd}')));

    // A session beyond the context goes on.
    let next = ["--session", file, "-p", LONG, "-n", "9"];
    let next = generate_json(&[&next[..], &PACKED].concat());
    assert_eq!(number(&next, "/session/tokens"), seen);
    assert!(number(&next, "/kv/seen") > seen + 100);
}

#[test]
fn without_a_budget_the_context_ends() {
    let json = long(&PACKED);
    assert_eq!(
        (&json["finish"], number(&json, "/kv/seen")),
        (&"length".into(), 512)
    );
}

#[test]
fn what_cannot_go_on_is_named() {
    let policy = ["--policy", "expected-attention", "--budget", "64"];
    let args = [&["-p", LONG, "-n", "700"], &policy[..], &PACKED].concat();
    let answer = polykv(&generate_args(&tiny_model(), &args));
    assert_eq!(answer.code, 3, "{}", answer.stderr);
    assert!(
        answer
            .stderr
            .contains("policy expected-attention computes with"),
        "{}",
        answer.stderr
    );
}
