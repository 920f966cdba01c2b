//! Plans, policies and budgets.

use super::{LONG, path_str, text, write};
use crate::cli_support::{generate, generate_args, generate_json, polykv, tiny_model};
use serde_json::Value;

#[test]
fn a_plan_file_gives_each_layer_its_own_policy_and_budget() {
    let dir = tempfile::tempdir().unwrap();
    let plan = write(
        &dir,
        "plan.yaml",
        "schema: 1\nname: mixed\nlayers: 3\nbudget: {tokens: 24}\n\
         prefill:\n- {layers: 0, policy: snapkv, params: {window: 8}, tokens: 40}\n\
         - {layers: 1, policy: h2o, tokens: 20}\n- {layers: 2, policy: tova, tokens: 12}\n\
         decode:\n- {layers: 0-1, policy: streaming-llm, share: 2}\n- {layers: 2, policy: random, share: 1}\n",
    );
    let json = generate_json(&["-p", LONG, "-n", "1", "--plan", &plan]);
    assert_eq!(json["kv"]["kept"], serde_json::json!([40.0, 20.0, 12.0]));
    assert_eq!(json["kv"]["kept_mean"], 24.0);
    // 72 entries at 2 : 2 : 1; a layer that was trimmed below its decode budget grows by one with each token.
    let json = generate_json(&["-p", LONG, "-n", "3", "--plan", &plan]);
    assert_eq!(json["kv"]["kept"], serde_json::json!([29.0, 22.0, 14.0]));
    let stats = generate(&["-p", LONG, "-n", "3", "--plan", &plan, "-v"]).stderr;
    for part in [
        "mixed: ",
        "0: 29, 1: 22, 2: 14",
        "prefill 0 snapkv, window=8, 40 entries",
    ] {
        assert!(stats.contains(part), "{part}: {stats}");
    }
    let shown = polykv(&["plan", "show", &plan]);
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""));
    for part in [
        "mixed",
        "24 entries",
        "snapkv",
        "window=8",
        "40",
        "share 2",
        "0-1",
    ] {
        assert!(shown.stdout.contains(part), "{part}: {}", shown.stdout);
    }
    let shown: Value =
        serde_json::from_str(&polykv(&["plan", "show", &plan, "--json"]).stdout).unwrap();
    assert_eq!(shown["prefill"][0]["params"]["window"], 8);
    assert_eq!(shown["decode"][0]["layers"], "0-1");
    assert_eq!(shown["hash"], json["plan_hash"]);
}

#[test]
fn policies_inside_policies_are_set_by_a_flag() {
    let run = |policy: &str, set: &str| {
        let flags = ["-p", LONG, "-n", "3", "--budget", "32", "-v"];
        generate(&[&flags[..], &["--policy", policy, "--set", set]].concat()).stderr
    };
    let blend = run("blend", "policies=tova:1,h2o:3");
    assert!(blend.contains("prefill 0-2 blend, policies="), "{blend}");
    assert!(blend.contains("tova") && blend.contains("h2o"), "{blend}");
    let critical = run("criticalkv", "base=h2o");
    assert!(critical.contains("criticalkv, base="), "{critical}");
    let flags = ["-p", LONG, "--budget", "32", "--policy", "blend"];
    let wrong = [&flags[..], &["--set", "policies=tova:1,h2:3"]].concat();
    let wrong = polykv(&generate_args(&tiny_model(), &wrong));
    assert_eq!(wrong.code, 3);
    assert!(wrong.stderr.contains("policy is 'h2'"), "{}", wrong.stderr);
}

#[test]
fn flags_and_plan_file_give_the_same_text() {
    let dir = tempfile::tempdir().unwrap();
    let rule = "- {layers: 0-2, policy: snapkv, params: {window: 16, kernel: 5}}\n";
    let plan = write(
        &dir,
        "plan.yaml",
        &format!("schema: 1\nlayers: 3\nbudget: {{tokens: 32}}\nprefill:\n{rule}decode:\n{rule}"),
    );
    let file = generate_json(&["-p", LONG, "-n", "24", "--plan", &plan]);
    for policy in [
        &["snapkv", "--set", "window=16", "--set", "kernel=5"][..],
        &["snapkv:window=16:kernel=5"],
        &["snapkv:{window: 16, kernel: 5}"],
    ] {
        let flags = ["--budget", "32", "--allocator", "uniform", "--policy"];
        let flags = [&["-p", LONG, "-n", "24"], &flags[..], policy].concat();
        let flags = generate_json(&flags);
        assert_eq!(text(&file), text(&flags));
        assert_eq!(file["plan_hash"], flags["plan_hash"]);
    }
}

/// Wherever a policy is named, its parameters are written in the same way.
#[test]
fn parameters_stand_behind_the_name_in_every_command() {
    let model = tiny_model();
    let model = path_str(&model);
    let policies = "snapkv:window=8,snapkv:{window: 16},tova";
    let names = ["snapkv:window=8 32", "snapkv:window=16 32", "tova 32"];
    let bench = [
        "bench", "-m", model, "--device", "cpu", "-p", "64", "-n", "0", "-r", "1", "--budget",
        "32", "--policy", policies,
    ];
    let dir = tempfile::tempdir().unwrap();
    let text = write(&dir, "text.txt", &LONG.repeat(4));
    let eval = [
        "eval",
        "-m",
        model,
        "--device",
        "cpu",
        "--task",
        "ppl",
        "--text",
        &text,
        "--length",
        "64",
        "--continuation",
        "8",
        "--limit",
        "1",
        "--budget",
        "32",
        "--policy",
        policies,
    ];
    for command in [&bench[..], &eval] {
        let answer = polykv(command);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        for name in names {
            assert!(answer.stdout.contains(name), "{name}: {}", answer.stdout);
        }
    }
    for (policy, part) in [
        ("snapkv:window", "KEY=VALUE"),
        ("snapkw:window=8", "snapkv"),
        ("full", "does not evict; allowed: "),
        ("tova,tova", "comes twice"),
    ] {
        let answer = polykv(&[&bench[..bench.len() - 1], &[policy]].concat());
        assert_eq!(answer.code, 2, "{policy}");
        assert!(answer.stderr.contains(part), "{policy}: {}", answer.stderr);
    }
    let flags = ["-p", LONG, "--budget", "32", "--policy"];
    for (policy, code, part) in [
        ("snapkw:window=8", 2, "snapkv"),
        ("snapkv:window", 2, "KEY=VALUE"),
        ("snapkv:windw=8", 3, "windw"),
        ("snapkv:window=0", 3, "window"),
    ] {
        let answer = polykv(&generate_args(
            model.as_ref(),
            &[&flags[..], &[policy]].concat(),
        ));
        assert_eq!(answer.code, code, "{policy}: {}", answer.stderr);
        assert!(answer.stderr.contains(part), "{policy}: {}", answer.stderr);
    }
}

#[test]
fn budgets_have_three_units_and_phases_two() {
    let kept = |more: &str| {
        let more: Vec<&str> = more.split(' ').collect();
        let json =
            generate_json(&[&["-p", LONG, "-n", "5", "--policy", "h2o"], &more[..]].concat());
        (
            json["kv"]["kept_mean"].as_f64().unwrap(),
            json["kv"]["seen"].as_f64().unwrap(),
        )
    };
    assert_eq!(kept("--budget 30").0, 30.0);
    // An entry of three layers has 768 bytes.
    assert_eq!(kept("--budget-mb 0.0384").0, 50.0);
    let (mean, seen) = kept("--budget-ratio 0.5");
    assert!((mean - (seen - 4.0) / 2.0).abs() <= 0.5, "{mean} of {seen}");
    // Only the prompt is trimmed: the four tokens that were run come on top.
    assert_eq!(kept("--budget 30 --phase prefill").0, 34.0);
    assert_eq!(kept("--budget 30 --phase decode").0, 30.0);
    assert_eq!(kept("--budget 30 --phase both").0, 30.0);
}

#[test]
fn a_budget_above_the_prompt_changes_nothing() {
    let full = generate(&["-p", LONG, "-n", "24"]).stdout;
    for policy in ["streaming-llm", "snapkv", "tova", "h2o", "random"] {
        let roomy = generate(&[
            "-p", LONG, "-n", "24", "--policy", policy, "--budget", "400",
        ]);
        assert_eq!(roomy.stdout, full, "{policy}");
    }
    assert_eq!(
        generate(&["-p", LONG, "-n", "24", "--policy", "full"]).stdout,
        full
    );
}
