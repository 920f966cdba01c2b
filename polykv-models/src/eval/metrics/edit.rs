//! Similarity of two lines of code, as `fuzzywuzzy` 0.18.0 computes it on top of Python's `difflib`.

use std::collections::HashMap;

/// From this length on, characters that make up more than a hundredth of the second text do not start a match.
const POPULAR_FROM: usize = 200;

/// Similarity of two pieces of code, from 0 to 1 in steps of 0.01: the [`ratio`] of the truth and the first line of the
/// prediction that has neither a backquote nor a comment sign (LongBench).
#[must_use]
pub fn code(prediction: &str, truth: &str) -> f64 {
    let mut lines = prediction.trim_start_matches('\n').split('\n');
    let line = lines.find(|line| !["`", "#", "//"].iter().any(|sign| line.contains(sign)));
    let percent = match line.unwrap_or_default() {
        line if line == truth => 100.0,
        line if line.is_empty() || truth.is_empty() => 0.0,
        line => (100.0 * ratio(line, truth)).round_ties_even(),
    };
    percent / 100.0
}

/// Twice the characters in common over the characters of both (Ratcliff and Obershelp): the longest common block, then
/// the same left and right of it. The order of the texts matters. 1 for two empty texts.
///
/// Where `python-Levenshtein` is installed, `fuzzywuzzy` takes its ratio instead, which is a little higher; LongBench's
/// requirements do not have it.
pub fn ratio(a: &str, b: &str) -> f64 {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.is_empty() && b.is_empty() {
        return 1.0;
    }
    let blocks = Blocks::new(&a, &b);
    let mut common = 0;
    let mut spans = vec![(0, a.len(), 0, b.len())];
    while let Some((a_from, a_to, b_from, b_to)) = spans.pop() {
        let (i, j, size) = blocks.longest(a_from, a_to, b_from, b_to);
        if size == 0 {
            continue;
        }
        common += size;
        if a_from < i && b_from < j {
            spans.push((a_from, i, b_from, j));
        }
        if i + size < a_to && j + size < b_to {
            spans.push((i + size, a_to, j + size, b_to));
        }
    }
    2.0 * common as f64 / (a.len() + b.len()) as f64
}

struct Blocks<'a> {
    a: &'a [char],
    b: &'a [char],
    /// Where each character of `b` is, the popular ones left out.
    places: HashMap<char, Vec<usize>>,
}

impl<'a> Blocks<'a> {
    fn new(a: &'a [char], b: &'a [char]) -> Self {
        let mut places: HashMap<char, Vec<usize>> = HashMap::new();
        for (j, &c) in b.iter().enumerate() {
            places.entry(c).or_default().push(j);
        }
        if b.len() >= POPULAR_FROM {
            let most = b.len() / 100 + 1;
            places.retain(|_, found| found.len() <= most);
        }
        Self { a, b, places }
    }

    /// The longest common block inside two spans: where it starts in both, and its length. Of equal ones the one that
    /// starts first in `a`, then in `b`.
    fn longest(
        &self,
        a_from: usize,
        a_to: usize,
        b_from: usize,
        b_to: usize,
    ) -> (usize, usize, usize) {
        let (mut first_a, mut first_b, mut size) = (a_from, b_from, 0);
        // Lengths of the blocks that end at the character of `a` before, by their end in `b`.
        let mut ending: HashMap<usize, usize> = HashMap::new();
        for i in a_from..a_to {
            let mut next = HashMap::new();
            let places = self.places.get(&self.a[i]).map_or(&[][..], Vec::as_slice);
            let inside =
                places.partition_point(|j| *j < b_from)..places.partition_point(|j| *j < b_to);
            for &j in places.get(inside).unwrap_or_default() {
                let before = j.checked_sub(1).and_then(|j| ending.get(&j));
                let length = before.copied().unwrap_or(0) + 1;
                next.insert(j, length);
                if length > size {
                    (first_a, first_b, size) = (i + 1 - length, j + 1 - length, length);
                }
            }
            ending = next;
        }
        // Popular characters may still lengthen a block.
        while first_a > a_from && first_b > b_from && self.a[first_a - 1] == self.b[first_b - 1] {
            (first_a, first_b, size) = (first_a - 1, first_b - 1, size + 1);
        }
        while first_a + size < a_to
            && first_b + size < b_to
            && self.a[first_a + size] == self.b[first_b + size]
        {
            size += 1;
        }
        (first_a, first_b, size)
    }
}
