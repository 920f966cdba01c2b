//! Anyone's own prompts.

use crate::{model, refuse, run, write};
use polykv::models::LoadedModel;
use polykv::models::eval::{PromptFiles, PromptOptions, Prompts, PromptsOptions, Task};
use serde_json::json;
use std::path::Path;

fn own_prompts(
    model: &LoadedModel,
    path: &Path,
    options: &PromptsOptions,
) -> polykv::Result<Prompts> {
    Prompts::new(model, PromptFiles::read(path, options)?)
}

fn prompts(map: &str, metric: &str, change: impl FnOnce(&mut PromptsOptions)) -> PromptsOptions {
    let mut options = PromptsOptions {
        map: map.parse().unwrap(),
        scorer: metric.parse().unwrap(),
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
    let read = |options: &PromptsOptions| own_prompts(&model, &file, options).unwrap();
    let short = |own: &mut PromptsOptions| own.prompts.max_new_tokens = Some(4);
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
    let task = own_prompts(&model, other.path(), &rules).unwrap();
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
    let read = |options: PromptsOptions| own_prompts(&model, &file, &options);
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
        read(prompts(map, "f1", |own| {
            own.prompts.max_new_tokens = Some(0)
        })),
        &["new tokens is 0"],
    );
    refuse(
        read(prompts(map, "f1", |own| {
            own.prompts.max_new_tokens = Some(511)
        })),
        &["a.jsonl:1: room is"],
    );
    let empty = tempfile::tempdir().unwrap();
    refuse(
        own_prompts(&model, empty.path(), &prompts(map, "f1", |_| {})),
        &["files is none", "*.jsonl"],
    );
    let missing = empty.path().join("none.jsonl");
    refuse(
        own_prompts(&model, &missing, &prompts(map, "f1", |_| {})),
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
