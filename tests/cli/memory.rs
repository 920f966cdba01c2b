//! `polykv plan memory` and protected spans.

use super::{LONG, path_str};
use crate::cli_support::{generate, generate_args, generate_json, polykv, tiny_model};
use serde_json::Value;

fn memory(args: &str) -> Value {
    let args: Vec<&str> = ["plan", "memory", "--json"]
        .into_iter()
        .chain(args.split(' '))
        .collect();
    let answer = polykv(&args);
    assert_eq!((answer.code, answer.stderr.as_str()), (0, ""), "{args:?}");
    serde_json::from_str(&answer.stdout).unwrap()
}

#[test]
fn computed_memory_is_what_a_generation_measures() {
    // The config is all that is needed.
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(
        tiny_model().join("config.json"),
        dir.path().join("config.json"),
    )
    .unwrap();
    let budget = ["--policy", "h2o", "--budget", "40"];
    let found = generate_json(&[&["-p", LONG, "-n", "8"], &budget[..]].concat());
    let full = generate_json(&["-p", LONG, "-n", "8"]);
    let computed = memory(&format!(
        "-m {} -p {} -n 7 {}",
        path_str(dir.path()),
        found["prompt_tokens"],
        budget.join(" ")
    ));
    for (name, measured) in [("plan", &found), ("full", &full)] {
        let (computed, kv) = (&computed[name], &measured["kv"]);
        assert_eq!(computed["steady_bytes"], kv["bytes"], "{name}");
        assert_eq!(computed["peak_bytes"], kv["peak_bytes"], "{name}");
        assert_eq!(computed["kept_mean"], kv["kept_mean"], "{name}");
    }
    assert_eq!(computed["plan"]["hash"], found["plan_hash"]);
    assert_eq!(computed["computed"], true);
}

#[test]
fn published_shapes_need_no_file() {
    let json = memory("--model llama-3.1-8b -p 128000");
    // 32 layers, 8 heads of 128 numbers, keys and values, four bytes each.
    let entry: u64 = 32 * 8 * 128 * 2 * 4;
    let full = json["full"]["steady_bytes"].as_u64().unwrap();
    assert!((entry * 128_128..entry * 132_001).contains(&full), "{full}");
    assert!(json.get("plan").is_none());
    let plan = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../plans/qwen3-8b-starter.yaml"
    );
    let args = [
        "plan", "memory", "-m", "qwen3-8b", "-p", "32768", "--plan", plan,
    ];
    let answer = polykv(&args);
    assert_eq!((answer.code, answer.stderr.as_str()), (0, ""));
    for part in [
        "FullKV",
        "qwen3-8b-starter",
        "computed",
        "min 341, mean 512.0, max 683",
        "GB",
    ] {
        assert!(answer.stdout.contains(part), "{part}: {}", answer.stdout);
    }
}

#[test]
fn memory_of_what_cannot_run_is_refused() {
    for (args, code, parts) in [
        ("-m llama-9 -p 5", 3, ["'llama-9'", "llama-3.1-8b"]),
        ("-m qwen3-8b -p 40961", 3, ["40961", "at most 40960"]),
        ("-m qwen3-8b -p 0", 2, ["0", "1.."]),
        ("-m qwen3-8b -p 9 --policy tova", 2, ["tova", "--budget"]),
        (
            "-m qwen3-8b -p 9 -b 18446744073709551615",
            3,
            ["bytes", "18446744073709551615"],
        ),
        (
            "-m qwen3-8b -p 99 --policy snapkv --budget 8",
            3,
            ["is 8", "at least 32"],
        ),
    ] {
        let args: Vec<&str> = ["plan", "memory"]
            .into_iter()
            .chain(args.split(' '))
            .collect();
        let answer = polykv(&args);
        assert_eq!(
            (answer.code, answer.stdout.as_str()),
            (code, ""),
            "{args:?}"
        );
        for part in parts {
            assert!(answer.stderr.contains(part), "{part}: {}", answer.stderr);
        }
    }
}

const SYSTEM: [&str; 2] = ["--system", "You answer in one short sentence."];

#[test]
fn protected_tokens_are_charged_to_the_budget() {
    let prompt = ["-p", LONG, "-n", "6", "--policy", "tova"];
    let with = |more: &[&'static str]| [&prompt, &SYSTEM[..], more].concat();
    let json = generate_json(&with(&["--budget", "60", "--protect-system"]));
    assert_eq!(json["kv"]["kept_max"], 60.0);
    let plain = generate(&with(&["--budget", "60"])).stdout;
    let protected = generate(&with(&["--budget", "60", "--protect-prefix", "55"])).stdout;
    assert_ne!(plain, protected, "tova would keep other entries");
}

#[test]
fn protection_beyond_the_budget_or_the_prompt_is_refused() {
    let tokens = |more: &[&str]| {
        let json = generate_json(&[&["-p", LONG, "-n", "1"], more].concat());
        json["prompt_tokens"].as_u64().unwrap()
    };
    let (all, without) = (tokens(&SYSTEM), tokens(&[]));
    // What the template renders for the system message, its marks included.
    let system = all - without;
    let refused = |more: &[&str], code, parts: &[&str]| {
        let args = [&["-p", LONG, "-n", "1"], more].concat();
        let answer = polykv(&generate_args(&tiny_model(), &args));
        assert_eq!(
            (answer.code, answer.stdout.as_str()),
            (code, ""),
            "{more:?}"
        );
        for part in parts {
            assert!(answer.stderr.contains(part), "{part}: {}", answer.stderr);
        }
    };
    let tova = |budget, more: &[&'static str]| {
        [&["--policy", "tova", "--budget", budget], &SYSTEM[..], more].concat()
    };
    refused(
        &tova("5", &["--protect-system"]),
        3,
        &[
            "budget of layer 0 is 5",
            &format!("at least {system}, {system} protected positions"),
        ],
    );
    refused(
        &tova("5", &["--protect-prefix", "6"]),
        3,
        &[
            "command line",
            "is 5",
            "at least 6, 6 protected positions",
            "tova",
        ],
    );
    refused(
        &["--protect-prefix", "5000"],
        3,
        &["--protect-prefix is 5000", &format!("at most {without}")],
    );
    refused(&["--protect-system"], 2, &["--system"]);
}
