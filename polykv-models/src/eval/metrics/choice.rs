//! Scores of answers that are a class or a number, as LongBench's scorer computes them.

use regex::Regex;
use std::sync::LazyLock;

/// Decimal digits of any script, as in Python.
static NUMBER: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\d+").ok());

/// One over the number of classes that the prediction names, or 0 if the true class is not among them. Classes whose
/// name is part of the true class's name do not count; of two such in a row only the first is left out, which is what
/// LongBench's scorer does.
#[must_use]
pub fn classification(prediction: &str, truth: &str, classes: &[String]) -> f64 {
    let named = classes.iter().map(String::as_str);
    let mut named: Vec<&str> = named.filter(|name| prediction.contains(name)).collect();
    let mut at = 0;
    while let Some(&name) = named.get(at) {
        if truth.contains(name)
            && name != truth
            && let Some(first) = named.iter().position(|other| *other == name)
        {
            named.remove(first);
        }
        at = at.saturating_add(1);
    }
    match named.contains(&truth) {
        true => 1.0 / named.len() as f64,
        false => 0.0,
    }
}

/// The share of the prediction's numbers that are the true one.
#[must_use]
pub fn count(prediction: &str, truth: &str) -> f64 {
    let numbers = numbers(prediction);
    let right = numbers.iter().filter(|number| **number == truth).count();
    right as f64 / numbers.len().max(1) as f64
}

/// [`count`] of the number in a truth of the form `Paragraph 7`; `None` if it has another form.
#[must_use]
pub fn retrieval(prediction: &str, truth: &str) -> Option<f64> {
    Some(count(prediction, number_after(truth, "Paragraph ")?))
}

/// [`count`] of the number in a truth of the form `段落7`; `None` if it has another form.
#[must_use]
pub fn retrieval_zh(prediction: &str, truth: &str) -> Option<f64> {
    Some(count(prediction, number_after(truth, "段落")?))
}

fn numbers(text: &str) -> Vec<&str> {
    let pattern = NUMBER.iter();
    pattern
        .flat_map(|pattern| pattern.find_iter(text))
        .map(|found| found.as_str())
        .collect()
}

/// The number that directly follows the first `word` that a number follows.
fn number_after<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    text.match_indices(word).find_map(|(at, word)| {
        let rest = text.get(at..)?.strip_prefix(word)?;
        let first = numbers(rest).into_iter().next()?;
        rest.starts_with(first).then_some(first)
    })
}
