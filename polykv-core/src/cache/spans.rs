//! Positions that the caller of a cache protects from eviction.

use crate::policy::Protect;
use std::ops::Range;
use std::sync::Arc;

/// Positions that stay in the cache whatever the policies say, as ranges; 0 is the first token of the sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans(Arc<[Range<usize>]>);

impl Spans {
    /// The positions of all these ranges, in any order. Overlapping ranges are joined.
    #[must_use]
    pub fn new(ranges: impl IntoIterator<Item = Range<usize>>) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().filter(|r| !r.is_empty()).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut joined: Vec<Range<usize>> = Vec::new();
        for range in ranges {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        Self(joined.into())
    }

    /// The first `tokens` positions.
    #[must_use]
    pub fn prefix(tokens: usize) -> Self {
        Self::new(std::iter::once(0..tokens))
    }

    /// The number of positions.
    pub fn count(&self) -> usize {
        let counts = self.0.iter().map(Range::len);
        counts.fold(0, usize::saturating_add)
    }

    /// The ranges, in ascending order and apart.
    pub(super) fn ranges(&self) -> &[Range<usize>] {
        &self.0
    }

    /// Whether a position is among them.
    pub fn contains(&self, position: usize) -> bool {
        self.0.iter().any(|span| span.contains(&position))
    }

    /// How many entries these positions and what a policy protects are together, in a sequence so long that the latest
    /// positions which the policy protects lie behind the spans.
    pub fn count_with(&self, protect: Protect) -> usize {
        self.count_from(0, protect)
    }

    /// [`Spans::count_with`], where positions below `first` do not count: they have left a layer's window.
    pub(crate) fn count_from(&self, first: usize, protect: Protect) -> usize {
        let behind = |position: usize| position.max(protect.sinks).max(first);
        let spans = self.0.iter();
        let more = spans
            .map(|span| behind(span.end).saturating_sub(behind(span.start)))
            .fold(0, usize::saturating_add);
        let sinks = protect.sinks.saturating_sub(first);
        sinks.saturating_add(protect.recent).saturating_add(more)
    }

    /// What a policy protects and the spans, where a span that begins within the sinks extends them.
    pub(super) fn join(&self, protect: Protect) -> (Protect, &[Range<usize>]) {
        match self.0.split_first() {
            Some((first, rest)) if first.start <= protect.sinks => {
                let sinks = protect.sinks.max(first.end);
                (Protect { sinks, ..protect }, rest)
            }
            _ => (protect, &self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTECT: Protect = Protect {
        sinks: 4,
        recent: 8,
    };

    #[test]
    fn ranges_are_sorted_and_joined() {
        let spans = Spans::new([20..25, 0..0, 0..6, 5..9, 24..30]);
        assert_eq!(*spans.0, [0..9, 20..30]);
        assert_eq!(spans.count(), 19);
        assert_eq!((0..40).filter(|&at| spans.contains(at)).count(), 19);
        assert!(spans.contains(8) && !spans.contains(9));
        assert_eq!(spans.count_with(PROTECT), 5 + 10 + 12);
        assert_eq!(Spans::default().count_with(PROTECT), 12);
        let inside = Spans::new([1..2, 2..3]);
        assert_eq!(inside.count_with(PROTECT), 12);
    }

    #[test]
    fn a_span_at_the_start_extends_the_sinks() {
        let joined = |first: Range<usize>| {
            let spans = Spans::new([first, 20..30]);
            let (protect, rest) = spans.join(PROTECT);
            assert_eq!(protect.recent, PROTECT.recent);
            assert_eq!(rest.last(), Some(&(20..30)));
            (protect.sinks, rest.len())
        };
        assert_eq!(joined(0..9), (9, 1));
        assert_eq!(joined(6..9), (4, 2));
        assert_eq!(joined(1..3), (4, 1));
    }
}
