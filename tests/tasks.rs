//! LongBench, RULER and own prompts end to end on the tiny model, with made-up lines in their formats.

#![cfg(feature = "flex")]

use burn::tensor::Device;
use polykv::models::eval::metrics::Metric;
use polykv::models::eval::{
    Candidate, Evaluator, LongBench, Prediction, PromptOptions, Prompts, PromptsOptions, Ruler,
    RulerOptions, Summary, Task, evaluate,
};
use polykv::models::{LoadedModel, load};
use polykv::policy::Params;
use polykv::{Budget, Phase, Plan};
use serde_json::{Value, json};
use std::path::Path;

fn model() -> LoadedModel {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama31");
    load(&folder, &Device::flex()).unwrap()
}

/// The same model with a longer context.
fn roomy_model(context: usize) -> LoadedModel {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama31");
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ] {
        let content = std::fs::read(fixture.join(name)).unwrap();
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    let config = std::fs::read_to_string(fixture.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["max_position_embeddings"] = context.into();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    load(dir.path(), &Device::flex()).unwrap()
}

/// A budget above every length, and one that evicts.
fn candidates() -> Vec<Candidate> {
    let plan = |policy: &str, budget| {
        let phases = [Phase::Prefill, Phase::Decode];
        Plan::uniform(3, policy, Params::new(), Budget::Tokens(budget), &phases)
    };
    [("roomy", "h2o", 2000), ("tova", "tova", 30)]
        .map(|(name, policy, budget)| Candidate {
            name: name.into(),
            plan: plan(policy, budget),
        })
        .into()
}

fn run(model: &LoadedModel, task: &dyn Task) -> (Vec<Prediction>, Summary) {
    let evaluator = Evaluator::new(model, candidates()).unwrap();
    let all: Vec<usize> = (0..task.samples().len()).collect();
    let mut found = Vec::new();
    evaluate(task, &evaluator, &all, &mut |own| {
        assert_eq!(own.len(), 3);
        assert_eq!(own[0].output, own[1].output, "a budget above the length");
        assert_eq!(
            own[0].scores.keys().collect::<Vec<_>>(),
            own[2].scores.keys().collect::<Vec<_>>()
        );
        found.extend_from_slice(own);
        Ok(())
    })
    .unwrap();
    let summary = Summary::of(task, &evaluator, &found);
    (found, summary)
}

fn write(folder: &Path, name: &str, lines: &[Value]) {
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    std::fs::write(folder.join(name), lines.join("\n")).unwrap();
}

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

fn with(change: impl FnOnce(&mut PromptOptions)) -> PromptOptions {
    let mut options = PromptOptions::default();
    change(&mut options);
    options
}

#[test]
fn longbench_follows_its_rules() {
    let (model, dir) = (model(), folder());
    let task = LongBench::new(&model, dir.path(), &PromptOptions::default()).unwrap();
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
    // Few-shot tasks are continued without the template, whose tokens the others have.
    let raw = LongBench::new(&model, dir.path(), &with(|own| own.raw = true)).unwrap();
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
    let of = |options: PromptOptions| LongBench::new(&model, dir.path(), &options).unwrap();
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

fn refuse<T: std::fmt::Debug>(result: polykv::Result<T>, parts: &[&str]) {
    let error = result.unwrap_err();
    assert!(error.is_refusal(), "{error}");
    for part in parts {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
}

#[test]
fn bad_benchmark_folders_are_refused() {
    let (model, dir) = (model(), folder());
    let path = dir.path();
    let read = |options: PromptOptions| LongBench::new(&model, path, &options);
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
        LongBench::new(&model, empty.path(), &plain()),
        &["none of the tasks' files", "data.zip"],
    );
}

fn prompts(map: &str, metric: &str, change: impl FnOnce(&mut PromptsOptions)) -> PromptsOptions {
    let mut options = PromptsOptions {
        map: map.parse().unwrap(),
        scorer: metric.parse().unwrap(),
        max_new_tokens: None,
        prompts: PromptOptions::default(),
    };
    change(&mut options);
    options
}

#[test]
fn own_prompts_are_mapped() {
    let model = model();
    let dir = tempfile::tempdir().unwrap();
    let story = "The lamp is in the mill. ".repeat(3);
    write(
        dir.path(),
        "a.jsonl",
        &[
            json!({"task": "qa1", "input": story, "question": "Where is it?", "target": "mill", "lead": "It is in the"}),
            json!({"task": "qa2", "input": story, "question": "What is it?", "target": ["lamp", "a lamp"], "lead": ""}),
            json!({"task": "qa1", "input": story, "question": "Where?", "target": 7, "lead": ""}),
        ],
    );
    let file = dir.path().join("a.jsonl");
    let map = "prompt=input,answers=target";
    let read = |options: &PromptsOptions| Prompts::new(&model, &file, options).unwrap();
    let short = |own: &mut PromptsOptions| own.max_new_tokens = Some(4);
    let plain = read(&prompts(map, "substring", short));
    let (found, _) = run(&model, &plain);
    assert_eq!(
        (found[0].task.as_str(), found[0].metric.as_str()),
        ("a", "substring")
    );
    assert_eq!(found[6].answers, ["7"]);
    assert_eq!(found[3].id, "a.jsonl:2");
    assert!(found.iter().all(|one| one.new_tokens <= 4));
    let asked = read(&prompts(
        &format!("{map},question=question,task=task"),
        "f1",
        short,
    ));
    assert!(asked.samples()[0].prompt_tokens > plain.samples()[0].prompt_tokens);
    let (_, summary) = run(&model, &asked);
    let tasks: Vec<_> = summary.plans[0]
        .tasks
        .iter()
        .map(|own| (own.name.as_str(), own.n))
        .collect();
    assert_eq!(tasks, [("qa1", 2), ("qa2", 1)]);
    let led = format!("{map},question=question,task=task,prefix=lead");
    let led = read(&prompts(&led, "f1", short));
    assert!(led.samples()[0].prompt_tokens > asked.samples()[0].prompt_tokens);
    assert_eq!(
        led.samples()[1].prompt_tokens,
        asked.samples()[1].prompt_tokens
    );
    // One of each task, and after the text.
    let after = read(&prompts(
        &format!("{map},question=question,task=task"),
        "f1",
        |own| {
            short(own);
            own.prompts.question_after = true;
            own.prompts.limit = Some(1);
        },
    ));
    assert_eq!(after.samples().len(), 2);
    assert!(after.samples()[0].prompt_tokens < asked.samples()[0].prompt_tokens);
    run(&model, &after);
    // A folder, with LongBench's rules by task.
    let other = tempfile::tempdir().unwrap();
    let line = |task: &str| json!({"task": task, "prompt": "Sum up the mill.", "answers": ["A mill."], "all_classes": null});
    write(other.path(), "b.jsonl", &[line("samsum")]);
    write(other.path(), "c.jsonl", &[line("hotpotqa")]);
    let rules = prompts(
        "prompt=prompt,answers=answers,task=task,classes=all_classes",
        "longbench",
        |_| {},
    );
    let task = Prompts::new(&model, other.path(), &rules).unwrap();
    let (found, _) = run(&model, &task);
    assert_eq!(
        (found[0].metric.as_str(), found[3].metric.as_str()),
        ("rouge-l", "f1")
    );
    assert!(found[0].new_tokens >= 1 && found[0].new_tokens <= 128);
    assert!(found[3].new_tokens <= 32);
}

#[test]
fn bad_prompts_are_refused() {
    let model = model();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.jsonl");
    let good = json!({"p": "A lamp.", "a": "lamp", "t": "x"});
    write(
        dir.path(),
        "a.jsonl",
        &[good.clone(), json!({"p": " ", "a": "x", "t": "x"})],
    );
    let read = |options: PromptsOptions| Prompts::new(&model, &file, &options);
    let map = "prompt=p,answers=a";
    refuse(
        read(prompts(map, "f1", |_| {})),
        &["a.jsonl:2: p is empty", "at least one word"],
    );
    write(dir.path(), "a.jsonl", &[good]);
    assert!(read(prompts(map, "f1", |_| {})).is_ok());
    refuse(
        read(prompts("prompt=q,answers=a", "f1", |_| {})),
        &["a.jsonl:1: q is missing beside a, p, t"],
    );
    refuse(
        read(prompts(&format!("{map},task=t"), "longbench", |_| {})),
        &["a.jsonl:1: task is 'x'", "21 tasks"],
    );
    refuse(
        read(prompts(map, "classification", |_| {})),
        &["map: classes is missing"],
    );
    refuse(
        read(prompts(map, "retrieval", |_| {})),
        &["a.jsonl:1: reference is 'lamp'", "Paragraph"],
    );
    let after = |own: &mut PromptsOptions| own.prompts.question_after = true;
    refuse(
        read(prompts(map, "f1", after)),
        &["a.jsonl:1: question is missing"],
    );
    let only = |own: &mut PromptsOptions| own.prompts.only = vec!["y".into()];
    refuse(
        read(prompts(map, "f1", only)),
        &["task is 'y'", "a task of the files"],
    );
    refuse(
        read(prompts(map, "f1", |own| own.max_new_tokens = Some(0))),
        &["new tokens is 0"],
    );
    refuse(
        read(prompts(map, "f1", |own| own.max_new_tokens = Some(511))),
        &["a.jsonl:1: room is"],
    );
    let empty = tempfile::tempdir().unwrap();
    refuse(
        Prompts::new(&model, empty.path(), &prompts(map, "f1", |_| {})),
        &["files is none", "*.jsonl"],
    );
    let missing = empty.path().join("none.jsonl");
    refuse(
        Prompts::new(&model, &missing, &prompts(map, "f1", |_| {})),
        &["none.jsonl", "No such file"],
    );
    for (text, part) in [
        ("prompt=p", "lacks prompt= or answers="),
        ("prompt=p,answers=", "is not NAME=FIELD"),
        ("prompt=p,answers=a,prompt=b", "each name once"),
        ("prompt=p,answers=a,quest=b", "'quest' is none of"),
    ] {
        let message = text.parse::<polykv::models::eval::FieldMap>().unwrap_err();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn ruler_style_tasks_run() {
    let model = roomy_model(2048);
    let options = RulerOptions {
        lengths: vec![1200, 1500],
        only: vec!["niah_single_1".into(), "niah_single_2".into()],
        limit: 1,
        seed: 2,
        answer_prefix: true,
        question_after: false,
        raw: false,
        source: None,
    };
    let task = Ruler::new(&model, &options).unwrap();
    let (found, summary) = run(&model, &task);
    assert_eq!(found.len(), 2 * 2 * 3);
    assert!(found.iter().all(|one| one.metric == "substring-all"));
    let groups: Vec<_> = summary.plans[0]
        .groups
        .iter()
        .map(|group| (group.length, group.n))
        .collect();
    assert_eq!(groups, [(1200, 2), (1500, 2)]);
    let sets: Vec<_> = summary.plans[0]
        .sets
        .iter()
        .map(|set| (set.name.as_str(), set.tasks))
        .collect();
    assert_eq!(sets, [("retrieval", 2), ("13 tasks", 2)]);
}
