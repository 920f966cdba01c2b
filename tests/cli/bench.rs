//! `polykv bench` on the tiny model.

use super::write;
use crate::cli_support::{path_str, polykv, tiny_model};
use serde_json::Value;

fn bench(more: &str) -> String {
    let model = tiny_model();
    let start = ["bench", "--device", "cpu", "-m", path_str(&model)];
    let args: Vec<&str> = start.into_iter().chain(more.split(' ')).collect();
    let answer = polykv(&args);
    assert_eq!((answer.code, answer.stderr.as_str()), (0, ""), "{more}");
    answer.stdout
}

fn refused(args: &str, code: i32, parts: &[&str]) {
    let args: Vec<&str> = ["bench", "--device", "cpu"]
        .into_iter()
        .chain(args.split(' '))
        .collect();
    let answer = polykv(&args);
    assert_eq!(answer.code, code, "{args:?}: {}", answer.stderr);
    assert_eq!(answer.stdout, "");
    for part in parts {
        assert!(answer.stderr.contains(part), "{part}: {}", answer.stderr);
    }
}

#[test]
fn every_plan_has_a_row_per_test() {
    let dir = tempfile::tempdir().unwrap();
    let plan = write(
        &dir,
        "plan.yaml",
        "schema: 1\nname: mixed\nlayers: 3\nbudget: {tokens: 20}\n\
         prefill:\n- {layers: 0-2, policy: h2o}\ndecode:\n- {layers: 0-1, policy: tova}\n- {layers: 2, policy: h2o, share: 2}\n",
    );
    let text = bench(&format!(
        "-p 60 -n 9 -d 0,70 -r 2 -o jsonl --plan {plan} --policy tova,streaming-llm --budget 16"
    ));
    let rows: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let names: Vec<_> = rows
        .iter()
        .map(|row| (row["test"].as_str().unwrap(), row["plan"].as_str().unwrap()))
        .collect();
    let mut expected = Vec::new();
    for test in ["pp60", "tg9@d0", "tg9@d70"] {
        expected.extend(["full", "mixed", "tova 16", "streaming-llm 16"].map(|plan| (test, plan)));
    }
    assert_eq!(names, expected);
    for row in &rows {
        let number = |field: &str| {
            row[field]
                .as_f64()
                .unwrap_or_else(|| panic!("{field}: {row}"))
        };
        for field in [
            "tok_s_mean",
            "ttft_ms",
            "kv_bytes",
            "peak_bytes",
            "threads",
            "bandwidth_bytes_s",
        ] {
            assert!(number(field) > 0.0, "{field}: {row}");
        }
        assert!(number("tok_s_sd") >= 0.0 && number("peak_bytes") >= number("kv_bytes"));
        let decodes = row["test"].as_str().unwrap().starts_with("tg");
        assert_eq!(
            row["bound_share"].as_f64().is_some_and(|share| share > 0.0),
            decodes
        );
        assert_eq!(
            (&row["device"], &row["dtype"]),
            (&"cpu".into(), &"f32".into())
        );
    }
    let kept = |index: usize| {
        ["kept_min", "kept_mean", "kept_max"].map(|field| rows[index][field].as_f64().unwrap())
    };
    assert_eq!(kept(0), [60.0; 3]);
    assert_eq!(kept(1), [20.0; 3]);
    assert_eq!(kept(4), [10.0; 3], "one token of prompt and nine");
    assert_eq!(kept(8), [79.0; 3]);
    assert_eq!(kept(9), [15.0, 59.0 / 3.0, 29.0]);
    assert_eq!(kept(10), [16.0; 3]);
    // 17 slots of an entry of three layers.
    assert_eq!(rows[10]["kv_bytes"], 17 * 768);
}

#[test]
fn the_forms_hold_the_same_rows() {
    let small = "-p 8 -n 2 -d 4 -r 1 --policy tova --budget 3";
    let md = bench(small);
    for part in [
        "| pp8 | full |",
        "| tg2@d4 | tova 3 |",
        "1 repeats",
        "3 / 3 / 3",
        "/s",
    ] {
        assert!(md.contains(part), "{part}: {md}");
    }
    let json: Value = serde_json::from_str(&bench(&format!("{small} -o json"))).unwrap();
    assert_eq!(json.as_array().map(Vec::len), Some(4));
    let csv = bench(&format!("{small} -o csv"));
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines.len(), 5);
    for line in &lines {
        assert_eq!(line.len(), lines[0].len(), "{csv}");
    }
    for name in &lines[0] {
        assert!(json[2].get(name).is_some(), "{name}");
    }
    // Batches multiply the tokens' bytes.
    let batch: Value = serde_json::from_str(&bench("-p 8 -n 0 -r 1 -b 3 -o json")).unwrap();
    assert_eq!(
        batch[0]["kv_bytes"].as_u64(),
        Some(3 * json[0]["kv_bytes"].as_u64().unwrap())
    );
}

#[test]
fn policies_and_budgets_are_lists() {
    let plans = |more: &str| -> Vec<Value> {
        let rows: Value = serde_json::from_str(&bench(&format!("{more} -o json"))).unwrap();
        let rows = rows.as_array().unwrap().iter();
        rows.map(|row| row["plan"].clone()).collect()
    };
    let commas = plans("-p 8 -n 0 -r 1 --policy tova,h2o --budget 4,6");
    assert_eq!(commas, ["full", "tova 4", "tova 6", "h2o 4", "h2o 6"]);
    let again = plans("-p 8 -n 0 -r 1 --policy tova --policy h2o --budget 4 --budget 6");
    assert_eq!(commas, again);
}

#[test]
fn depths_that_nobody_asked_for_fit_the_model() {
    let text = bench("-p 8 -n 4 -r 1 -o jsonl");
    let tests: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["test"].clone())
        .collect();
    // 2048 and 8192 are beyond the context of 512.
    assert_eq!(tests, ["pp8", "tg4@d0"]);
}

#[test]
fn random_weights_need_no_file() {
    let args = "bench --device cpu --random-weights smollm2-135m -p 4 -n 1 -d 2 -r 1 -o json";
    let answer = polykv(&args.split(' ').collect::<Vec<_>>());
    assert_eq!((answer.code, answer.stderr.as_str()), (0, ""));
    let rows: Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!(
        (&rows[0]["model"], &rows[0]["random_weights"]),
        (&"smollm2-135m".into(), &true.into())
    );
    assert_eq!(rows[0]["kept_max"], 4.0);
}

#[test]
fn what_cannot_be_measured_is_refused_first() {
    let model = tiny_model();
    let model = path_str(&model);
    refused(
        &format!("-m {model} -n 8 -d 510"),
        3,
        &["tg8@d510", "518 tokens", "at most 512"],
    );
    refused(&format!("-m {model} -p 0 -n 0"), 3, &["0 in both"]);
    refused(&format!("-m {model} -n 0 -d 4"), 3, &["0 beside --depth"]);
    refused(&format!("-m {model} -p 513"), 3, &["pp513", "at most 512"]);
    refused(&format!("-m {model} -b 65537"), 2, &["65537", "--batch"]);
    refused(
        &format!("-m {model} -p 18446744073709551615 -n 0"),
        3,
        &["18446744073709551615", "at most 512"],
    );
    refused(
        &format!("-m {model} --policy full --budget 9"),
        2,
        &["full", "does not evict"],
    );
    refused(
        "--random-weights smollm2-135m --offline",
        2,
        &["--offline", "--random-weights"],
    );
    refused(
        &format!("-m {model} -p 9 -n 0 --policy snapkv --budget 8"),
        3,
        &["is 8", "at least 32"],
    );
    refused(&format!("-m {model} --policy snapkv"), 2, &["--budget"]);
    refused(
        &format!("-m {model} --random-weights qwen3-8b"),
        2,
        &["--random-weights"],
    );
    refused(&format!("-m {model} --revision v1"), 3, &["revision", "v1"]);
    refused(
        "--random-weights qwen3-8b --revision v1",
        2,
        &["--revision", "--random-weights"],
    );
    refused("-p 9", 2, &["--model"]);
    refused("--random-weights llama-9", 2, &["llama-3.1-8b"]);
}

#[test]
fn weights_that_do_not_fit_into_memory_are_refused() {
    let free = polykv::machine::free_memory();
    // Elsewhere they might fit, and would be made.
    if free.is_some_and(|free| free < 30 << 30) {
        let parts = [
            "llama-3.1-8b: size of the weights is 32121044992 bytes",
            "free memory",
        ];
        refused("--random-weights llama-3.1-8b", 3, &parts);
    }
}

/// Sequences of different depths decode together, each in a cache of its own.
#[test]
fn depths_that_are_added_are_sequences_side_by_side() {
    for (batch, counts) in [(1, [80.0, 50.0, 20.0]), (3, [80.0, 50.0, 20.0])] {
        let run =
            format!("-p 0 -n 10 -d 70+10,70 -b {batch} -r 1 -o jsonl --policy tova --budget 16");
        let text = bench(&run);
        let rows: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let name = (0..batch).map(|_| "70").chain((0..batch).map(|_| "10"));
        let name = format!("tg10@d{}", name.collect::<Vec<_>>().join("+"));
        assert_eq!(rows[0]["test"], name);
        let kept = |row: usize| {
            ["kept_max", "kept_mean", "kept_min"].map(|field| rows[row][field].as_f64().unwrap())
        };
        assert_eq!(kept(0), counts);
        assert_eq!(kept(1), [16.0; 3]);
        // As much as the sequences have alone: 80 and 20 of the 80 entries of the row below.
        let bytes = |row: usize| rows[row]["kv_bytes"].as_f64().unwrap();
        assert!(rows[0]["tok_s_mean"].as_f64().unwrap() > 0.0);
        assert!((bytes(1) / bytes(3) - 2.0).abs() < 1e-9, "{text}");
    }
    refused(
        "-m x -d 3+x",
        2,
        &["--depth", "'x' is not a number of tokens"],
    );
}
