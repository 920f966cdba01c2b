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
    let width = other.len() + 1;
    let mut table = vec![0u32; (words.len() + 1) * width];
    for i in 1..=words.len() {
        for j in 1..=other.len() {
            table[i * width + j] = match words[i - 1] == other[j - 1] {
                true => table[(i - 1) * width + j - 1] + 1,
                false => table[(i - 1) * width + j].max(table[i * width + j - 1]),
            };
        }
    }
    let mut found = Vec::new();
    let (mut i, mut j) = (words.len(), other.len());
    while i > 0 && j > 0 {
        if words[i - 1] == other[j - 1] {
            found.push(words[i - 1]);
            i -= 1;
            j -= 1;
        } else if table[(i - 1) * width + j] > table[i * width + j - 1] {
            i -= 1;
        } else {
            j -= 1;
        }
    }
    found
}
