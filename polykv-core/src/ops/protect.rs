//! Positions that no eviction may touch.

use burn::tensor::{Bool, Int, Tensor};
use std::ops::Range;

/// The ends of a sequence that are never evicted, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protect {
    /// The first positions of the sequence (attention sinks).
    pub sinks: usize,
    /// The latest positions.
    pub recent: usize,
}

impl Protect {
    /// How many entries are protected in a sequence that is long enough for both ends.
    pub fn count(&self) -> usize {
        self.sinks.saturating_add(self.recent)
    }
}

/// The positions that no eviction may touch in a sequence of `seen` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protected<'a> {
    /// The ends of the sequence.
    pub protect: Protect,
    /// Ranges of positions beside those.
    pub spans: &'a [Range<usize>],
    /// How many tokens the sequence has: the latest position is `seen - 1`.
    pub seen: usize,
}

impl Protected<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.protect.count() == 0 && self.spans.is_empty()
    }

    fn first_recent(&self) -> i64 {
        self.seen.saturating_sub(self.protect.recent) as i64
    }

    /// In the form in which kernels take it.
    pub(super) fn guard(&self) -> Guard {
        // Positions are below 2³¹, whatever a policy protects.
        let position = |at: usize| i32::try_from(at).unwrap_or(i32::MAX);
        let spans = self.spans.iter();
        Guard {
            sinks: position(self.protect.sinks),
            recent: position(self.seen.saturating_sub(self.protect.recent)),
            spans: spans
                .map(|span| position(span.start)..position(span.end))
                .collect(),
        }
    }

    /// True where an entry is protected: `positions [batch, kv_heads, n]` → `[batch, kv_heads, n]`.
    pub fn mask(&self, positions: Tensor<3, Int>) -> Tensor<3, Bool> {
        let below = |end: usize| positions.clone().lower_elem(end.min(self.seen) as i64);
        let from = |start: i64| positions.clone().greater_equal_elem(start);
        let mut mask = from(self.first_recent());
        if self.protect.sinks > 0 {
            mask = mask.bool_or(below(self.protect.sinks));
        }
        for span in self.spans {
            mask = mask.bool_or(from(span.start as i64).bool_and(below(span.end)));
        }
        mask
    }
}

/// [`Protected`] as kernels take it.
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
    /// Without any protected position.
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
