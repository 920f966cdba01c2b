//! Comparison of a cache with the naive one.

use super::inputs::{Inputs, Token, Windows, cache, facts};
use super::maths::max_difference;
use super::reference::Reference;
use crate::cache::Spans;
use crate::ops::read_error;
use crate::{Error, KvCache, Phase, Plan, Result};
use burn::tensor::{Device, Tensor};

/// A run for a comparison: the plan, the tokens and how they are given.
#[derive(Clone, Debug)]
pub struct Case {
    /// The plan, with any number of layers.
    pub plan: Plan,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// The most prompt tokens per call.
    pub chunk: usize,
    /// Tokens decoded after the prompt.
    pub steps: usize,
    /// How many times a prompt with its steps runs on the same cache.
    pub rounds: usize,
    /// Positions that the caller protects.
    pub spans: Spans,
    /// The seed of the queries, keys and values.
    pub seed: u64,
    /// The windows of the layers and the soft-cap.
    pub windows: Windows,
}

impl Case {
    /// One prompt of 45 tokens in one chunk and 40 steps.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        Self {
            plan,
            prompt: 45,
            chunk: 45,
            steps: 40,
            rounds: 1,
            spans: Spans::default(),
            seed: 1,
            windows: Windows::default(),
        }
    }

    /// The number of tokens of all rounds.
    pub fn tokens(&self) -> usize {
        self.rounds * (self.prompt + self.steps)
    }

    /// The queries, keys and values of one layer.
    pub fn inputs(&self, layer: usize) -> Inputs {
        Inputs::seeded(self.tokens(), self.seed, layer)
    }
}

/// The difference between a cache and the naive one.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Difference {
    /// The largest absolute difference of attention outputs; infinite if any of them is not finite.
    pub output: f64,
    /// The number of entries that only one of the two kept, over all evictions.
    pub kept: usize,
}

/// The positions that a layer keeps, ascending, for each KV head of each row; the heads of one row follow those of the row
/// before it.
///
/// # Errors
/// A layer that does not exist or holds nothing, an entry that is kept twice, and a device that cannot be read.
pub fn kept(cache: &KvCache, layer: usize) -> Result<Vec<Vec<usize>>> {
    let positions = cache
        .layers()
        .get(layer)
        .and_then(|layer| layer.positions());
    let positions =
        positions.ok_or_else(|| Error::Failed(format!("layer {layer} holds nothing")))?;
    let entries = positions.dims()[2];
    let values: Vec<i64> = positions.try_into_vec_as().map_err(read_error)?;
    let sorted = values.chunks_exact(entries).map(|head| {
        // Below 0 behind the entries of a head that has fewer than others.
        let held = head.iter().filter_map(|&p| usize::try_from(p).ok());
        let mut sorted: Vec<usize> = held.collect();
        sorted.sort_unstable();
        match sorted.windows(2).all(|pair| pair[0] < pair[1]) {
            true => Ok(sorted),
            false => Err(Error::Failed(format!(
                "layer {layer} keeps an entry twice: {sorted:?}"
            ))),
        }
    });
    sorted.collect()
}

/// Runs the case on `device` and in the naive cache, and compares all outputs and the entries kept after every eviction.
///
/// # Errors
/// What the cache and [`Reference`] refuse, and entries that are kept twice.
pub fn compare(case: &Case, device: &Device) -> Result<Difference> {
    let layers = case.plan.layers.len();
    let data: Vec<Inputs> = (0..layers).map(|layer| case.inputs(layer)).collect();
    let mut difference = Difference::default();
    let mut cache = cache(case.plan.clone(), device)?;
    cache.set_facts(&case.windows.in_facts(facts(layers, device)));
    cache.protect(case.spans.clone());
    let mut references = (0..layers)
        .map(|layer| {
            let mut reference = Reference::new(&case.plan, layer)?.with_windows(&case.windows);
            reference.protect(case.spans.clone());
            Ok(reference)
        })
        .collect::<Result<Vec<_>>>()?;
    let mut seen = 0;
    for _ in 0..case.rounds {
        let end = seen + case.prompt;
        let mut prompt = cache.prompt(case.prompt)?;
        for (layer, (data, reference)) in data.iter().zip(&mut references).enumerate() {
            reference.begin(case.prompt)?;
            for start in (seen..end).step_by(case.chunk) {
                let range = start..end.min(start + case.chunk);
                let [q, k, v] = data.part(range.clone(), device);
                let output = prompt.attend(layer, q, k, v)?;
                let step = |i: usize| reference.step(&data.q[i], &data.k[i], &data.v[i]);
                difference.add_output(output, &range.map(step).collect::<Vec<_>>())?;
            }
            if layer < prompt.layers_to_repeat() {
                // Two parts, of other tokens than the prompt's: what they are does not matter to a cache.
                for (part, tokens) in [5, 8].into_iter().enumerate() {
                    let part = Inputs::seeded(tokens, 40 + part as u64, layer);
                    let [q, k, v] = part.part(0..tokens, device);
                    let output = prompt.repeat(layer, q, k, v)?;
                    difference.add_output(output, &reference.repeat(&part))?;
                }
            }
            prompt.end_layer(layer)?;
            reference.evict(Phase::Prefill)?;
            difference.add_kept(prompt.cache(), layer, reference)?;
        }
        prompt.finish()?;
        seen = end + case.steps;
        for i in end..seen {
            for (layer, (data, reference)) in data.iter().zip(&mut references).enumerate() {
                let [q, k, v] = data.part(i..i + 1, device);
                let output = cache.decode(layer, q, k, v)?;
                let wanted = reference.step(&data.q[i], &data.k[i], &data.v[i]);
                difference.add_output(output, &[wanted])?;
                reference.evict(Phase::Decode)?;
                difference.add_kept(&cache, layer, reference)?;
            }
        }
    }
    cache.check()?;
    Ok(difference)
}

impl Difference {
    /// Adds the comparison of the outputs of some tokens, `[1, HEADS, tokens, DIM]`.
    fn add_output(&mut self, output: Tensor<4>, wanted: &[Token]) -> Result<()> {
        let found: Vec<f32> = output
            .swap_dims(1, 2)
            .try_into_vec_as()
            .map_err(read_error)?;
        let wanted: Vec<f64> = wanted.iter().flatten().flatten().copied().collect();
        self.output = self.output.max(max_difference(&found, &wanted));
        Ok(())
    }

    fn add_kept(&mut self, cache: &KvCache, layer: usize, reference: &Reference) -> Result<()> {
        for (found, wanted) in kept(cache, layer)?.iter().zip(reference.positions()) {
            let only = |these: &[usize], others: &[usize]| {
                let missing = |p: &&usize| others.binary_search(p).is_err();
                these.iter().filter(missing).count()
            };
            self.kept += only(found, &wanted) + only(&wanted, found);
        }
        Ok(())
    }
}
