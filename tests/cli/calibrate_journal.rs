//! Calibrations that go on: journals, shards, and what is refused of them.

use super::calibrate::{SMALL, calibrate, calibrate_json, read};
use super::eval::text;
use super::write;
use crate::cli_support::{path_str, polykv, tiny_model};
use serde_json::{Value, json};
use std::path::Path;

#[test]
fn an_interrupted_run_ends_with_the_same_profile() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(&dir);
    let out = |name: &str| dir.path().join(name);
    let args = |name: &str, more: &str| {
        let out = out(name);
        format!(
            "--data {data} {SMALL} --objective both --signal ppl --refine 3 --out {} {more}",
            path_str(&out)
        )
    };
    let whole = calibrate_json(&args("whole", ""));
    assert!(whole["profiles"]["text"]["decode"]["delta_ppl"][2][1].is_number());
    assert_eq!(calibrate_json(&args("again", "")), whole);
    let lines = read(&out("whole"), "measurements.jsonl");
    let count = lines.lines().count();
    assert!(count > 8, "{count}");
    // Cut after the header, in the middle of a measurement and among the evaluations of plans.
    for (index, kept) in [1, 2, count - 2].into_iter().enumerate() {
        let name = format!("cut{index}");
        std::fs::create_dir(out(&name)).unwrap();
        let mut cut: String = lines.split_inclusive('\n').take(kept).collect();
        cut.push_str(&lines.lines().nth(kept).unwrap()[..20]);
        std::fs::write(out(&name).join("measurements.jsonl"), cut).unwrap();
        assert_eq!(
            calibrate_json(&args(&name, "--resume")),
            whole,
            "{kept} lines"
        );
        for file in ["profile.json", "plan.yaml"] {
            assert_eq!(read(&out(&name), file), read(&out("whole"), file));
        }
        assert_eq!(read(&out(&name), "measurements.jsonl"), lines);
    }
    // Not by accident, and not with other settings.
    let refused = |args: &str, parts: &[&str]| {
        let answer = calibrate(args);
        assert_eq!(answer.code, 3, "{}", answer.stderr);
        for part in parts {
            assert!(answer.stderr.contains(part), "{part}: {}", answer.stderr);
        }
    };
    refused(&args("whole", ""), &["measurements.jsonl", "--resume"]);
    refused(
        &args("whole", "--resume").replace("--seed 5", "--seed 6"),
        &["seed is 5", "allowed: 6"],
    );
    let changed = write(
        &dir,
        "text.txt",
        &read(dir.path(), "text.txt").replace("gate", "moon"),
    );
    assert_eq!(changed, data);
    refused(&args("whole", "--resume"), &["tokens is"]);
}

/// One line and a field of its object, changed, with a checksum that fits.
#[test]
fn shards_come_to_the_same_plan() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(&dir);
    let out = |name: &str| dir.path().join(name);
    let run = |more: String| {
        let answer = calibrate(&format!("--data {data} {SMALL} --objective both {more}"));
        (answer.code, answer.stderr)
    };
    let folders = [out("0"), out("1"), out("2")];
    let [first, second, third] = folders.each_ref().map(|folder| path_str(folder));
    for (shard, folder) in ["0/3", "1/3", "2/3"]
        .into_iter()
        .zip([first, second, third])
    {
        let (code, stderr) = run(format!("--shard {shard} --out {folder}"));
        assert_eq!(code, 0, "{stderr}");
        assert!(!Path::new(folder).join("plan.yaml").exists());
    }
    let refine = "--refine 3";
    let whole = out("whole");
    let (code, stderr) = run(format!("{refine} --out {}", path_str(&whole)));
    assert_eq!(code, 0, "{stderr}");
    let merged = out("merged");
    let all = format!(
        "{refine} --shards {first} {second} {third} --out {}",
        path_str(&merged)
    );
    assert_eq!(run(all.clone()).0, 0);
    for name in ["plan.yaml", "profile.json"] {
        assert_eq!(read(&merged, name), read(&whole, name), "{name}");
    }
    // Nothing is measured again, and what is there may be given again.
    let lines = |folder: &Path| read(folder, "measurements.jsonl").lines().count();
    assert_eq!(lines(&merged), lines(&whole));
    assert_eq!(run(format!("{all} --resume")).0, 0);
    assert_eq!(lines(&merged), lines(&whole));

    let other = out("other");
    let seed = SMALL.replace("--seed 5", "--seed 6");
    let seed = calibrate(&format!(
        "--data {data} {seed} --objective both --shards {first} --out {}",
        path_str(&other)
    ));
    assert_eq!(seed.code, 3, "{}", seed.stderr);
    assert!(seed.stderr.contains("seed is 5"), "{}", seed.stderr);
    let empty = path_str(dir.path());
    let (code, stderr) = run(format!("--shards {empty} --out {}", path_str(&out("new"))));
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains("not there"), "{stderr}");
}

fn resealed(lines: &str, number: usize, field: &str, value: Value) -> String {
    let line = |(index, line): (usize, &str)| {
        if index + 1 != number {
            return format!("{line}\n");
        }
        let mut object: Value = serde_json::from_str(line).unwrap();
        object.as_object_mut().unwrap().remove("checksum");
        *object.pointer_mut(field).unwrap() = value.clone();
        polykv_core::files::lines::seal(&object.to_string())
    };
    lines.lines().enumerate().map(line).collect()
}

#[test]
fn journals_of_other_models_and_records_of_other_shapes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (text(&dir), dir.path().join("out"));
    let args = format!(
        "--data {data} {SMALL} --refine 2 --out {} --resume",
        path_str(&out)
    );
    calibrate_json(&args);
    let lines = read(&out, "measurements.jsonl");
    let refused = |content: &str, args: &str, parts: &[&str]| {
        std::fs::write(out.join("measurements.jsonl"), content).unwrap();
        let answer = calibrate(args);
        assert_eq!(answer.code, 3, "{}", answer.stderr);
        for part in parts.iter().chain(&["measurements.jsonl"]) {
            assert!(answer.stderr.contains(part), "{part}: {}", answer.stderr);
        }
        assert_eq!(read(&out, "measurements.jsonl"), content);
    };
    refused(
        &lines,
        &format!("{args} --dtype f16"),
        &["dtype is \"f32\"", "\"f16\""],
    );
    let changes = [
        (1, "/weights", json!("another"), "weights is \"another\""),
        (1, "/backend", json!("cuda"), "backend is \"cuda\""),
        (2, "/measured/example", json!(7), "line 2 is of example 7"),
        (
            2,
            "/measured/signals/prefill/cosine",
            json!([[]]),
            "line 2 is with [0]",
        ),
        (
            3,
            "/measured/signals/full_nll",
            Value::Null,
            "line 3 is no measurement",
        ),
        (
            4,
            "/losses/losses/text",
            json!([0.5]),
            "line 4 is losses of {text: 1}",
        ),
    ];
    for (number, field, value, part) in changes {
        refused(&resealed(&lines, number, field, value), &args, &[part]);
    }
    // Earlier versions wrote no checksums.
    let old = lines.lines().map(|line| {
        let fields = line.split(",\"checksum\"").next().unwrap();
        format!("{fields}}}\n")
    });
    refused(
        &old.collect::<String>(),
        &args,
        &["line 1 is without a checksum"],
    );
    let damaged = lines.replacen("\"full_nll\":", "\"full_nll\":1", 1);
    refused(&damaged, &args, &["line 2 is damaged"]);
}

#[test]
fn other_weights_under_the_same_name_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (text(&dir), dir.path().join("out"));
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for file in std::fs::read_dir(tiny_model()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    let args = format!("--data {data} {SMALL} --out {} --resume", path_str(&out));
    let run = || {
        let start = ["calibrate", "--device", "cpu", "-m", path_str(&model)];
        polykv(&start.into_iter().chain(args.split(' ')).collect::<Vec<_>>())
    };
    assert_eq!(run().code, 0);
    let weights = model.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    // The lowest bits of some number in f32.
    let place = bytes.len() - 4;
    bytes[place] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let answer = run();
    assert_eq!(answer.code, 3, "{}", answer.stderr);
    assert!(answer.stderr.contains("weights is"), "{}", answer.stderr);
}
