//! Free numbers in ranges.

use std::ops::Range;

/// Free ranges of the numbers below a bound, in order and apart.
#[derive(Debug, Default)]
pub struct Free {
    ranges: Vec<Range<usize>>,
    /// All numbers, taken or free, are below it.
    pub bound: usize,
}

impl Free {
    /// Takes the smallest free range of at least this length, of which what is left stays free; the first of several.
    pub fn take(&mut self, length: usize) -> Option<Range<usize>> {
        let long = self.ranges.iter_mut().filter(|own| own.len() >= length);
        let own = long.min_by_key(|own| own.len())?;
        let taken = own.start..own.start.saturating_add(length);
        own.start = taken.end;
        self.ranges.retain(|own| !own.is_empty());
        Some(taken)
    }

    /// How much the bound must rise for a range of this length to be free.
    pub fn missing(&self, length: usize) -> usize {
        match self.ranges.iter().any(|own| own.len() >= length) {
            true => 0,
            false => {
                let last = self.ranges.last().filter(|own| own.end == self.bound);
                length.saturating_sub(last.map_or(0, Range::len))
            }
        }
    }

    /// Raises the bound.
    pub fn grow(&mut self, more: usize) {
        let old = self.bound;
        self.bound = old.saturating_add(more);
        self.give(old..self.bound);
    }

    /// Gives a range back.
    pub fn give(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let at = self.ranges.partition_point(|own| own.start < range.start);
        self.ranges.insert(at, range);
        self.ranges.dedup_by(|next, own| {
            let touches = own.end == next.start;
            if touches {
                own.end = next.end;
            }
            touches
        });
    }

    /// How many numbers are free.
    pub fn count(&self) -> usize {
        let lengths = self.ranges.iter().map(Range::len);
        lengths.fold(0, usize::saturating_add)
    }

    /// The length of the longest range.
    pub fn longest(&self) -> usize {
        self.ranges.iter().map(Range::len).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_that_are_taken_are_apart_and_come_back(
            lengths in proptest::collection::vec((1usize..50, any::<bool>()), 1..60)
        ) {
            let mut free = Free::default();
            let mut taken: Vec<Range<usize>> = Vec::new();
            for (length, gives) in lengths {
                if gives && !taken.is_empty() {
                    free.give(taken.swap_remove(length % taken.len()));
                } else {
                    let missing = free.missing(length);
                    free.grow(missing);
                    let range = free.take(length).unwrap();
                    prop_assert_eq!(range.len(), length);
                    prop_assert!(range.end <= free.bound);
                    let apart = |other: &Range<usize>| other.end <= range.start || range.end <= other.start;
                    prop_assert!(taken.iter().all(apart));
                    taken.push(range);
                }
                let held: usize = taken.iter().map(Range::len).sum();
                prop_assert_eq!(free.count() + held, free.bound);
                prop_assert!(free.longest() <= free.count());
                prop_assert_eq!(free.missing(free.longest()), 0);
            }
            taken.into_iter().for_each(|range| free.give(range));
            // One range again.
            prop_assert_eq!(free.missing(free.bound), 0);
        }
    }
}
