//! The rules that LongBench has for its tasks.

use crate::eval::metrics::Metric;
use crate::eval::question::Rule;

/// Name, metric, new tokens, group.
const TASKS: [(&str, Metric, usize, &str); 21] = [
    ("narrativeqa", Metric::F1, 128, SINGLE),
    ("qasper", Metric::F1, 128, SINGLE),
    ("multifieldqa_en", Metric::F1, 64, SINGLE),
    ("multifieldqa_zh", Metric::F1Zh, 64, SINGLE),
    ("hotpotqa", Metric::F1, 32, MULTI),
    ("2wikimqa", Metric::F1, 32, MULTI),
    ("musique", Metric::F1, 32, MULTI),
    ("dureader", Metric::RougeLZh, 128, MULTI),
    ("gov_report", Metric::RougeL, 512, SUMMARY),
    ("qmsum", Metric::RougeL, 512, SUMMARY),
    ("multi_news", Metric::RougeL, 512, SUMMARY),
    ("vcsum", Metric::RougeLZh, 512, SUMMARY),
    ("trec", Metric::Classification, 64, FEW_SHOT),
    ("triviaqa", Metric::F1, 32, FEW_SHOT),
    ("samsum", Metric::RougeL, 128, FEW_SHOT),
    ("lsht", Metric::Classification, 64, FEW_SHOT),
    ("passage_count", Metric::Count, 32, SYNTHETIC),
    ("passage_retrieval_en", Metric::Retrieval, 32, SYNTHETIC),
    ("passage_retrieval_zh", Metric::RetrievalZh, 32, SYNTHETIC),
    ("lcc", Metric::Edit, 64, CODE),
    ("repobench-p", Metric::Edit, 64, CODE),
];

const SINGLE: &str = "single-document QA";
const MULTI: &str = "multi-document QA";
const SUMMARY: &str = "summarization";
const FEW_SHOT: &str = "few-shot learning";
const SYNTHETIC: &str = "synthetic";
const CODE: &str = "code";

const CHINESE: [&str; 5] = [
    "multifieldqa_zh",
    "dureader",
    "vcsum",
    "lsht",
    "passage_retrieval_zh",
];

/// In LongBench's order.
pub fn names() -> impl Iterator<Item = &'static str> {
    TASKS.iter().map(|(name, ..)| *name)
}

pub fn rule_of(task: &str) -> Option<Metric> {
    let found = TASKS.iter().find(|(name, ..)| *name == task);
    found.map(|(_, metric, ..)| *metric)
}

/// The generation limit that LongBench's dataset2maxlen.json gives a task.
pub fn new_tokens(task: &str) -> Option<usize> {
    let found = TASKS.iter().find(|(name, ..)| *name == task);
    found.map(|(_, _, tokens, _)| *tokens)
}

/// Few-shot and code prompts are continued, not answered in a chat.
pub fn uses_chat(task: &str) -> bool {
    let continued = ["trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"];
    !continued.contains(&task)
}

/// A task's rule with a generation limit; none for other names.
pub fn rule(task: &str, max_new_tokens: usize) -> Option<Rule> {
    rule_of(task).map(|metric| Rule {
        metric,
        max_new_tokens,
        first_line: ["trec", "triviaqa", "samsum", "lsht"].contains(&task),
        ends_at_newline: task == "samsum",
    })
}

/// The six groups, then the whole benchmark and its part without Chinese.
pub fn sets() -> Vec<(String, Vec<String>)> {
    let of = |group: &str| {
        let tasks = TASKS.iter().filter(|(.., other)| *other == group);
        tasks.map(|(name, ..)| name.to_string()).collect()
    };
    let groups = [SINGLE, MULTI, SUMMARY, FEW_SHOT, SYNTHETIC, CODE];
    let mut sets: Vec<(String, Vec<String>)> = groups
        .into_iter()
        .map(|group| (group.to_string(), of(group)))
        .collect();
    let english = names().filter(|name| !CHINESE.contains(name));
    sets.push(("21 tasks".into(), names().map(String::from).collect()));
    sets.push((
        "16 English and code tasks".into(),
        english.map(String::from).collect(),
    ));
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_have_the_published_sizes() {
        let sizes: Vec<(String, usize)> = sets()
            .into_iter()
            .map(|(name, tasks)| (name, tasks.len()))
            .collect();
        let sizes: Vec<(&str, usize)> = sizes.iter().map(|(n, size)| (n.as_str(), *size)).collect();
        assert_eq!(
            sizes,
            [
                (SINGLE, 4),
                (MULTI, 4),
                (SUMMARY, 4),
                (FEW_SHOT, 4),
                (SYNTHETIC, 3),
                (CODE, 2),
                ("21 tasks", 21),
                ("16 English and code tasks", 16)
            ]
        );
        assert_eq!(new_tokens("samsum"), Some(128));
        assert!(!uses_chat("samsum") && uses_chat("qmsum"));
        assert!(rule("samsum", 9).is_some_and(|rule| rule.ends_at_newline && rule.first_line));
        assert!(rule("hotpotqa_e", 9).is_none());
    }
}
