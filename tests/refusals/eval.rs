//! Evaluations that cannot be run.

use super::{check, rows};
use crate::cli_support::{path_str, polykv, tiny_model};
use serde_json::{Value, json};
use std::path::Path;

/// Arguments, what the error says, for a model that is not there: what is wrong is found without it. `@NAME` is a file or
/// folder of [`files`].
const WITHOUT_A_MODEL: &str = "
    --task ppl | --text | missing | ppl and fidelity
    --task fidelity | --text | missing
    --task ppl --text /nonexistent.txt | /nonexistent.txt | No such file
    --task needle --plan /nonexistent.yaml | /nonexistent.yaml | No such file
    --task needle --policy tova --budget 20,0 | budget.tokens is 0 | at least 1
    --task needle --policy tova,h2o --budget-ratio 0.5,0 | budget.ratio is 0 | above 0
    --task needle --policy tova --budget-ratio 1.5 | budget.ratio is 1.5 | at most 1
    --task needle --policy tova --budget-mb 1,-2 | budget in MB is -2 | above 0
    --task longbench | --data | missing | LongBench's folder
    --task longbench --data /nonexistent | /nonexistent/config/dataset2prompt.json | missing | THUDM/LongBench
    --task longbench --data @no-config | no-config/config/dataset2prompt.json: file is missing | LongBench/config
    --task longbench --data @no-limits | no-limits/config/dataset2maxlen.json: file is missing | LongBench/config
    --task longbench --data @broken-config | dataset2prompt.json: content is not one | a JSON object by task
    --task longbench --data @no-data | no-data: files is none of the tasks' files | hotpotqa.jsonl | data.zip
    --task longbench --data @bad-template | dataset2prompt.json: hotpotqa is a template with {answer} | {context}
    --task longbench --data @bad-limit | dataset2maxlen.json: hotpotqa is 0 | 1 to 1048576
    --task longbench --data @broken-line | hotpotqa.jsonl:2: line is not one | a JSON object
    --task longbench --data @broken-line --limit 1 | hotpotqa.jsonl:2: line is not one
    --task longbench --data @no-answer | hotpotqa.jsonl:2: answers is missing beside context, input | a list of texts
    --task longbench --data @longbench --only hotpot | task is 'hotpot' | hotpotqa
    --task longbench --data @longbench --only qasper | no qasper.jsonl | data.zip
    --task longbench --data @longbench --limit 0 | limit is 0 | at least 1
    --task prompts | --data | missing
    --task prompts --data @a.jsonl | --map | missing | prompt=F,answers=G
    --task prompts --data @a.jsonl --map prompt=p,answers=a | --metric | missing | name of a metric
    --task prompts --data @none.jsonl --map prompt=p,answers=a --metric f1 | none.jsonl | No such file
    --task prompts --data @no-config/config --map prompt=p,answers=a --metric f1 | No such file
    --task prompts --data @empty --map prompt=p,answers=a --metric f1 | empty: files is none | *.jsonl
    --task prompts --data @broken.jsonl --map prompt=p,answers=a --metric f1 | broken.jsonl:2: line is not one | JSON object
    --task prompts --data @a.jsonl --map prompt=q,answers=a --metric f1 | a.jsonl:1: q is missing beside a, p | a text
    --task prompts --data @a.jsonl --map prompt=p,answers=a --metric classification | map: classes is missing
    --task prompts --data @a.jsonl --map prompt=p,answers=a --metric longbench | a.jsonl:1: task is 'a' | 21 tasks
    --task prompts --data @a.jsonl --map prompt=p,answers=a --metric f1 --question-after | a.jsonl:1: question is missing
    --task prompts --data @a.jsonl --map prompt=p,answers=a --metric f1 --only b | task is 'b' | a task of the files
    --task prompts --data @a.jsonl --map prompt=p,answers=a --metric f1 --limit 0 | limit is 0 | at least 1
    --task prompts --data @a.jsonl --map prompt=p,answers=a --metric f1 --max-new-tokens 0 | new tokens is 0 | at least 1
    --task ruler --only vtx | task is 'vtx' | niah_single_1
    --task ruler --limit 0 | limit is 0 | at least 1
    --task ruler --template @empty --haystack @words.txt | empty: constants.py is missing | NVIDIA/RULER
    --task ruler --template @old-ruler --haystack @words.txt | constants.py: content is without niah
    --task ruler --template @ruler --haystack @words.txt | niah.py: file is missing | scripts/data/synthetic
";

/// Arguments, what the error says.
const REFUSED: &str = "
    --task ppl --text @short.txt --length 100 | text is | at least 228
    --task ppl --text @short.txt --length 400 | 400 and 128 tokens | at most 512
    --task ppl --text @short.txt --length 0 | length is 0
    --task ppl --text @short.txt --length 10 --continuation 0 | continuation is 0 | at least 1
    --task ppl --text @short.txt --length 2 --continuation 1 | continuation is 1 | at least 2
    --task needle --length 100000 | 100000 | at most 512
    --task needle --length 20 | length is 20 | needle and question
    --task needle --length 400 --limit 0 | limit is 0 | at least 1
    --task needle --length 400 --limit 18446744073709551615 | limit is 18446744073709551615 | at most 100000
    --task needle --length 400 --depth 1.5 | depth is 1.5 | 0 to 1
    --task needle --length 400 --depth -0.1 | depth is -0.1 | 0 to 1
    --task needle --length 400 --depth nan | depth is NaN | 0 to 1
    --task needle --length 400 --policy snapkv --budget 8 | snapkv | budget of layer 0 is 8 | at least 32
    --task needle --length 400 --policy tova --budget 600 | budget.tokens is 600 | at most 512
    --task longbench --data @longbench --max-length 1 | max-length is 1 | 2 to 506 | context of 512
    --task longbench --data @longbench --max-length 507 | max-length is 507 | 2 to 506
    --task longbench --data @longbench --max-length 8 --question-after | hotpotqa.jsonl:1: question | what 4 tokens hold
    --task prompts --data @a.jsonl --map prompt=p,answers=a --metric f1 --max-length 500 | max-length is 500 | 2 to 384
    --task prompts --data @a.jsonl --map prompt=p,answers=a --metric f1 --max-new-tokens 600 | a.jsonl:1: room
    --task ruler --length 513 | length is 513 | at most 512
    --task ruler --length 100 --only vt | evaluation of vt: length is 100 | the shortest prompt
";

const USAGE: &str = "
    --task pl | --task | ppl
    --task needle --policy tova | tova needs --budget
    --task needle --policy tvoa --budget 9 | tvoa | tova
    --task needle --policy tova --budget 9 --budget-ratio 0.5 | --budget
    --task needle --length x | --length
    --text a.txt | --task
    --task needle --text @short.txt | --text | ppl and fidelity
    --task needle --continuation 9 | --continuation | ppl and fidelity
    --task ppl --text @short.txt --depth 0.5 | --depth | needle
    --task ppl --text @short.txt --answer-prefix | --answer-prefix | needle
    --task fidelity --text @short.txt --no-answer-prefix | --answer-prefix | needle
    --task ppl --text @short.txt --question-after | --question-after | needle
    --task fidelity --text @short.txt --raw | --raw | needle
    --task fidelity --text @short.txt --decode | --decode | ppl and needle
    --task ppl --text @short.txt --generated | --generated | fidelity
    --task needle --policy full --budget 9 | full | tova
    --task needle --policy tova --budget 9 --allow-full-extra | --plan
    --task needle --shard 2/2 | 2/2 | 0 to N-1
    --task needle --shard 1 | 1 | I/N
    --task needle --policy tova --budget 9,x | 'x' | --budget
    --task needle --policy tova --budget 9 --phase prefill,never | never
    --task needle --policy tova --budget -9 | -9 | --budget
    --task needle --phase prefill | --policy
    --task longbench --data a --metric f1 | --metric | prompts
    --task longbench --data a --length 9 | --length | needle
    --task ruler --data a | --data | longbench and prompts
    --task needle --max-length 9 | --max-length | longbench and prompts
    --task ppl --text a --only b | --only | longbench and ruler and prompts
    --task ruler --template a | --haystack
    --task ruler --haystack a | --template
    --task prompts --data a --map prompt=p | prompt= or answers=
    --task prompts --data a --map prompt=p,answers=a,quest=b | 'quest' is none of
    --task prompts --data a --map prompt=p,answers=a --metric f2 | f2 | rouge-l
";

/// Files of the made-up benchmarks, good ones and others that lack something.
fn files(dir: &Path) {
    let write = |name: &str, content: &str| {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    let longbench = |name: &str, templates: Value, limits: Value, lines: &str| {
        write(
            &format!("{name}/config/dataset2prompt.json"),
            &templates.to_string(),
        );
        write(
            &format!("{name}/config/dataset2maxlen.json"),
            &limits.to_string(),
        );
        write(&format!("{name}/data/hotpotqa.jsonl"), lines);
    };
    let templates = json!({"hotpotqa": "Read.\n{context}\nAsk: {input}\nSay:"});
    let limits = json!({"hotpotqa": 6});
    let line = json!({"context": "The lamp is under the bridge.", "input": "Where is the lamp?", "answers": ["the bridge"]});
    let line = format!("{line}\n");
    longbench("longbench", templates.clone(), limits.clone(), &line);
    longbench(
        "broken-line",
        templates.clone(),
        limits.clone(),
        &format!("{line}{{\"context\": \"The"),
    );
    let no_answer = json!({"context": "The lamp.", "input": "Where?"});
    longbench(
        "no-answer",
        templates.clone(),
        limits.clone(),
        &format!("{line}{no_answer}\n"),
    );
    let bad = json!({"hotpotqa": "{context} {answer}"});
    longbench("bad-template", bad, limits.clone(), &line);
    longbench(
        "bad-limit",
        templates.clone(),
        json!({"hotpotqa": 0}),
        &line,
    );
    for (name, missing) in [
        ("no-config", "config"),
        ("no-limits", "config/dataset2maxlen.json"),
        ("no-data", "data/hotpotqa.jsonl"),
    ] {
        longbench(name, templates.clone(), limits.clone(), &line);
        let path = dir.join(name).join(missing);
        match path.is_dir() {
            true => std::fs::remove_dir_all(path).unwrap(),
            false => std::fs::remove_file(path).unwrap(),
        }
    }
    longbench("broken-config", templates, limits, &line);
    write(
        "broken-config/config/dataset2prompt.json",
        "{\"hotpotqa\": ",
    );
    std::fs::create_dir(dir.join("empty")).unwrap();
    write("a.jsonl", "{\"p\": \"A lamp.\", \"a\": \"lamp\"}\n");
    write(
        "broken.jsonl",
        "{\"p\": \"A lamp.\", \"a\": \"lamp\"}\n{\"p\": nothing}\n",
    );
    write("short.txt", "Only a few words.");
    write("words.txt", "Ferns unroll. Rain falls.");
    let names = [
        "niah",
        "variable_tracking",
        "common_words_extraction",
        "freq_words_extraction",
        "qa",
    ];
    let entries: String = names
        .iter()
        .map(|name| {
            format!("'{name}': {{'tokens_to_generate': 9, 'template': '{{context}}', 'answer_prefix': ''}},\n")
        })
        .collect();
    write("ruler/scripts/data/synthetic/constants.py", &entries);
    write("old-ruler/constants.py", "TEMPLATES = {}\n");
    write("old-ruler/niah.py", "");
}

fn eval(model: &Path, args: &str, code: i32, parts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path());
    let out = dir.path().join("out");
    let start = ["eval", "--device", "cpu", "-m", path_str(model), "--out"];
    let mut all: Vec<String> = start.map(String::from).to_vec();
    all.push(path_str(&out).into());
    all.extend(args.split(' ').map(|arg| match arg.strip_prefix('@') {
        Some(name) => path_str(&dir.path().join(name)).into(),
        None => arg.into(),
    }));
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    check(args, code, parts, &polykv(&all));
    assert!(!out.exists(), "{args}: something was written");
}

#[test]
fn content() {
    for row in rows(REFUSED) {
        eval(&tiny_model(), row[0], 3, &row[1..]);
    }
}

#[test]
fn content_is_checked_before_the_model_is_loaded() {
    for row in rows(WITHOUT_A_MODEL) {
        eval(Path::new("/nonexistent"), row[0], 3, &row[1..]);
    }
}

/// Each file that is read is a regular one: others are refused at once, not waited for or read without end.
#[cfg(unix)]
#[test]
fn data_that_never_end_or_never_begin() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path());
    let longbench = "--task longbench --data @longbench";
    let prompts = "--task prompts --map prompt=p,answers=a --metric f1 --data @a.jsonl";
    for (file, args) in [
        ("longbench/config/dataset2prompt.json", longbench),
        ("longbench/config/dataset2maxlen.json", longbench),
        ("a.jsonl", prompts),
        ("short.txt", "--task ppl --text @short.txt"),
    ] {
        let path = dir.path().join(file);
        let whole = std::fs::read(&path).unwrap();
        for kind in ["a device", "a FIFO"] {
            std::fs::remove_file(&path).unwrap();
            match kind {
                "a device" => std::os::unix::fs::symlink("/dev/zero", &path).unwrap(),
                _ => {
                    let made = std::process::Command::new("mkfifo").arg(&path).status();
                    assert!(made.unwrap().success());
                }
            }
            let start = ["eval", "--device", "cpu", "-m", "/nonexistent"];
            let mut all: Vec<String> = start.map(String::from).to_vec();
            all.extend(args.split(' ').map(|arg| match arg.strip_prefix('@') {
                Some(name) => path_str(&dir.path().join(name)).into(),
                None => arg.into(),
            }));
            check(file, 3, &[file, kind, "a regular file"], &polykv(&all));
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, whole).unwrap();
    }
}

#[test]
fn usage() {
    for row in rows(USAGE) {
        eval(&tiny_model(), row[0], 2, &row[1..]);
    }
    let model = tiny_model();
    let shard = [
        "eval",
        "-m",
        path_str(&model),
        "--task",
        "needle",
        "--shard",
        "0/2",
    ];
    check("a shard without a folder", 2, &["--out"], &polykv(&shard));
    check(
        "no shards",
        2,
        &["DIR"],
        &polykv(&["eval", "merge", "--out", "a"]),
    );
    check("no folder", 2, &["--out"], &polykv(&["eval", "merge", "a"]));
}

#[test]
fn a_file_in_place_of_the_output() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("out");
    std::fs::write(&file, "mine").unwrap();
    let out = ["--out", path_str(&file)];
    let model = ["-m", "/nonexistent"];
    let commands: [&[&str]; 3] = [
        &["eval", "--task", "needle"],
        &["calibrate", "--objective", "evidence", "--budget", "40"],
        &["eval", "merge", "/nonexistent"],
    ];
    for command in commands {
        let model = if command.contains(&"merge") {
            &model[..0]
        } else {
            &model
        };
        let answer = polykv(&[command, model, &out].concat());
        let parts = ["out: output is a file", "allowed: a folder"];
        check(&command.join(" "), 3, &parts, &answer);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    }
}

/// What is no part of a run; shards that are not of one run are in the tests of runs.
#[test]
fn folders_that_cannot_be_merged() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| path_str(&dir.path().join(name)).to_string();
    let out = path("out");
    for (content, parts) in [
        (None, ["run.json is missing", "polykv eval --out"]),
        (
            Some("{"),
            ["run.json: content is no record of a run", "polykv eval"],
        ),
        (
            Some("{\"task\": \"ppl\"}"),
            ["run.json: content is no record of a run", "polykv"],
        ),
    ] {
        std::fs::create_dir_all(path("shard")).unwrap();
        if let Some(content) = content {
            std::fs::write(path("shard/run.json"), content).unwrap();
        }
        let shard = path("shard");
        let answer = polykv(&["eval", "merge", &shard, "--out", &out]);
        check(content.unwrap_or("empty"), 3, &parts, &answer);
        assert!(!Path::new(&out).exists());
    }
    let file = path("shard/run.json");
    let answer = polykv(&["eval", "merge", &file, "--out", &out]);
    check("a file", 3, &["shard/run.json", "Not a directory"], &answer);
}
