//! Folders of `polykv eval`: interrupted, in shards, merged, refused.

use super::eval::{eval, text};
use crate::cli_support::{Answer, command, path_str, polykv, tiny_model};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

const PLANS: &str = "--policy tova,random --budget 20,30 --seed 3";
/// Without FullKV.
const PLAN_COUNT: usize = 4;

/// A task on a text with a number of samples, its plans, and a folder beside the text.
struct Runs {
    dir: tempfile::TempDir,
    args: String,
}

impl Runs {
    fn new(limit: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = text(&dir);
        let args = format!(
            "--task ppl --text {text} --length 60 --continuation 6 --limit {limit} {PLANS}"
        );
        Self { dir, args }
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The arguments with a folder and what else is given.
    fn with_out(&self, name: &str, more: &str) -> String {
        format!("{} --out {}{more}", self.args, path_str(&self.folder(name)))
    }

    fn run(&self, name: &str, more: &str) {
        let answer = eval(&self.with_out(name, more));
        assert_eq!(
            (answer.code, answer.stderr.as_str()),
            (0, ""),
            "{name} {more}"
        );
    }

    fn read(&self, folder: &str, file: &str) -> String {
        read(&self.folder(folder), file)
    }

    fn record(&self, folder: &str) -> Value {
        serde_json::from_str(&self.read(folder, "run.json")).unwrap()
    }

    /// Both folders hold the same results, as far as they do not depend on time.
    fn same(&self, one: &str, other: &str) {
        for file in ["predictions.jsonl", "metrics.json"] {
            assert_eq!(
                self.read(one, file),
                self.read(other, file),
                "{file} of {one} and {other}"
            );
        }
        assert!(self.read(one, "report.html").contains("Results"));
    }
}

fn read(folder: &Path, file: &str) -> String {
    std::fs::read_to_string(folder.join(file)).unwrap()
}

fn refused(answer: &Answer, parts: &[&str]) {
    assert_eq!(answer.code, 3, "{}", answer.stderr);
    for part in parts {
        assert!(answer.stderr.contains(part), "{part}: {}", answer.stderr);
    }
}

fn merge(shards: &[PathBuf], out: &Path) -> Answer {
    let mut args = vec!["eval", "merge"];
    args.extend(shards.iter().map(|shard| path_str(shard)));
    polykv(&[&args[..], &["--out", path_str(out)]].concat())
}

#[test]
fn a_run_cut_anywhere_goes_on_to_the_same_result() {
    let runs = Runs::new(4);
    runs.run("whole", "");
    let lines = runs.read("whole", "predictions.jsonl");
    let starts: Vec<usize> = lines.match_indices('\n').map(|(at, _)| at + 1).collect();
    assert_eq!(starts.len(), 4 * (1 + PLAN_COUNT));
    let sample = starts[PLAN_COUNT];
    // Nothing, pieces of lines, between the lines of a sample, between samples, everything.
    let cuts = [
        0,
        10,
        sample - 1,
        sample,
        sample + 1,
        starts[PLAN_COUNT + 2],
        lines.len() - 1,
        lines.len(),
    ];
    for cut in cuts {
        let folder = runs.folder("cut");
        std::fs::create_dir(&folder).unwrap();
        std::fs::copy(
            runs.folder("whole").join("run.json"),
            folder.join("run.json"),
        )
        .unwrap();
        std::fs::write(folder.join("predictions.jsonl"), &lines[..cut]).unwrap();
        runs.run("cut", "");
        runs.same("cut", "whole");
        let again = if cut == lines.len() { 1 } else { 2 };
        assert_eq!(
            runs.record("cut")["sessions"].as_array().unwrap().len(),
            again,
            "{cut}"
        );
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn a_killed_run_goes_on_to_the_same_result() {
    let runs = Runs::new(60);
    let model = tiny_model();
    let args = runs.with_out("killed", "");
    let start = ["eval", "--device", "cpu", "-m", path_str(&model)];
    let args: Vec<&str> = start.into_iter().chain(args.split(' ')).collect();
    let mut child = command(&args, Path::new("/nonexistent"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let path = runs.folder("killed").join("predictions.jsonl");
    let written = || std::fs::read_to_string(&path).map_or(0, |text| text.lines().count());
    let begun = Instant::now();
    while written() < 20 {
        assert!(begun.elapsed() < Duration::from_secs(60), "no predictions");
        assert!(
            child.try_wait().unwrap().is_none(),
            "done before it could be killed"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!runs.folder("killed").join("metrics.json").exists());
    let before = written();
    assert!(before < 60 * (1 + PLAN_COUNT), "{before}");
    runs.run("killed", "");
    runs.run("whole", "");
    runs.same("killed", "whole");
    let sessions = &runs.record("killed")["sessions"];
    assert_eq!(sessions.as_array().unwrap().len(), 2);
    assert!(sessions[1]["samples"].as_u64() < Some(60), "{sessions}");
}

#[test]
fn shards_merge_to_the_whole_run() {
    let runs = Runs::new(7);
    runs.run("whole", "");
    let names = ["a", "b", "c"];
    for (index, name) in names.iter().enumerate() {
        runs.run(name, &format!(" --shard {index}/3"));
        let metrics: Value = serde_json::from_str(&runs.read(name, "metrics.json")).unwrap();
        assert_eq!(metrics["shard"], format!("{index}/3"));
    }
    let folders: Vec<PathBuf> = names.iter().map(|name| runs.folder(name)).collect();
    let swapped = [folders[2].clone(), folders[0].clone(), folders[1].clone()];
    let answer = merge(&swapped, &runs.folder("merged"));
    assert_eq!((answer.code, answer.stderr.as_str()), (0, ""));
    assert!(answer.stdout.contains("tova 20"), "{}", answer.stdout);
    runs.same("merged", "whole");
    let record = runs.record("merged");
    assert_eq!(record["sessions"].as_array().unwrap().len(), 3);
    assert!(record.get("shard").is_none());

    let refuse = |shards: &[PathBuf], parts: &[&str]| {
        let out = runs.folder("refused");
        refused(&merge(shards, &out), parts);
        assert!(!out.exists());
    };
    refuse(&folders[..2], &["without 2/3", "all 3 shards"]);
    refuse(
        &[folders.clone(), vec![folders[0].clone()]].concat(),
        &["shard is 0/3", "each shard once"],
    );
    let with = |other: &str| [&folders[..2], &[runs.folder(other)]].concat();
    refuse(&with("whole"), &["whole", "shard is 0/1", "0/3 in"]);
    refuse(&with("nowhere"), &["nowhere", "run.json is missing"]);
    let other = runs
        .with_out("other", " --shard 2/3")
        .replace("--seed 3", "--seed 4");
    assert_eq!(eval(&other).code, 0);
    refuse(
        &with("other"),
        &["other/run.json", "seed is 4", "allowed: 3"],
    );
    refused(
        &merge(&folders, &runs.folder("whole")),
        &["whole", "there from another run"],
    );
    // An unfinished shard: its last sample is the run's sample 5.
    let lines = runs.read("c", "predictions.jsonl");
    std::fs::write(
        folders[2].join("predictions.jsonl"),
        &lines[..lines.len() - 5],
    )
    .unwrap();
    refuse(&folders, &["/c", "sample 5 of 7", "missing from shard 2/3"]);
    // A sample twice.
    let twice = [lines.as_str(), &lines].concat();
    std::fs::write(folders[2].join("predictions.jsonl"), twice).unwrap();
    refuse(
        &folders,
        &["line 11", "sample 2", "each sample of the run once"],
    );
}

#[test]
fn records_of_runs_that_cannot_be_are_refused_before_anything_is_reserved() {
    let runs = Runs::new(2);
    let folders = ["a", "b"].map(|name| runs.folder(name));
    for (index, name) in ["a", "b"].iter().enumerate() {
        runs.run(name, &format!(" --shard {index}/2"));
    }
    let whole = runs.record("a");
    let changes: [(&str, Value, &str); 7] = [
        ("/plans", json!([]), "plans is 0; allowed: 1 to 1000"),
        (
            "/samples",
            json!(10_000_000_000_000u64),
            "samples is 10000000000000",
        ),
        ("/samples", json!(0), "samples is 0"),
        (
            "/shard",
            json!("0/10000000000000"),
            "shards is 10000000000000",
        ),
        ("/plans/1/name", json!("full"), "'full' twice"),
        (
            "/plans/1/plan/layers",
            json!(10_000_000_000_000u64),
            "layers is 10000000000000",
        ),
        ("/sessions/0/seconds", json!(-1.0), "seconds is -1"),
    ];
    for (field, value, part) in changes {
        let mut changed = whole.clone();
        *changed.pointer_mut(field).unwrap() = value;
        let path = folders[0].join("run.json");
        std::fs::write(&path, changed.to_string()).unwrap();
        let begun = Instant::now();
        refused(&merge(&folders, &runs.folder("out")), &["a/run.json", part]);
        assert!(begun.elapsed() < Duration::from_secs(5), "{field}");
    }
}

#[test]
fn a_folder_of_another_run_is_refused_and_left_alone() {
    let runs = Runs::new(2);
    runs.run("out", "");
    let files =
        || ["run.json", "predictions.jsonl", "metrics.json"].map(|file| runs.read("out", file));
    let before = files();
    let args = runs.with_out("out", "");
    let needle = format!(
        "--task needle --length 380 --limit 1 {PLANS} --out {}",
        path_str(&runs.folder("out"))
    );
    for (changed, parts) in [
        (
            args.replace("--seed 3", "--seed 5"),
            &["seed is 3", "allowed: 5"][..],
        ),
        (
            args.replace("--length 60", "--length 64"),
            &["settings.length is [60]", "[64]"],
        ),
        (
            args.replace("20,30", "20,31"),
            &["plans is", "tova 30", "tova 31"],
        ),
        (format!("{args} --dtype f16"), &["dtype is f32", "f16"]),
        (format!("{args} --decode"), &["settings.decode is false"]),
        (format!("{args} --shard 0/2"), &["shard is 0/1", "0/2"]),
        (needle, &["task is ppl", "needle"]),
    ] {
        refused(&eval(&changed), parts);
        assert_eq!(files(), before, "{changed}");
    }
    // Other questions under the same name.
    let text = runs.folder("text.txt");
    let content = std::fs::read_to_string(&text).unwrap();
    std::fs::write(&text, content.replace("gate", "moon")).unwrap();
    refused(&eval(&args), &["questions is", "another folder"]);
    std::fs::write(&text, content).unwrap();

    let spoil = |content: &str| {
        std::fs::write(runs.folder("out").join("predictions.jsonl"), content).unwrap()
    };
    let file = "predictions.jsonl";
    spoil(&before[1].replacen("\"plan\":\"full\"", "\"plan\":\"fool\"", 1));
    refused(&eval(&args), &[file, "line 1 is damaged"]);
    spoil(&format!("{{}}\n{}", before[1]));
    refused(&eval(&args), &[file, "line 1 is without a checksum"]);
    let mut lines: Vec<&str> = before[1].split_inclusive('\n').collect();
    lines.swap(0, 1);
    spoil(&lines.concat());
    refused(&eval(&args), &[file, "line 1", "under 'tova 20'"]);
    spoil(&polykv_core::files::lines::seal("{\"sample\":0}"));
    refused(&eval(&args), &[file, "line 1 is no prediction"]);
    std::fs::remove_file(runs.folder("out").join("run.json")).unwrap();
    refused(&eval(&args), &["predictions.jsonl", "without the run.json"]);
}

#[test]
fn policies_budgets_and_phases_multiply() {
    let runs = Runs::new(1);
    let names = |more: &str| -> Vec<String> {
        let answer =
            eval(&format!("{} --json {more}", runs.args.replace(PLANS, "")).replace("  ", " "));
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        let json: Value = serde_json::from_str(&answer.stdout).unwrap();
        let plans = json["plans"].as_array().unwrap().iter();
        plans
            .map(|plan| plan["name"].as_str().unwrap().to_string())
            .collect()
    };
    assert_eq!(
        names("--policy tova,h2o --budget-ratio 0.25,0.5"),
        [
            "full",
            "tova ratio 0.25",
            "tova ratio 0.5",
            "h2o ratio 0.25",
            "h2o ratio 0.5"
        ]
    );
    assert_eq!(
        names("--policy tova --budget 20,30 --phase prefill,both"),
        [
            "full",
            "tova 20 prefill",
            "tova 20",
            "tova 30 prefill",
            "tova 30"
        ]
    );
    // 3 layers of 2 heads of 16 numbers in f32, keys and values: 768 bytes an entry.
    assert_eq!(
        names("--policy h2o --budget-mb 0.01536"),
        ["full", "h2o 15360 B"]
    );
}
