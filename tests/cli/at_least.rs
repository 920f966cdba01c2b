//! Budgets that short prompts do not fall below.

use crate::cli_support::{path_str, polykv, tiny_model};

const PLAN: &str = "{schema: 1, layers: 3, budget: {ratio: 0.1}, at_least: 24, prefill: [{layers: 0-2, policy: snapkv, params: {window: 8}}]}";

/// A conversation begins with a word or two.
#[test]
fn a_plan_with_a_ratio_takes_short_prompts() {
    let dir = tempfile::tempdir().unwrap();
    let plan = dir.path().join("plan.yaml");
    std::fs::write(&plan, PLAN).unwrap();
    let model = tiny_model();
    let run = |prompt: &str, more: &[&str]| {
        let args = ["generate", "--device", "cpu", "--raw", "-n", "2", "--json"];
        let model = [
            "-m",
            path_str(&model),
            "--plan",
            path_str(&plan),
            "-p",
            prompt,
        ];
        polykv(&[&args[..], &model, more].concat())
    };
    let kept = |prompt: &str, more: &[&str]| -> Vec<f64> {
        let json: serde_json::Value = serde_json::from_str(&run(prompt, more).stdout).unwrap();
        serde_json::from_value(json["kv"]["kept"].clone()).unwrap()
    };
    let long = "gate lamp under seven bridge quiet north ".repeat(2);
    assert!(kept("gate", &[])[0] < 10.0);
    assert_eq!(kept(&long, &[]), [25.0; 3]);
    assert_eq!(kept(&long, &["--at-least", "30"]), [31.0; 3]);
    let refused = run("gate", &["--at-least", "0"]).stderr;
    assert!(refused.contains("what policy snapkv protects"), "{refused}");
    let shown = polykv(&["plan", "show", path_str(&plan)]).stdout;
    assert!(shown.contains("at least 24 entries per layer"), "{shown}");
}

/// Nothing is left to try a plan with but prompts that are long enough for it.
#[test]
fn bench_warms_up_with_what_a_plan_can_do() {
    let dir = tempfile::tempdir().unwrap();
    let plan = dir.path().join("plan.yaml");
    std::fs::write(&plan, PLAN.replace(" at_least: 24,", "")).unwrap();
    let model = tiny_model();
    let run = polykv(&[
        "bench",
        "--device",
        "cpu",
        "-m",
        path_str(&model),
        "-p",
        "100",
        "-n",
        "0",
        "-r",
        "1",
        "--plan",
        path_str(&plan),
    ]);
    assert!(run.stdout.contains("pp100"), "{}", run.stderr);
}
