//! The repetition of a prompt in the naive cache.

use super::Reference;
use crate::phase::Phase;
use crate::testing::inputs::{GROUP, Inputs, KV_HEADS, Token};

impl Reference {
    /// A part of the prompt's repetition: the tokens of `part` attend to all entries and to each other, and are gone afterwards.
    /// Returns their attention outputs, `[tokens][HEADS][DIM]`.
    pub fn repeat(&mut self, part: &Inputs) -> Vec<Token> {
        let mut copy = self.clone();
        let mut outputs = Vec::new();
        for i in 0..part.q.len() {
            let position = copy.queries.len();
            outputs.push(copy.step(&part.q[i], &part.k[i], &part.v[i]));
            for head in 0..KV_HEADS {
                let rows =
                    (0..GROUP).map(|g| copy.head(head, Phase::Prefill, 0).attention(g, position));
                for row in rows {
                    for (entry, p) in self.heads[head].iter_mut().zip(row) {
                        entry.repeated = entry.repeated.max(p);
                    }
                }
            }
        }
        outputs
    }
}
