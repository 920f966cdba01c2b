use polykv_core::calibrate::Data;
use std::ops::Range;

/// A prefix that is compressed, and a given continuation that is scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The kind of the example.
    pub data: Data,
    /// Token ids of the prefix.
    pub prompt: Vec<u32>,
    /// Token ids of the continuation, at least two.
    pub continuation: Vec<u32>,
    /// The scored tokens, as indices into the continuation. The first token is never scored: the prefix alone predicts
    /// it, before anything is evicted.
    pub scored: Range<usize>,
}

impl Example {
    /// The tokens of the continuation that are run: all but the last one, because no token after it is scored.
    pub fn run(&self) -> &[u32] {
        &self.continuation[..self.continuation.len() - 1]
    }

    /// The tokens of [`Example::run`] whose logits predict the scored tokens, as indices into the continuation.
    pub fn queries(&self) -> Range<usize> {
        self.scored.start - 1..self.scored.end - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_those_before_the_scored_tokens() {
        let example = Example {
            data: Data::Evidence,
            prompt: vec![1],
            continuation: vec![5, 6, 7, 8],
            scored: 2..4,
        };
        assert_eq!((example.run(), example.queries()), (&[5, 6, 7][..], 1..3));
    }
}
