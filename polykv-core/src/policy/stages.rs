//! One score for policies that choose entries in several stages.

use burn::tensor::{Bool, Tensor};

/// Above every score, below what eviction gives to protected entries. Earlier stages stand higher: should protected
/// entries need the place of taken ones, the last stage gives way.
const TAKEN: f32 = 1e37;

/// The entries that the stages so far took, and the scores that they took them by.
#[derive(Debug, Default)]
pub(super) struct Stages {
    taken: Vec<Tensor<3, Bool>>,
    scores: Vec<Tensor<3>>,
}

impl Stages {
    /// True for the entries that any stage so far took, `[batch, kv_heads, entries]`.
    pub fn taken(&self) -> Option<Tensor<3, Bool>> {
        let taken = self.taken.iter().cloned();
        taken.reduce(|all, more| all.bool_or(more))
    }

    /// Adds a stage that took `taken` by `scores`.
    pub fn push(&mut self, taken: Tensor<3, Bool>, scores: Tensor<3>) {
        self.taken.push(taken);
        self.scores.push(scores);
    }

    /// One score for all stages; `rest` ranks what none of them took. A NaN of any stage stays one.
    pub fn finish(self, rest: Tensor<3>) -> Tensor<3> {
        let stages = self.taken.len();
        let mut all = rest;
        for (stage, taken) in self.taken.into_iter().enumerate() {
            all = all.mask_fill(taken, TAKEN * (stages - stage) as f32);
        }
        for scores in self.scores {
            all = all.mask_where(scores.clone().is_nan(), scores);
        }
        all
    }
}
