//! LongBench's folder.

use crate::{model, refuse, run, write};
use polykv::models::LoadedModel;
use polykv::models::eval::metrics::Metric;
use polykv::models::eval::{LongBench, LongBenchFiles, Prediction, PromptOptions, Task};
use serde_json::{Value, json};
use std::path::Path;

fn sample(task: &str, words: usize, answers: &[&str], classes: Value) -> Value {
    let context = "the quiet lamp under the bridge ".repeat(words);
    json!({"input": "Which lamp?", "context": context, "answers": answers, "length": words, "dataset": task,
        "language": "en", "all_classes": classes, "_id": "x"})
}

/// LongBench's folder with four tasks, and templates and limits of our own.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("config")).unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    let templates = json!({
        "hotpotqa": "Read.\n{context}\nAsk: {input}\nSay:",
        "samsum": "Sum up.\n{context}\n{input}",
        "trec": "Kinds.\n{context}\n{input}",
        "multifieldqa_zh": "读。\n{context}\n问：{input}",
    });
    let limits = json!({"hotpotqa": 6, "samsum": 9, "trec": 5, "multifieldqa_zh": 4});
    write(
        &dir.path().join("config"),
        "dataset2prompt.json",
        &[templates],
    );
    write(&dir.path().join("config"), "dataset2maxlen.json", &[limits]);
    let none = Value::Null;
    write(
        dir.path(),
        "hotpotqa.jsonl",
        &[
            sample("hotpotqa", 2, &["quiet", "lamp"], none.clone()),
            sample("hotpotqa", 90, &["bridge"], none.clone()),
        ],
    );
    write(
        dir.path(),
        "samsum.jsonl",
        &[sample("samsum", 2, &["a lamp"], none.clone())],
    );
    write(
        &dir.path().join("data"),
        "trec.jsonl",
        &[sample("trec", 2, &["Lamp"], json!(["Lamp", "Bridge"]))],
    );
    write(
        &dir.path().join("data"),
        "multifieldqa_zh.jsonl",
        &[sample("multifieldqa_zh", 2, &["灯"], none)],
    );
    // Not one of the tasks.
    write(dir.path(), "hotpotqa_e.jsonl", &[json!({"a": 1})]);
    dir
}

fn longbench(
    model: &LoadedModel,
    folder: &Path,
    options: &PromptOptions,
) -> polykv::Result<LongBench> {
    LongBench::new(model, LongBenchFiles::read(folder, options)?)
}

fn with(change: impl FnOnce(&mut PromptOptions)) -> PromptOptions {
    let mut options = PromptOptions::default();
    change(&mut options);
    options
}

#[test]
fn longbench_follows_its_rules() {
    let (model, dir) = (model(), folder());
    let task = longbench(&model, dir.path(), &PromptOptions::default()).unwrap();
    let (found, summary) = run(&model, &task);
    let full: Vec<&Prediction> = found.iter().step_by(3).collect();
    let names: Vec<_> = full
        .iter()
        .map(|one| (one.task.as_str(), one.metric.as_str(), one.id.as_str()))
        .collect();
    assert_eq!(
        names,
        [
            ("multifieldqa_zh", "f1-zh", "multifieldqa_zh.jsonl:1"),
            ("hotpotqa", "f1", "hotpotqa.jsonl:1"),
            ("hotpotqa", "f1", "hotpotqa.jsonl:2"),
            ("trec", "classification", "trec.jsonl:1"),
            ("samsum", "rouge-l", "samsum.jsonl:1"),
        ]
    );
    for one in &full {
        let most = [4, 6, 6, 5, 9][one.sample];
        assert!(one.new_tokens <= most, "{one:?}");
        assert_eq!(one.truncated, one.id == "hotpotqa.jsonl:2");
        assert!(one.prompt_tokens + most <= 512);
    }
    assert!(
        full[2].prompt_tokens > 480,
        "the context is used: {}",
        full[2].prompt_tokens
    );
    let shorter = with(|own| own.max_new_tokens = Some(5));
    let shorter = run(&model, &longbench(&model, dir.path(), &shorter).unwrap()).0;
    for one in shorter.iter().step_by(3) {
        assert!(one.new_tokens <= [4, 5, 5, 5, 5][one.sample], "{one:?}");
    }
    // Few-shot tasks are continued without the template, whose tokens the others have.
    let raw = longbench(&model, dir.path(), &with(|own| own.raw = true)).unwrap();
    let (own, raw) = (task.samples(), raw.samples());
    for (sample, more) in [(0, true), (1, true), (3, false), (4, false)] {
        assert_eq!(
            own[sample].prompt_tokens > raw[sample].prompt_tokens,
            more,
            "{sample}"
        );
    }
    // The score is the metric of what was generated, the first line of it where LongBench says so.
    let (qa, few) = (&full[1], &full[3]);
    let output = qa.output.as_deref().unwrap();
    assert_eq!(qa.scores["f1"], Metric::F1.score(output, &qa.answers, &[]));
    assert_eq!(qa.answers, ["quiet", "lamp"]);
    assert!((0.0..=1.0).contains(&few.scores["classification"]));
    let plan = &summary.plans[0];
    assert_eq!((plan.n, plan.truncated, plan.tasks.len()), (5, 1, 4));
    let sets: Vec<_> = plan
        .sets
        .iter()
        .map(|set| (set.name.as_str(), set.tasks, set.of))
        .collect();
    assert!(sets.contains(&("few-shot learning", 2, 4)), "{sets:?}");
    assert!(
        sets.contains(&("21 tasks", 4, 21)) && sets.contains(&("16 English and code tasks", 3, 16))
    );
    assert_eq!(found, run(&model, &task).0, "the same again");
}

#[test]
fn options_change_what_is_asked() {
    let (model, dir) = (model(), folder());
    let of = |options: PromptOptions| longbench(&model, dir.path(), &options).unwrap();
    let plain = of(PromptOptions::default());
    let one = of(with(|own| own.limit = Some(1)));
    assert_eq!(one.samples().len(), 4);
    let only = of(with(|own| {
        own.only = vec!["trec".into(), "hotpotqa".into()]
    }));
    let ids: Vec<_> = only.samples().into_iter().map(|own| own.id).collect();
    assert_eq!(
        ids,
        ["hotpotqa.jsonl:1", "hotpotqa.jsonl:2", "trec.jsonl:1"]
    );
    let after = of(with(|own| own.question_after = true));
    for (with, without) in plain.samples().iter().zip(after.samples()) {
        assert_eq!(with.id, without.id);
        assert!(without.prompt_tokens < with.prompt_tokens, "{with:?}");
    }
    run(&model, &after);
    let short = of(with(|own| own.max_length = Some(60)));
    let (found, summary) = run(&model, &short);
    assert!(
        found
            .iter()
            .all(|one| one.length == 60 && one.prompt_tokens < 90)
    );
    assert!(summary.plans[0].truncated >= 2);
    let prints: std::collections::BTreeSet<_> = [&plain, &one, &only, &after, &short]
        .iter()
        .map(|own| own.fingerprint())
        .collect();
    assert_eq!(prints.len(), 5);
    assert_eq!(
        plain.fingerprint(),
        of(PromptOptions::default()).fingerprint()
    );
}

#[test]
fn bad_benchmark_folders_are_refused() {
    let (model, dir) = (model(), folder());
    let path = dir.path();
    let read = |options: PromptOptions| longbench(&model, path, &options);
    let plain = PromptOptions::default;
    // Also behind the limit.
    let first = sample("hotpotqa", 1, &["x"], Value::Null);
    for (line, parts) in [
        (
            json!({"input": "", "answers": ["x"]}),
            ["hotpotqa.jsonl:2: context is missing", "a text"],
        ),
        (
            json!({"input": 3, "context": "", "answers": ["x"]}),
            ["hotpotqa.jsonl:2: input is a number", "a text"],
        ),
        (
            json!({"input": "", "context": "", "answers": []}),
            ["answers is an empty list", "at least one"],
        ),
        (
            json!([1]),
            ["hotpotqa.jsonl:2: line is not one", "JSON object"],
        ),
        (
            json!({"input": "", "context": "", "answers": ["x"], "dataset": "qasper"}),
            ["dataset is 'qasper'", "'hotpotqa'"],
        ),
    ] {
        write(path, "hotpotqa.jsonl", &[first.clone(), line]);
        refuse(read(with(|own| own.limit = Some(1))), &parts);
    }
    write(path, "hotpotqa.jsonl", &[first]);
    let trec = |classes| {
        write(
            &path.join("data"),
            "trec.jsonl",
            &[sample("trec", 1, &["Lamp"], classes)],
        )
    };
    trec(Value::Null);
    refuse(
        read(plain()),
        &["trec.jsonl:1: all_classes is null", "list of texts"],
    );
    trec(json!(["Bridge"]));
    refuse(
        read(plain()),
        &["trec.jsonl:1: reference is 'Lamp'", "classes"],
    );
    trec(json!(["Lamp"]));
    assert!(read(plain()).is_ok());
    refuse(
        read(with(|own| own.only = vec!["hotpot".into()])),
        &["task is 'hotpot'", "hotpotqa"],
    );
    refuse(
        read(with(|own| own.only = vec!["qasper".into()])),
        &["no qasper.jsonl", "THUDM/LongBench"],
    );
    refuse(
        read(with(|own| own.max_length = Some(510))),
        &["max-length is 510", "context of 512"],
    );
    refuse(read(with(|own| own.limit = Some(0))), &["limit is 0"]);
    let config = |name: &str, value: Value| write(&path.join("config"), name, &[value]);
    config("dataset2maxlen.json", json!({"hotpotqa": 0}));
    refuse(
        read(with(|own| own.only = vec!["hotpotqa".into()])),
        &["dataset2maxlen.json: hotpotqa is 0"],
    );
    config(
        "dataset2prompt.json",
        json!({"hotpotqa": "{context} {answer}"}),
    );
    refuse(
        read(with(|own| own.only = vec!["hotpotqa".into()])),
        &["dataset2prompt.json: hotpotqa", "{answer}"],
    );
    std::fs::remove_file(path.join("config/dataset2prompt.json")).unwrap();
    refuse(
        read(plain()),
        &[
            "dataset2prompt.json: file is missing",
            "LongBench/config",
            "THUDM/LongBench",
        ],
    );
    let empty = folder();
    for name in [
        "hotpotqa.jsonl",
        "samsum.jsonl",
        "data/trec.jsonl",
        "data/multifieldqa_zh.jsonl",
    ] {
        std::fs::remove_file(empty.path().join(name)).unwrap();
    }
    refuse(
        longbench(&model, empty.path(), &plain()),
        &["none of the tasks' files", "data.zip"],
    );
}
