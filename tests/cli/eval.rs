//! `polykv eval`.

use super::write;
use crate::cli_support::{Answer, path_str, polykv, tiny_model};
use serde_json::Value;

/// About 2,000 tokens in the tiny vocabulary.
pub fn text(dir: &tempfile::TempDir) -> String {
    let words = ["gate", "lamp", "under", "seven", "bridge", "quiet", "north"];
    let text: Vec<&str> = (0..600).map(|i| words[(i * i + i / 3) % 7]).collect();
    write(dir, "text.txt", &text.join(" "))
}

/// Arguments are separated by spaces.
pub fn eval(args: &str) -> Answer {
    let model = tiny_model();
    let start = ["eval", "--device", "cpu", "-m", path_str(&model)];
    let args: Vec<&str> = start.into_iter().chain(args.split(' ')).collect();
    polykv(&args)
}

fn eval_json(args: &str) -> Value {
    let answer = eval(&format!("{args} --json"));
    assert_eq!((answer.code, answer.stderr.as_str()), (0, ""), "{args}");
    serde_json::from_str(&answer.stdout).unwrap()
}

const PLANS: &str = "--policy tova,random --policy snapkv --budget-ratio 0.4";

#[test]
fn every_task_gives_a_table_and_the_same_numbers_again() {
    let dir = tempfile::tempdir().unwrap();
    let text = text(&dir);
    for (task, metric, column) in [
        (
            format!("ppl --text {text} --length 100,150 --continuation 20 --limit 2"),
            "perplexity",
            "ΔNLL",
        ),
        (
            "needle --length 380 --depth 0,1 --limit 1".into(),
            "exact",
            "exact match",
        ),
        (
            format!("fidelity --text {text} --length 100 --continuation 8 --limit 2"),
            "kl",
            "same top token",
        ),
    ] {
        let args = format!("--task {task} {PLANS} --seed 11");
        let json = eval_json(&args);
        assert_eq!(json, eval_json(&args));
        let name = task.split(' ').next().unwrap();
        let score = &json["tasks"][name];
        assert_eq!(score["metric"], metric);
        assert!(score["score"].is_number() && score["n"].as_u64() >= Some(2));
        assert_eq!(
            (&json["mean"], &json["seed"]),
            (&score["score"], &11.into())
        );
        assert!(json["versions"]["polykv"].is_string());
        let plans = json["plans"].as_array().unwrap();
        let names: Vec<_> = plans.iter().map(|plan| plan["name"].as_str()).collect();
        assert_eq!(
            names,
            [
                "full",
                "tova ratio 0.4",
                "random ratio 0.4",
                "snapkv ratio 0.4"
            ]
            .map(Some)
        );
        for plan in plans {
            assert_eq!(plan["hash"].as_str().map(str::len), Some(16));
            assert_eq!(plan["tasks"][name]["n"], score["n"]);
            assert!(!plan["groups"].as_array().unwrap().is_empty());
            check_differences(plan, &plans[0]);
        }
        let table = eval(&args);
        assert_eq!((table.code, table.stderr.as_str()), (0, ""));
        let parts = [
            "full",
            "tova",
            "random",
            "snapkv",
            "entries",
            "− best single",
        ];
        for part in [name, column].into_iter().chain(parts) {
            assert!(table.stdout.contains(part), "{part}: {}", table.stdout);
        }
    }
}

/// To FullKV and, for all but the best single policy, to that one.
fn check_differences(plan: &Value, full: &Value) {
    let Some(mean) = plan["differences"]["mean"].as_array() else {
        return assert_eq!(plan, full);
    };
    let rivals = if plan["best_single"] == true { 1 } else { 2 };
    assert_eq!((mean.len(), &mean[0]["to"]), (rivals, &full["name"]));
    let number = |value: &Value| value.as_f64().unwrap();
    let wanted = number(&plan["mean"]) - number(&full["mean"]);
    assert_eq!(number(&mean[0]["difference"]), wanted);
    for own in mean {
        let [low, high] = [0, 1].map(|end| number(&own["interval"][end]));
        let inside = (low - 1e-9..=high + 1e-9).contains(&number(&own["difference"]));
        assert!(inside, "{own}");
    }
}

#[test]
fn a_budget_above_the_length_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let windows = format!(
        "--text {} --length 100 --continuation 12 --limit 2",
        text(&dir)
    );
    let roomy = "--policy h2o --budget 300";
    let scores = |task: &str| {
        let json = eval_json(&format!("--task {task} {windows} {roomy}"));
        json["plans"][1]["scores"].clone()
    };
    let found = scores("ppl");
    assert!(found["delta_nll"].as_f64().unwrap().abs() < 1e-6);
    assert_eq!(found["kept"], 100.0);
    let found = scores("fidelity --generated");
    assert!(found["kl"].as_f64().unwrap() < 1e-6);
    assert_eq!(found["agreement"], 1.0);
}

#[test]
fn protocols_differ_and_are_named() {
    let run = |more: &str| {
        let args = format!("--task needle --length 380 --depth 0.5 --limit 1 {PLANS}{more}");
        (eval_json(&args), eval(&args).stdout)
    };
    let (plain, table) = run("");
    assert!(table.contains("no start of the answer given"), "{table}");
    let (given, table) = run(" --answer-prefix");
    assert!(table.contains("start of the answer among them"), "{table}");
    assert_ne!(plain["plans"], given["plans"]);
    assert_eq!(given["settings"]["answer_prefix"], true);
    let (after, table) = run(" --answer-prefix --question-after");
    assert!(table.contains("question after them"), "{table}");
    assert_ne!(given["plans"], after["plans"]);
    assert_eq!(run(" --answer-prefix --no-answer-prefix").0, plain);
}

#[test]
fn results_are_written_whole() {
    let dir = tempfile::tempdir().unwrap();
    let plan = write(
        &dir,
        "mine.yaml",
        "schema: 1\nlayers: 3\nbudget: {tokens: 40}\nprefill:\n- {layers: 0-2, policy: knorm}\n\
         decode:\n- {layers: 0-2, policy: full}\n",
    );
    let out = dir.path().join("results/first");
    let args = format!(
        "--task ppl --text {} --length 100 --continuation 8 --limit 3 --plan {plan} --plan {plan} --out {}",
        text(&dir),
        path_str(&out)
    );
    let json = eval_json(&args);
    let mut files: Vec<_> = std::fs::read_dir(&out)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let all = [
        "metrics.json",
        "predictions.jsonl",
        "report.html",
        "run.json",
    ];
    assert_eq!(files, all);
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    let metrics: Value = serde_json::from_str(&read("metrics.json")).unwrap();
    assert_eq!(metrics, json);
    let lines = read("predictions.jsonl");
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 9);
    let mine: Vec<f64> = lines
        .iter()
        .filter(|line| line["plan"] == "mine")
        .map(|line| line["scores"]["nll"].as_f64().unwrap())
        .collect();
    let mean = json["plans"][1]["scores"]["nll"].as_f64().unwrap();
    assert!((mine.iter().sum::<f64>() / 3.0 - mean).abs() < 1e-12);
    assert_eq!(json["plans"][2]["name"], "mine 2");
    assert_eq!(json["plans"][2]["scores"], json["plans"][1]["scores"]);
}
