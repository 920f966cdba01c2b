//! Rouge-L on the summary level, as the Python package `rouge` 1.0.1 computes it (Lin 2004).

use super::words::{segment, split};
use std::collections::HashSet;

/// ROUGE-L of two texts (Lin 2004), as LongBench's scorer computes it: the F-measure over words, from 0 to 1. Sentences
/// end at full stops. The common words are the union of the longest common subsequences of all pairs of sentences;
/// equal words count once, in the union and in each text. 0 if a text has no sentence.
///
/// The package fails where its recursion is deeper than Python allows, at sentences of about a thousand words, and
/// LongBench's scorer then gives 0; here such sentences are scored as all others.
#[must_use]
pub fn rouge_l(prediction: &str, truth: &str) -> f64 {
    let (prediction, truth) = (sentences(prediction), sentences(truth));
    if prediction.is_empty() || truth.is_empty() {
        return 0.0;
    }
    let different = |text: &[Vec<&str>]| {
        let words: HashSet<&str> = text.iter().flatten().copied().collect();
        words.len() as f64
    };
    let mut common: HashSet<&str> = HashSet::new();
    for sentence in &truth {
        for other in &prediction {
            common.extend(common_subsequence(sentence, other));
        }
    }
    let common = common.len() as f64;
    let (recall, precision) = (common / different(&truth), common / different(&prediction));
    2.0 * (precision * recall / (precision + recall + 1e-8))
}

/// [`rouge_l`] of the words that jieba finds in two Chinese texts.
#[must_use]
pub fn rouge_l_zh(prediction: &str, truth: &str) -> f64 {
    rouge_l(&segment(prediction).join(" "), &segment(truth).join(" "))
}

/// A sentence of white space alone is one empty word, as in the package.
fn sentences(text: &str) -> Vec<Vec<&str>> {
    text.split('.')
        .filter(|sentence| !sentence.is_empty())
        .map(|sentence| {
            let words: Vec<&str> = split(sentence).collect();
            match words.is_empty() {
                true => vec![""],
                false => words,
            }
        })
        .collect()
}

/// The words of that longest common subsequence which the package finds: from the end, preferring to drop words of
/// `other`.
fn common_subsequence<'a>(words: &[&'a str], other: &[&str]) -> Vec<&'a str> {
    // Lengths for the first so many words of both; a row for each word after the first row of zeros.
    let mut above = vec![0_u32; other.len().saturating_add(1)];
    let mut table = Vec::with_capacity(words.len().saturating_add(1));
    for word in words {
        let mut row = Vec::with_capacity(above.len());
        let mut left = 0_u32;
        row.push(left);
        for (second, (before, over)) in other.iter().zip(above.iter().zip(above.iter().skip(1))) {
            left = match word == second {
                true => before.saturating_add(1),
                false => left.max(*over),
            };
            row.push(left);
        }
        table.push(std::mem::replace(&mut above, row));
    }
    table.push(above);
    let length = |i: usize, j: usize| table.get(i).and_then(|row| row.get(j)).copied();
    let mut found = Vec::new();
    let (mut i, mut j) = (words.len(), other.len());
    while let (Some(up), Some(left)) = (i.checked_sub(1), j.checked_sub(1)) {
        match words.get(up).filter(|word| Some(*word) == other.get(left)) {
            Some(word) => {
                found.push(*word);
                (i, j) = (up, left);
            }
            None if length(up, j) > length(i, left) => i = up,
            None => j = left,
        }
    }
    found
}
