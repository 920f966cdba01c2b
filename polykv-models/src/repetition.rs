//! The parts in which a prompt is repeated behind itself, for policies that score entries by it.

use crate::causal_lm::CausalLm;
use crate::layers::RopeTable;
use burn::tensor::{Int, Tensor};
use std::ops::Range;

/// Tokens per part. A part sees the prompt and itself, so that the repetition takes one part's positions behind the prompt,
/// however long that is.
const PART: usize = 256;

/// Tokens at the end of a part with which the next one begins again: they tell the model where it is in the prompt.
const LEAD: usize = 8;

/// Hidden states with their positions.
pub(crate) type Chunk = (Tensor<3>, RopeTable);

/// The parts of the repetition of `ids [batch, tokens]`, rows of which begin at the positions `starts`, before the first layer.
pub(crate) fn parts(model: &dyn CausalLm, ids: &Tensor<2, Int>, starts: &[usize]) -> Vec<Chunk> {
    let tokens = ids.dims()[1];
    let behind: Vec<usize> = starts
        .iter()
        .map(|start| start.saturating_add(tokens))
        .collect();
    ranges(tokens)
        .map(|part| {
            let ids = ids.clone().narrow(1, part.start, part.len());
            (model.embed(ids), model.rope_of_rows(&behind, part.len()))
        })
        .collect()
}

fn ranges(tokens: usize) -> impl Iterator<Item = Range<usize>> {
    let starts = (0..tokens.saturating_sub(LEAD).max(1)).step_by(PART - LEAD);
    starts.map(move |start| start..tokens.min(start.saturating_add(PART)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_repeated_and_parts_overlap() {
        for tokens in [1, 2, 7, 8, 9, 255, 256, 257, 264, 265, 503, 504, 505, 5000] {
            let parts: Vec<_> = ranges(tokens).collect();
            assert_eq!((parts[0].start, parts[parts.len() - 1].end), (0, tokens));
            assert!(parts.iter().all(|part| (1..=PART).contains(&part.len())));
            let mut pairs = parts.windows(2);
            assert!(
                pairs.all(|pair| pair[0].end == pair[1].start + LEAD),
                "{parts:?}"
            );
        }
    }
}
