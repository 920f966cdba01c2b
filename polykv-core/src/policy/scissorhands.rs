use super::{
    Appended, LayerView, MOST, NamedPolicy, Needs, Params, Policies, Policy, Protect, State,
    StepScores, check_range,
};
use crate::Result;
use crate::ops::{AttentionBlock, HitNote};
use crate::shape::LayerShape;
use burn::tensor::{Tensor, s};
use serde::{Deserialize, Serialize};

/// Keeps the entries that were attended to most often (Scissorhands, arXiv 2305.17118). The score of an entry is the number
/// of the last `history` queries that paid it at least the average of their attention over the entries, mean over the query
/// group. The latest `recent` entries always stay.
///
/// For each entry and query the policy stores how many query heads of the group did so. One f32 holds these counts for
/// ⌊24 / ⌈log₂(group + 1)⌉⌋ queries: with a history of 400 queries and a group of 4 that is 50 numbers per entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scissorhands {
    /// How many of the latest queries are counted.
    pub history: usize,
    /// How many of the latest entries always stay.
    pub recent: usize,
}

impl Default for Scissorhands {
    fn default() -> Self {
        Self {
            history: 400,
            recent: 10,
        }
    }
}

impl NamedPolicy for Scissorhands {
    const NAME: &'static str = "scissorhands";
    const SUMMARY: &'static str =
        "what got more than an even share of the attention most often, lately";
    const SOURCE: Option<&'static str> = Some("arXiv 2305.17118");
    const VARIANTS: &'static [&'static str] = &["{history: 9, recent: 3}", "{}"];

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        let policy: Self = params.read()?;
        check_range("history", policy.history, 1..=65536)?;
        check_range("recent", policy.recent, 0..=MOST)?;
        Ok(policy)
    }
}

/// How counts of a query group are packed: digits in the 24 bits that an f32 holds exactly.
#[derive(Clone, Copy)]
struct Packing {
    bits: usize,
    per_word: usize,
}

impl Packing {
    fn new(group: usize) -> Self {
        let bits = (usize::BITS - group.leading_zeros()) as usize;
        Self {
            bits,
            per_word: (24 / bits).max(1),
        }
    }

    /// The weight of a digit.
    fn power(&self, digit: usize) -> f32 {
        (self.bits as f32 * digit as f32).exp2()
    }
}

/// `state.counts`: the queries seen so far, those of the announced prompt that are not seen yet, and the first query
/// that was looked at.
const SEEN: usize = 0;
const TO_COME: usize = 1;
const FIRST: usize = 2;

impl Policy for Scissorhands {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        Params::of(self)
    }

    fn needs(&self) -> Needs {
        Needs {
            attention: true,
            ..Needs::default()
        }
    }

    fn bytes_per_entry(&self, shape: LayerShape) -> usize {
        let words = self.history.div_ceil(Packing::new(shape.group()).per_word);
        words.saturating_add(1).saturating_mul(size_of::<f32>())
    }

    fn protect(&self, _budget: usize) -> Protect {
        Protect {
            sinks: 0,
            recent: self.recent,
        }
    }

    fn append(&self, state: &mut State, appended: &Appended) -> Result<()> {
        let (shape, tokens) = (appended.shape, appended.positions.len());
        if state.rows.is_empty() {
            let words = self.history.div_ceil(Packing::new(shape.group()).per_word);
            let [batch, kv_heads, entries] =
                [shape.batch, shape.kv_heads, appended.before + tokens];
            let device = &appended.device;
            state.entries = vec![Tensor::zeros([batch, kv_heads, entries], device)];
            state.rows = vec![Tensor::zeros([batch, kv_heads, entries, words], device)];
            state.counts = vec![0, 0, usize::MAX];
        } else {
            state.append_lazily(appended);
        }
        state.counts[TO_COME] = tokens + appended.to_come;
        Ok(())
    }

    fn observe(&self, state: &mut State, block: &AttentionBlock) -> Result<()> {
        let tokens = block.tokens();
        let (seen, to_come) = (state.counts[SEEN], state.counts[TO_COME]);
        if tokens == 1 && state.note_hits(block, self.note(state, block.group(), seen)) {
            let first = &mut state.counts[FIRST];
            *first = (*first).min(seen);
            state.counts[SEEN] = seen + 1;
            state.counts[TO_COME] = to_come.saturating_sub(1);
            return Ok(());
        }
        // Queries that the rest of the prompt will push out of the history need not be looked at.
        let mut next = to_come.saturating_sub(self.history).min(tokens);
        if next < tokens {
            state.counts[FIRST] = state.counts[FIRST].min(seen + next);
        }
        while next < tokens {
            next += self.observe_word(state, block, seen + next, next);
        }
        state.counts[SEEN] = seen + tokens;
        state.counts[TO_COME] = to_come.saturating_sub(tokens);
        Ok(())
    }

    fn score(&self, state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        Ok(state.sums().div_scalar(view.shape.group() as f32))
    }

    fn step_scores(&self, state: &State, view: &LayerView<'_>) -> Result<StepScores> {
        match state.step_hits() {
            // As good as their means over the query group.
            Some(hits) => Ok(StepScores::Hits(hits)),
            None => self.score(state, view).map(StepScores::Given),
        }
    }

    #[cfg(feature = "testing")]
    fn oracle(&self) -> Option<&dyn crate::testing::Oracle> {
        Some(self)
    }
}

#[cfg(feature = "testing")]
mod oracle {
    use super::*;
    use crate::testing::{Entry, GROUP, Head, Oracle};

    impl Oracle for Scissorhands {
        fn scores(&self, head: &Head<'_>) -> Vec<f64> {
            let last = |entry: &Entry| {
                let from = entry.hits.len().saturating_sub(self.history);
                entry.hits[from..].iter().sum::<usize>() as f64 / GROUP as f64
            };
            head.entries().iter().map(last).collect()
        }
    }
}

impl Scissorhands {
    /// Where the hits of one query go.
    fn note(&self, state: &State, group: usize, query: usize) -> HitNote {
        let packing = Packing::new(group);
        let place = query % self.history;
        HitNote {
            word: place / packing.per_word,
            shift: packing.bits * (place % packing.per_word),
            bits: packing.bits,
            replaces: query >= state.counts[FIRST].saturating_add(self.history),
        }
    }

    /// Notes queries from the block's `first` on, which is the `query`th of the sequence, as far as they share a word
    /// of the history; returns how many those are.
    fn observe_word(
        &self,
        state: &mut State,
        block: &AttentionBlock,
        query: usize,
        first: usize,
    ) -> usize {
        let tokens = block.tokens();
        let place = query % self.history;
        let packing = Packing::new(block.group());
        let (word, digit) = (place / packing.per_word, place % packing.per_word);
        let count = (packing.per_word - digit)
            .min(tokens - first)
            .min(self.history - place);
        let (new, gained) = block.hits(first..first + count, packing.bits);
        let [batch, kv_heads, seen] = new.dims();
        let flat = new.dims();

        let range = s![.., .., 0..seen, word..word + 1];
        let old = state.rows[0].clone().slice(range).reshape(flat);
        // Products with powers of two are exact; quotients need not be on every device.
        let (above, below) = (1.0 / packing.power(digit), packing.power(digit));
        let (packed, gained) = match query + count <= state.counts[FIRST] + self.history {
            // Nothing to forget yet.
            true => (old + new.mul_scalar(below), gained),
            false => {
                let mut left = old.clone().mul_scalar(above).floor();
                let mut replaced = left.zeros_like();
                let mut lost = left.zeros_like();
                for i in 0..count {
                    let rest = left.clone().mul_scalar(1.0 / packing.power(1)).floor();
                    let value = left - rest.clone().mul_scalar(packing.power(1));
                    replaced = replaced + value.clone().mul_scalar(packing.power(i));
                    lost = lost + value;
                    left = rest;
                }
                (old + (new - replaced).mul_scalar(below), gained - lost)
            }
        };
        let range = s![.., .., 0..seen, word..word + 1];
        state.rows[0]
            .inplace(|t| t.slice_assign(range, packed.reshape([batch, kv_heads, seen, 1])));
        state.entries[0].inplace(|t| {
            let counts = t.clone().slice(s![.., .., 0..seen]) + gained;
            t.slice_assign(s![.., .., 0..seen], counts)
        });
        count
    }
}
