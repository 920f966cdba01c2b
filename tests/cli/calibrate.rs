//! `polykv calibrate`, and the plan that it writes.

use super::eval::text;
use crate::cli_support::{Answer, generate_json, path_str, polykv, tiny_model};
use polykv::{Budget, Codes, PlanFile, Registry};
use serde_json::{Value, json};
use std::path::Path;

pub const SMALL: &str = "--length 300 --continuation 12 --examples 2 --evidence 2 --policies h2o,tova,streaming-llm \
                     --budget-ratio 0.3 --seed 5";

/// Arguments are separated by spaces.
pub fn calibrate(args: &str) -> Answer {
    let model = tiny_model();
    let start = ["calibrate", "--device", "cpu", "-m", path_str(&model)];
    polykv(
        &start
            .into_iter()
            .chain(args.split_whitespace())
            .collect::<Vec<_>>(),
    )
}

pub fn calibrate_json(args: &str) -> Value {
    let answer = calibrate(&format!("{args} --json"));
    assert_eq!((answer.code, answer.stderr.as_str()), (0, ""), "{args}");
    serde_json::from_str(&answer.stdout).unwrap()
}

pub fn read(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).unwrap()
}

#[test]
fn a_calibration_becomes_a_plan_that_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (text(&dir), dir.path().join("out"));
    let base = format!("--data {data} {SMALL} --objective both");
    let args = format!(
        "{base} --allocator calibrated --refine 4 --out {}",
        path_str(&out)
    );
    let printed = calibrate(&format!("{args} --json"));
    assert_eq!((printed.code, printed.stderr.as_str()), (0, ""));
    assert_eq!(read(&out, "profile.json"), printed.stdout);
    let json: Value = serde_json::from_str(&printed.stdout).unwrap();
    for data in ["text", "evidence"] {
        let profile = &json["profiles"][data];
        assert_eq!(profile["examples"], 2);
        assert!(profile["perplexity"].as_f64() > Some(1.0));
        for phase in ["prefill", "decode"] {
            let layers = profile[phase]["cosine"].as_array().unwrap();
            assert_eq!(layers.len(), 3);
            for cosines in layers {
                let cosines: Vec<f64> = serde_json::from_value(cosines.clone()).unwrap();
                assert!(
                    cosines.len() == 3 && cosines.iter().all(|c| (-1.0..=1.000001).contains(c)),
                    "{cosines:?}"
                );
                assert!(
                    cosines.iter().any(|c| *c < 0.9999),
                    "nothing was perturbed: {cosines:?}"
                );
            }
        }
    }
    for phase in ["prefill", "decode"] {
        let budgets: Vec<u64> = serde_json::from_value(json[phase]["budgets"].clone()).unwrap();
        assert_eq!(budgets.iter().sum::<u64>(), 3 * 90);
        assert!(budgets.iter().all(|&budget| budget >= 22));
        // Three single policies, the start and at most four moves.
        let moves = json[phase]["refined"]["moves"].as_array().unwrap();
        assert!((4..=8).contains(&moves.len()), "{}", moves.len());
    }
    let plan = out.join("plan.yaml");
    let prompt = read(dir.path(), "text.txt");
    let generated = generate_json(&[
        "--plan",
        path_str(&plan),
        "-n",
        "4",
        "--raw",
        "-p",
        &prompt[..600],
    ]);
    assert_eq!(generated["plan_hash"], json["plan_hash"]);
    assert!(generated["kv"]["kept_mean"].as_f64() < generated["kv"]["seen"].as_f64());

    // The measurements serve other choices as well.
    let other = format!(
        "{base} --refine 1 --refine-phase prefill --resume --out {}",
        path_str(&out)
    );
    let prefill = calibrate_json(&other);
    assert!(
        prefill["prefill"]["refined"].is_object() && prefill["decode"].get("refined").is_none()
    );
    let other = format!("{base} --route inverse --resume --out {}", path_str(&out));
    let inverse = calibrate_json(&other);
    assert_eq!(inverse["profiles"], json["profiles"]);
    assert_ne!(inverse["prefill"]["route"], json["prefill"]["route"]);
    let table = calibrate(&other).stdout;
    for part in [
        "text: 2 examples",
        "evidence: 2 examples",
        "prefill",
        "decode",
        "30 % of the prompt, at least 90 entries per layer",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
}

#[test]
fn formats_are_chosen_under_a_budget_in_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (text(&dir), dir.path().join("out"));
    let base = format!(
        "--data {data} --length 300 --continuation 12 --examples 2 --evidence 2 --policies h2o,tova --objective both \
         --allocator calibrated --budget-byte-ratio 0.125 --out {}",
        path_str(&out)
    );
    let both = "--kv-dtype q8,q4 --budget-signal effect --refine 3";
    let json = calibrate_json(&format!("{base} {both}"));
    assert_eq!(json["kv"], json!(["q8", "q4"]));
    let columns = |phase: &str| {
        let layers = json["profiles"]["text"][phase]["cosine"].as_array();
        let first = &layers.unwrap()[0];
        first.as_array().unwrap().len()
    };
    assert_eq!((columns("prefill"), columns("decode")), (4, 2));
    // Every layer has the format of its candidate.
    let picks: Vec<usize> =
        serde_json::from_value(json["prefill"]["refined"]["picks"].clone()).unwrap();
    let file = out.join("plan.yaml");
    let plan = PlanFile::read(&file).unwrap();
    assert_eq!(plan.budget, Budget::ByteRatio(0.125));
    let plan = plan.build(&Registry::default()).unwrap();
    let formats: Vec<_> = plan.layers.iter().map(|layer| layer.kv).collect();
    let kinds = [Codes::Q8, Codes::Q4];
    let wanted: Vec<_> = picks.iter().map(|pick| Some(kinds[pick / 2])).collect();
    assert_eq!(formats, wanted);
    let prompt = &read(dir.path(), "text.txt")[..600];
    let generated = generate_json(&["--plan", path_str(&file), "-n", "4", "--raw", "-p", prompt]);
    assert_eq!(generated["plan_hash"], json["plan_hash"]);
    let table = calibrate(&format!("{base} {both} --resume")).stdout;
    for part in [
        "12.5 % of the prompt's bytes",
        "entries are kept in q",
        "tova in q4",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    // What was measured in some formats is not what others need.
    let other = calibrate(&format!("{base} --resume"));
    assert!(
        other.stderr.contains("kv is [\"q8\",\"q4\"]"),
        "{}",
        other.stderr
    );
}

#[test]
fn perplexity_routes_and_divides_and_the_cache_holds_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (text(&dir), dir.path().join("out"));
    let json = calibrate_json(&format!(
        "--data {data} {SMALL} --objective text --signal ppl --allocator calibrated --budget-signal ppl --out {}",
        path_str(&out)
    ));
    for phase in ["prefill", "decode"] {
        let losses = json["profiles"]["text"][phase]["delta_ppl"].clone();
        let losses: Vec<Vec<f64>> = serde_json::from_value(losses).unwrap();
        let route: Vec<usize> = serde_json::from_value(json[phase]["route"].clone()).unwrap();
        let budgets: Vec<u64> = serde_json::from_value(json[phase]["budgets"].clone()).unwrap();
        let worst = |layer: usize| losses[layer].iter().copied().fold(0.0, f64::max);
        for layer in 0..3 {
            let least = losses[layer].iter().copied().fold(f64::INFINITY, f64::min);
            assert_eq!(losses[layer][route[layer]], least, "{phase}, layer {layer}");
            for other in 0..3 {
                let agree = worst(layer) <= worst(other) || budgets[layer] >= budgets[other];
                assert!(agree, "{phase}: {budgets:?} of {losses:?}");
            }
        }
    }
    let prompt = read(dir.path(), "text.txt");
    let plan = out.join("plan.yaml");
    let raw = ["--raw", "-n", "1", "-p", &prompt[..600]];
    let generated = generate_json(&[&["--plan", path_str(&plan)], &raw[..]].concat());
    let kept: Vec<f64> = serde_json::from_value(generated["kv"]["kept"].clone()).unwrap();
    let total = (0.3 * generated["kv"]["seen"].as_f64().unwrap() * 3.0).round();
    assert_eq!(kept.iter().sum::<f64>(), total);
    for (kept, budget) in kept
        .iter()
        .zip(json["prefill"]["budgets"].as_array().unwrap())
    {
        let wanted = total * budget.as_f64().unwrap() / 270.0;
        assert!((kept - wanted).abs() < 1.0, "{kept}, not {wanted}");
    }
}

#[test]
fn budgets_follow_what_they_do_to_the_plan() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (text(&dir), dir.path().join("out"));
    let args = format!(
        "--data {data} {SMALL} --objective both --allocator calibrated --budget-signal effect --refine 2 --out {}",
        path_str(&out)
    );
    let json = calibrate_json(&args);
    for phase in ["prefill", "decode"] {
        let found = &json[phase]["budgets_refined"];
        for data in ["text", "evidence"] {
            let effects: Vec<f64> = serde_json::from_value(found["effects"][data].clone()).unwrap();
            assert!(effects.len() == 3 && effects.iter().any(|own| *own != 0.0));
        }
        let tried = found["tried"].as_array().unwrap();
        assert!((2..=13).contains(&tried.len()), "{phase}: {}", tried.len());
        for one in tried {
            let budgets: Vec<u64> = serde_json::from_value(one["budgets"].clone()).unwrap();
            assert_eq!(budgets.iter().sum::<u64>(), 3 * 90);
        }
        // It begins where the search for the route has ended.
        assert_eq!(tried[0]["losses"], json[phase]["refined"]["losses"]);
        assert_eq!(json[phase]["budgets"], found["budgets"]);
    }
    let whole = read(&out, "measurements.jsonl");
    assert_eq!(calibrate_json(&format!("{args} --resume")), json);
    assert_eq!(read(&out, "measurements.jsonl"), whole);
    let table = calibrate(&format!("{args} --resume")).stdout;
    assert!(table.contains("with its budgets"), "{table}");
}

#[test]
fn heads_get_parts_of_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (text(&dir), dir.path().join("out"));
    let args = format!(
        "--data {data} {SMALL} --objective both --phase prefill --heads --refine 2 --out {}",
        path_str(&out)
    );
    let json = calibrate_json(&args);
    let heads: Vec<Vec<f64>> = serde_json::from_value(json["heads"].clone()).unwrap();
    let sum: f64 = heads.iter().flatten().sum();
    let count = heads.iter().flatten().count() as f64;
    assert!(heads.len() == 3 && (sum - count).abs() < 1e-2, "{heads:?}");
    let budgets: Vec<f64> = serde_json::from_value(json["prefill"]["budgets"].clone()).unwrap();
    assert_eq!(budgets.iter().sum::<f64>(), 270.0);
    for (parts, budget) in heads.iter().zip(&budgets) {
        let part = 270.0 * parts.iter().sum::<f64>() / count;
        assert!((part - budget).abs() < 2.0, "{heads:?} {budgets:?}");
    }
    let plan = PlanFile::read(&out.join("plan.yaml")).unwrap();
    let stated = plan.heads.iter().map(|one| one.layers.count());
    assert_eq!(stated.sum::<usize>(), 3);
    // What is known is not measured again, and the rest comes out the same.
    let lines = read(&out, "measurements.jsonl");
    let known: String = lines.split_inclusive('\n').take(3).collect();
    assert!(known.contains("\"heads\""), "{known}");
    std::fs::write(out.join("measurements.jsonl"), known).unwrap();
    assert_eq!(calibrate_json(&format!("{args} --resume")), json);
    assert_eq!(read(&out, "measurements.jsonl"), lines);
    let table = calibrate(&format!("{args} --resume")).stdout;
    assert!(table.contains("by parts in 3 of 3 layers"), "{table}");

    for (more, reason) in [
        (
            "--allocator calibrated",
            "--heads is beside allocator calibrated",
        ),
        (
            "--allocator dynamic --refine 0",
            "--heads is beside allocator dynamic",
        ),
        ("--policies tova,cam", "--policies is cam"),
    ] {
        let args = args.replace("--policies h2o,tova,streaming-llm", "");
        let policies = if more.contains("policies") {
            ""
        } else {
            "--policies tova"
        };
        let answer = calibrate(&format!(
            "{} {policies} {more}",
            args.replace("--refine 2", "")
        ));
        assert!(
            answer.code != 0 && answer.stderr.contains(reason),
            "{}",
            answer.stderr
        );
    }
}

#[test]
fn a_phase_that_keeps_everything_is_not_measured() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (text(&dir), dir.path().join("out"));
    let args = format!(
        "--data {data} {SMALL} --phase prefill --allocator cake --out {}",
        path_str(&out)
    );
    let refused = calibrate(&format!("{args} --refine 2"));
    assert_eq!(refused.code, 3);
    assert!(
        refused
            .stderr
            .contains("--refine is 2 beside allocator cake")
    );
    let json = calibrate_json(&args);
    assert_eq!(json["decode"]["route"].as_array().unwrap().len(), 0);
    let plan = read(&out, "plan.yaml");
    assert!(plan.contains("online: cake"), "{plan}");
    let decode = plan.split("decode:").nth(1).unwrap();
    assert!(decode.contains("policy: full"), "{plan}");
    let inverted = polykv(&["plan", "invert", path_str(&out.join("plan.yaml"))]);
    assert_eq!((inverted.code, inverted.stderr.as_str()), (0, ""));
    assert!(inverted.stdout.contains("policy: full"));
}

#[test]
fn pyramids_and_folders_of_text() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("texts");
    std::fs::create_dir_all(folder.join("more")).unwrap();
    std::fs::copy(text(&dir), folder.join("more/a.md")).unwrap();
    std::fs::write(folder.join("b.bin"), b"\xff\xfe").unwrap();
    let out = dir.path().join("out");
    let args = format!(
        "--data {} {SMALL} --allocator pyramid --out {}",
        path_str(&folder),
        path_str(&out)
    );
    let json = calibrate_json(&args);
    assert!(read(&out, "plan.yaml").contains("online: pyramid"));
    let budgets: Vec<u64> = serde_json::from_value(json["decode"]["budgets"].clone()).unwrap();
    assert!(
        budgets[0] > budgets[1] && budgets[1] > budgets[2],
        "{budgets:?}"
    );
    assert!(json["profiles"].get("evidence").is_none());
}

/// Heads are routed by candidates that are two policies, whose heads follow from the parts that were found.
#[test]
fn head_groups_have_policies_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (text(&dir), dir.path().join("out"));
    let model = tiny_model();
    let mut args = vec!["calibrate", "--device", "cpu", "-m", path_str(&model)];
    args.extend(["--data", &data, "--length", "300", "--continuation", "12"]);
    args.extend([
        "--examples",
        "2",
        "--objective",
        "text",
        "--phase",
        "prefill",
    ]);
    args.extend(["--budget-ratio", "0.3", "--seed", "5", "--heads"]);
    args.extend(["--policies", "by-head:{wide: h2o, narrow: tova}"]);
    args.extend(["--out", path_str(&out)]);
    let answer = polykv(&args);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let plan = PlanFile::read(&out.join("plan.yaml")).unwrap();
    assert!(plan.prefill.iter().all(|rule| rule.policy == "by-head"));
    assert_eq!(plan.at_least, 90);
    let prompt = read(dir.path(), "text.txt");
    let run = ["-n", "4", "--raw", "-p", &prompt[..600]];
    let plan = out.join("plan.yaml");
    let generated = generate_json(&[&["--plan", path_str(&plan)], &run[..]].concat());
    assert!(generated["kv"]["kept_mean"].as_f64() < generated["kv"]["seen"].as_f64());
}
