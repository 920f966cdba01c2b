//! Calibrations that cannot be run, and controls of plans.

use super::{check, rows};
use crate::cli_support::{path_str, polykv, tiny_model};

/// Arguments beside `--budget 40`, what the error says. `SHORT` is a text of a few tokens, `LONG` one of 900, `EMPTY` a
/// folder without text.
const REFUSED: &str = "
    --objective text | --data | missing | --objective evidence
    --data /nonexistent.txt | /nonexistent.txt | No such file
    --data EMPTY | without .txt and .md files
    --data SHORT --length 100 | data is 1 texts of at most | at least 228
    --data LONG --length 500 | 500 and 128 tokens | at most 512
    --data LONG --length 0 | length is 0 | at least 1
    --data LONG --length 100 --continuation 1 | continuation is 1 | at least 2
    --data LONG --length 100 --examples 0 | examples is 0 | at least 1
    --data LONG --length 40 --continuation 9 | budget is 40 | below 40
    --data LONG --length 100 --policies snapkv:window=41 | budget of layer 0 is 40 | at least 41 | snapkv | window: 41
    --data LONG --length 100 --policies snapkv:windw=4 | windw | window
    --objective evidence --length 60 | length is 60 | needle and question
    --objective evidence --length 505 | at most 512
    --objective evidence --length 300 --evidence 0 | evidence is 0 | at least 1
    --data LONG --length 100 --phase prefill --policies snapkv:window=41 | budget of layer 0 is 40 | at least 41
    --data LONG --length 100 --allocator calibrated --budget-signal effect | --budget-signal is effect | refine
    --data LONG --length 100 --kv-dtype cache,q4 | --kv-dtype is 2 formats | a budget in bytes
    --data LONG --length 100 --kv-dtype q4,q4 | --kv-dtype is | each once
    --data LONG --length 100 --phase prefill --refine 2 --refine-phase decode | --refine-phase is decode | prefill
";

const USAGE: &str = "
    --data a.txt --policies h2o,tvoa | tvoa | tova
    --data a.txt --policies h2o,h2o | twice
    --data a.txt --policies full,h2o | 'full' | tova
    --data a.txt --allocator pyramdi | pyramdi | calibrated
    --data a.txt --signal entropy | entropy | cosine
    --data a.txt --objective needle | needle | evidence
    --data a.txt --budget-ratio 0.5 | --budget
    --data a.txt --phase never | never | prefill, decode, both
    --data a.txt --refine-phase none | none | prefill, decode, both
    --data a.txt --kv-dtype q5 | q5 | q8, q4
    --data a.txt --refine 1.5 | 1.5 | --refine
";

fn calibrate(args: &str, code: i32, parts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let short = file("short.txt", "Only a few words.");
    let long = file(
        "long.txt",
        &"gate lamp under seven bridge quiet north ".repeat(40),
    );
    let (empty, out) = (dir.path().join("empty"), dir.path().join("out"));
    std::fs::create_dir(&empty).unwrap();
    let model = tiny_model();
    let start = [
        "calibrate",
        "--device",
        "cpu",
        "-m",
        path_str(&model),
        "--budget",
        "40",
        "--out",
    ];
    let mut all = start.to_vec();
    all.push(path_str(&out));
    all.extend(args.split(' ').map(|arg| match arg {
        "SHORT" => path_str(&short),
        "LONG" => path_str(&long),
        "EMPTY" => path_str(&empty),
        other => other,
    }));
    check(args, code, parts, &polykv(&all));
    assert!(!out.exists(), "{args}: something was written");
}

#[test]
fn content() {
    for row in rows(REFUSED) {
        calibrate(row[0], 3, &row[1..]);
    }
}

#[test]
fn usage() {
    for row in rows(USAGE) {
        calibrate(row[0], 2, &row[1..]);
    }
}
