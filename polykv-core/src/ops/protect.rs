//! Positions that are protected from eviction.

use burn::tensor::{Bool, Int, Tensor};
use std::ops::Range;

/// How many tokens at both ends of a sequence are never evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protect {
    /// The number of first positions that stay, the attention sinks.
    pub sinks: usize,
    /// The number of latest positions that stay.
    pub recent: usize,
}

impl Protect {
    /// The number of protected entries in a sequence that is long enough for both ends.
    pub fn count(&self) -> usize {
        self.sinks.saturating_add(self.recent)
    }
}

/// The positions of a sequence that are protected from eviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protected<'a> {
    /// The protected ends of the sequence.
    pub protect: Protect,
    /// Protected ranges of positions beside the ends.
    pub spans: &'a [Range<usize>],
    /// The number of tokens of the sequence; the latest position is `seen - 1`.
    pub seen: usize,
    /// The first position that the next token sees, 0 without a window; those before it are not protected.
    pub oldest: usize,
}

impl Protected<'_> {
    /// No protected positions in a sequence of `seen` tokens.
    pub(crate) fn nothing(seen: usize) -> Self {
        Self {
            protect: Protect::default(),
            spans: &[],
            seen,
            oldest: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.protect.count() == 0 && self.spans.is_empty()
    }

    fn first_recent(&self) -> usize {
        let recent = self.seen.saturating_sub(self.protect.recent);
        recent.max(self.oldest)
    }

    /// Protected ranges of positions before the latest ones.
    fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        let spans = std::iter::once(0..self.protect.sinks).chain(self.spans.iter().cloned());
        spans
            .map(|span| span.start.max(self.oldest)..span.end)
            .filter(|span| !span.is_empty())
    }

    /// How many positions are protected at most.
    pub(super) fn count(&self) -> usize {
        let recent = self
            .protect
            .recent
            .min(self.seen - self.oldest.min(self.seen));
        let ranges = self.ranges().map(|range| range.len());
        ranges.fold(recent, usize::saturating_add)
    }

    /// The same positions in the form that kernels take.
    pub(super) fn guard(&self) -> Guard {
        // Positions are below 2³¹, whatever a policy protects.
        let position = |at: usize| i32::try_from(at).unwrap_or(i32::MAX);
        let mut ranges = self.ranges().peekable();
        let sinks = ranges.next_if(|first| first.start == 0);
        Guard {
            sinks: position(sinks.map_or(0, |sinks| sinks.end)),
            recent: position(self.first_recent()),
            spans: ranges
                .map(|span| position(span.start)..position(span.end))
                .collect(),
        }
    }

    /// A mask that is true where an entry is protected: `positions [batch, kv_heads, n]` → `[batch, kv_heads, n]`.
    pub fn mask(&self, positions: Tensor<3, Int>) -> Tensor<3, Bool> {
        let below = |end: usize| positions.clone().lower_elem(end.min(self.seen) as i64);
        let from = |start: usize| positions.clone().greater_equal_elem(start as i64);
        let mut mask = from(self.first_recent());
        for span in self.ranges() {
            mask = mask.bool_or(match span.start {
                0 => below(span.end),
                start => from(start).bool_and(below(span.end)),
            });
        }
        mask
    }
}

/// Protected positions in the form that kernels take, see [`Protected`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Positions below this one.
    pub sinks: i32,
    /// Positions from this one on.
    pub recent: i32,
    /// Ranges of positions beside those.
    pub spans: Vec<Range<i32>>,
}

impl Guard {
    /// No protected positions.
    pub fn none() -> Self {
        Self {
            sinks: 0,
            recent: i32::MAX,
            spans: Vec::new(),
        }
    }

    pub fn contains(&self, position: i64) -> bool {
        let in_span =
            |span: &Range<i32>| i64::from(span.start) <= position && position < i64::from(span.end);
        position < i64::from(self.sinks)
            || position >= i64::from(self.recent)
            || self.spans.iter().any(in_span)
    }
}
