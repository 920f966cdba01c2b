//! Calibration: examples whose continuation shows what a compressed cache lost, what each policy costs in each layer alone,
//! and what whole routes cost. [`calibrate`] does all of it, from texts to a plan; its arithmetic is in
//! [`polykv_core::calibrate`].

mod evidence;
mod example;
mod examples;
mod heads;
mod journal;
mod measure;
mod options;
mod progress;
mod prompts;
mod refine;
mod run;

pub use evidence::EvidenceOptions;
pub use example::Example;
pub use examples::{Examples, TextOptions};
pub use journal::JournalOptions;
#[cfg(feature = "testing")]
pub(crate) use journal::read as read_journal;
pub use measure::Measurer;
pub use options::{CalibrateOptions, Objective};
/// The values that a calibration takes and returns, and the signals that it ranks policies by.
pub use polykv_core::calibrate::{
    BudgetSignal, CandidatePolicy, Data, Direction, PhaseReport, Profile, Report, Settings, Signal,
};
pub use progress::{Progress, Stage};
pub use prompts::{CompressedPrompts, Mixture};
pub use run::{Calibration, calibrate, measure_part};

use crate::LoadedModel;
use crate::layers::RopeTable;
use crate::rows;
use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;
use polykv_core::{Error, KvCache, Phase, Prompt, Result, Untrimmed, ops};
use std::ops::Range;

fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f64>> {
    let values: Vec<f32> = tensor.try_into_vec_as().map_err(ops::read_error)?;
    match values.iter().any(|value| value.is_nan()) {
        true => Err(Error::NotFinite("a calibration signal is NaN".into())),
        false => Ok(values.into_iter().map(f64::from).collect()),
    }
}

/// A cache that has taken a prompt in, and how an example's continuation runs over it.
pub(crate) enum Continued<'a> {
    /// Nothing more is evicted.
    Untrimmed(Prompt<Untrimmed<'a>>),
    /// Something is evicted at every token.
    Decoding(&'a mut KvCache),
}

impl<'a> Continued<'a> {
    /// The continuation of `tokens` tokens that shows what a phase's eviction has cost.
    fn new(cache: &'a mut KvCache, phase: Phase, tokens: usize) -> Result<Self> {
        Ok(match phase {
            Phase::Prefill => Self::Untrimmed(Prompt::new(cache.untrimmed(), tokens)?),
            Phase::Decode => Self::Decoding(cache),
        })
    }

    /// One layer's attention of all tokens of the continuation.
    fn attend(&mut self, layer: usize, [q, k, v]: [&Tensor<4>; 3]) -> Result<Tensor<4>> {
        match self {
            Self::Untrimmed(prompt) => {
                let output = prompt.attend(layer, q.clone(), k.clone(), v.clone())?;
                prompt.end_layer(layer)?;
                Ok(output)
            }
            Self::Decoding(cache) => {
                let token = |token: usize| {
                    let one = |all: &Tensor<4>| all.clone().narrow(2, token, 1);
                    cache.decode(layer, one(q), one(k), one(v))
                };
                let outputs = (0..q.dims()[2]).map(token).collect::<Result<Vec<_>>>()?;
                Ok(Tensor::cat(outputs, 2))
            }
        }
    }

    /// The cache, for inspection.
    fn cache(&self) -> &KvCache {
        match self {
            Self::Untrimmed(prompt) => prompt.cache().cache(),
            Self::Decoding(cache) => cache,
        }
    }

    /// # Errors
    /// A NaN score.
    fn finish(self) -> Result<()> {
        match self {
            Self::Untrimmed(prompt) => prompt.finish().map(drop),
            Self::Decoding(cache) => cache.check(),
        }
    }
}

/// Runs `x [caches, tokens, hidden]` through layers, each row over its own compressed cache. A layer's outputs depend on its
/// inputs only, so each layer can take all tokens before the next one.
fn layers(
    model: &LoadedModel,
    range: Range<usize>,
    x: Tensor<3>,
    rope: &RopeTable,
    caches: &mut [Continued<'_>],
) -> Result<Tensor<3>> {
    rows::run(
        &*model.model,
        range,
        x,
        rope,
        caches,
        &|cache, layer, parts| cache.attend(layer, parts.each_ref()),
    )
}

/// The mean negative log-likelihood of an example's scored tokens, `[rows]`, from the hidden states after the last layer of
/// all tokens that were run, `[rows, tokens, hidden]`.
fn nll(model: &LoadedModel, example: &Example, hidden: Tensor<3>) -> Tensor<1> {
    let (rows, Range { start, end }) = (hidden.dims()[0], example.queries());
    let logits = model.model.head(hidden.narrow(1, start, end - start));
    let targets = model
        .ids(&example.continuation[start + 1..end + 1])
        .unsqueeze_dim::<3>(2);
    let likelihoods = log_softmax(logits, 2).gather(2, targets.repeat_dim(0, rows));
    likelihoods.mean_dim(1).reshape([rows]).neg()
}
