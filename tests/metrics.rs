//! The metrics against the Python packages that LongBench's scorer uses; see tests/fixtures/metrics.py.

use polykv::models::eval::metrics::{Metric, segment};
use serde_json::Value;

fn fixtures() -> Value {
    let text = include_str!("fixtures/metrics.json");
    serde_json::from_str(text).unwrap()
}

fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        other => serde_json::from_value(other.clone()).unwrap(),
    }
}

#[test]
fn scores_equal_those_of_the_python_packages() {
    let fixtures = fixtures();
    let classes = texts(&fixtures["classes"]);
    let mut seen = std::collections::BTreeSet::new();
    let mut wrong = Vec::new();
    for row in fixtures["rows"].as_array().unwrap() {
        let name = row[0].as_str().unwrap();
        let metric: Metric = name.parse().unwrap();
        let (prediction, truth) = (row[1].as_str().unwrap(), texts(&row[2]));
        let (found, wanted) = (
            metric.score(prediction, &truth, &classes),
            row[3].as_f64().unwrap(),
        );
        if (found - wanted).abs() > 1e-12 {
            wrong.push(format!(
                "{name}, {prediction:?}, {truth:?}: {found}, not {wanted}"
            ));
        }
        seen.insert(name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let all: std::collections::BTreeSet<_> = Metric::ALL.iter().map(|own| own.name()).collect();
    assert_eq!(seen, all, "every metric has fixtures");
}

#[test]
fn chinese_words_equal_those_of_the_python_package() {
    for row in fixtures()["words"].as_array().unwrap() {
        let (text, wanted) = (row[0].as_str().unwrap(), texts(&row[1]));
        assert_eq!(segment(text), wanted, "{text}");
    }
}

#[test]
fn the_best_reference_counts() {
    let references = ["gate", "old lamp"].map(String::from);
    assert_eq!(Metric::F1.score("the old lamp", &references, &[]), 1.0);
    assert_eq!(
        Metric::Substring.score("an old lamp", &references, &[]),
        1.0
    );
    assert_eq!(
        Metric::SubstringAll.score("an old lamp", &references, &[]),
        0.5
    );
    assert_eq!(Metric::F1.score("anything", &[], &[]), 0.0);
}

#[test]
fn references_without_their_form_are_refused() {
    let refuse = |metric: Metric, truth: &str, part: &str| {
        let classes = ["Food".to_string()];
        let error = metric.check("a.jsonl:3", &[truth.to_string()], &classes);
        let error = error.unwrap_err();
        assert!(error.is_refusal());
        let message = error.to_string();
        assert!(
            message.starts_with("a.jsonl:3: reference is '") && message.contains(part),
            "{message}"
        );
    };
    refuse(Metric::Retrieval, "paragraph 3", "'Paragraph' and a number");
    refuse(Metric::RetrievalZh, "Paragraph 3", "段落");
    refuse(Metric::Classification, "Fod", "classes");
    refuse(
        Metric::Edit,
        &"x = 1; ".repeat(10_000),
        "at most 16384 bytes",
    );
    assert!(
        Metric::Retrieval
            .check("x", &["Paragraph 3".into()], &[])
            .is_ok()
    );
    let message = "bleu".parse::<Metric>().unwrap_err();
    assert!(
        message.contains("'bleu'") && message.contains("rouge-l"),
        "{message}"
    );
}
