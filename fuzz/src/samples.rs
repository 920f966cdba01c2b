//! Lines of JSON with prompts of anyone's own or of LongBench, LongBench's config files, and the scoring of answers.

use polykv_models::eval::metrics::Metric;
use polykv_models::eval::{
    FieldMap, LongBenchFiles, PromptFiles, PromptOptions, PromptsOptions, Scorer,
};

const MAPS: [&str; 3] = [
    "prompt=p,answers=a",
    "prompt=p,answers=a,question=q,prefix=r,task=t,classes=c",
    "prompt=context,answers=answers,question=input,classes=all_classes",
];
const TASKS: [&str; 6] = [
    "hotpotqa",
    "trec",
    "passage_count",
    "passage_retrieval_en",
    "passage_retrieval_zh",
    "lcc",
];
const TEMPLATE: &[u8] = br#"{"hotpotqa": "{context} {input}", "trec": "{context} {input}", "lcc": "{context}{input}",
    "passage_count": "{context}", "passage_retrieval_en": "{context} {input}", "passage_retrieval_zh": "{context} {input}"}"#;
const LIMITS: &[u8] =
    br#"{"hotpotqa": 32, "trec": 64, "lcc": 64, "passage_count": 32, "passage_retrieval_en": 32,
    "passage_retrieval_zh": 32}"#;

/// The first byte says what the rest is.
pub fn run(input: &[u8]) {
    let Some((&kind, rest)) = input.split_first() else {
        return;
    };
    let which = usize::from(kind / 4);
    match kind % 4 {
        0 => prompts(which, rest),
        1 => longbench(TASKS[which % TASKS.len()], rest, TEMPLATE, LIMITS),
        2 => {
            let [prompts, limits, lines] = super::pieces(rest);
            longbench("hotpotqa", lines, prompts, limits);
        }
        _ => score(Metric::ALL[which % Metric::ALL.len()], rest),
    }
}

fn prompts(which: usize, lines: &[u8]) {
    let map: FieldMap = MAPS[which % MAPS.len()].parse().expect("a map of ours");
    let scorer = match which / MAPS.len() {
        0 => Scorer::LongBench,
        other => Scorer::Metric(Metric::ALL[other % Metric::ALL.len()]),
    };
    let folder = super::Folder::new();
    let path = folder.write("lcc.jsonl", lines);
    let options = PromptsOptions {
        map,
        scorer,
        prompts: PromptOptions::default(),
    };
    if let Err(error) = PromptFiles::read(&path, &options) {
        super::refused(&error);
    }
}

fn longbench(task: &str, lines: &[u8], prompts: &[u8], limits: &[u8]) {
    let folder = super::Folder::new();
    folder.write(&format!("data/{task}.jsonl"), lines);
    folder.write("config/dataset2prompt.json", prompts);
    folder.write("config/dataset2maxlen.json", limits);
    if let Err(error) = LongBenchFiles::read(folder.path(), &PromptOptions::default()) {
        super::refused(&error);
    }
}

/// What some hundred tokens of an answer have, in bytes.
const MOST_ANSWER: usize = 2048;

/// The answer of a model to a reference of a stranger.
fn score(metric: Metric, input: &[u8]) {
    let [answer, reference] = super::pieces(input);
    let answer = &answer[..answer.len().min(MOST_ANSWER)];
    let [answer, reference] =
        [answer, reference].map(|text| String::from_utf8_lossy(text).into_owned());
    let references = [reference];
    if metric.check("line", &references, &references).is_ok() {
        let score = metric.score(&answer, &references, &references);
        let name = metric.name();
        assert!((0.0..=1.0).contains(&score), "{name} gives {score}");
    }
}
