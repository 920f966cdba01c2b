//! Entries in codes: `--kv-dtype`, and `kv` of a plan.

use super::{LONG, write};
use crate::cli_support::{generate_args, generate_json, path_str, polykv, tiny_model};
use serde_json::Value;

fn bytes(json: &Value) -> u64 {
    json.pointer("/kv/bytes").and_then(Value::as_u64).unwrap()
}

#[test]
fn entries_take_the_room_of_their_codes() {
    let run = |more: &[&str]| {
        let budget = ["--policy", "tova", "--budget", "40"];
        generate_json(&[&["-p", LONG, "-n", "6"], &budget[..], more].concat())
    };
    let [plain, cache, q8, q4] = [
        run(&[]),
        run(&["--kv-dtype", "cache"]),
        run(&["--kv-dtype", "q8"]),
        run(&["--kv-dtype", "q4"]),
    ];
    assert_eq!(plain["plan_hash"], cache["plan_hash"]);
    assert_eq!(plain["text"], cache["text"]);
    assert_ne!(q8["plan_hash"], plain["plan_hash"]);
    assert_ne!(q4["plan_hash"], q8["plan_hash"]);
    for one in [&q8, &q4] {
        assert_eq!(one["kv"]["kept"], plain["kv"]["kept"]);
        assert_eq!(one["kv"]["full_bytes"], plain["kv"]["full_bytes"]);
        assert!(bytes(one) < bytes(&plain), "{one}");
    }
}

#[test]
fn a_plan_states_codes_and_a_session_keeps_them() {
    let dir = tempfile::tempdir().unwrap();
    let plan = write(
        &dir,
        "plan.yaml",
        "{schema: 1, layers: 3, budget: {tokens: 40}, prefill: [{layers: 0-2, policy: h2o}],
          kv: [{layers: 0, codes: q4}, {layers: 1-2, codes: q8}]}",
    );
    let shown = polykv(&["plan", "show", &plan]);
    let named = "entries: q4 in layers 0, q8 in layers 1-2";
    assert!(shown.stdout.contains(named), "{}", shown.stdout);
    let file = dir.path().join("a.session");
    let first = [
        "-p",
        LONG,
        "-n",
        "4",
        "--plan",
        &plan,
        "--save-session",
        path_str(&file),
    ];
    generate_json(&first);
    let next = ["--session", path_str(&file), "-p", "And now?", "-n", "4"];
    let json = generate_json(&next);
    assert_eq!(json["session"]["reuse"], "compressed");
    let wrong = generate_args(&tiny_model(), &[&next[..], &["--kv-dtype", "q8"]].concat());
    let refused = polykv(&wrong);
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    let parts = [
        "--kv-dtype is q8",
        "q4 in layers 0, q8 in layers 1-2, as the session's",
    ];
    for part in parts {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
}

#[test]
fn every_plan_is_evaluated_and_timed_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let text = write(&dir, "text.txt", &LONG.repeat(4));
    let model = tiny_model();
    let eval = polykv(&[
        "eval",
        "-m",
        path_str(&model),
        "--task",
        "ppl",
        "--text",
        &text,
        "--length",
        "60",
        "--continuation",
        "8",
        "--limit",
        "2",
        "--policy",
        "tova",
        "--budget",
        "30",
        "--kv-dtype",
        "cache,q8,q4",
        "--json",
    ]);
    let json: Value = serde_json::from_str(&eval.stdout).expect(&eval.stderr);
    let plans = json["plans"].as_array().unwrap().iter();
    let names: Vec<&str> = plans.map(|plan| plan["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["full", "tova 30", "tova 30 q8", "tova 30 q4"]);
    let bench = polykv(&[
        "bench",
        "-m",
        path_str(&model),
        "-p",
        "0",
        "-n",
        "2",
        "-d",
        "20",
        "-r",
        "1",
        "--kv-dtype",
        "cache,q4",
        "-o",
        "csv",
    ]);
    assert!(bench.stdout.contains("full q4"), "{}", bench.stdout);
}
