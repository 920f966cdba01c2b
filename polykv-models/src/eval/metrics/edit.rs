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
    let mut common = 0_usize;
    let mut spans = vec![(0, a.len(), 0, b.len())];
    while let Some((a_from, a_to, b_from, b_to)) = spans.pop() {
        let (i, j, size) = blocks.longest(a_from, a_to, b_from, b_to);
        if size == 0 {
            continue;
        }
        common = common.saturating_add(size);
        if a_from < i && b_from < j {
            spans.push((a_from, i, b_from, j));
        }
        let (i, j) = (i.saturating_add(size), j.saturating_add(size));
        if i < a_to && j < b_to {
            spans.push((i, a_to, j, b_to));
        }
    }
    2.0 * common as f64 / (a.len() as f64 + b.len() as f64)
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
            let most = (b.len() / 100).saturating_add(1);
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
        let (mut first_a, mut first_b, mut size) = (a_from, b_from, 0_usize);
        // Lengths of the blocks that end at the character of `a` before, by their end in `b`.
        let mut ending: HashMap<usize, usize> = HashMap::new();
        for (i, c) in self.a.iter().enumerate().take(a_to).skip(a_from) {
            let mut next = HashMap::new();
            let places = self.places.get(c).map_or(&[][..], Vec::as_slice);
            let inside =
                places.partition_point(|j| *j < b_from)..places.partition_point(|j| *j < b_to);
            for &j in places.get(inside).unwrap_or_default() {
                let before = j.checked_sub(1).and_then(|j| ending.get(&j));
                let length = before.copied().unwrap_or(0).saturating_add(1);
                next.insert(j, length);
                if length > size {
                    let start = |end: usize| end.saturating_add(1).saturating_sub(length);
                    (first_a, first_b, size) = (start(i), start(j), length);
                }
            }
            ending = next;
        }
        // Popular characters may still lengthen a block.
        let same = |i: usize, j: usize| self.a.get(i) == self.b.get(j);
        let before = |at: usize, from: usize| at.checked_sub(1).filter(|at| *at >= from);
        while let (Some(i), Some(j)) = (before(first_a, a_from), before(first_b, b_from))
            && same(i, j)
        {
            (first_a, first_b, size) = (i, j, size.saturating_add(1));
        }
        let behind = |first: usize, size: usize, to: usize| {
            Some(first.saturating_add(size)).filter(|at| *at < to)
        };
        while let (Some(i), Some(j)) = (behind(first_a, size, a_to), behind(first_b, size, b_to))
            && same(i, j)
        {
            size = size.saturating_add(1);
        }
        (first_a, first_b, size)
    }
}
