//! Calibration: examples whose continuation shows what a compressed cache lost, what each policy costs in each layer alone,
//! and what whole routes cost.

mod evidence;
mod examples;
mod measure;
mod pool;

pub use evidence::EvidenceOptions;
pub use examples::{Example, Examples, TextOptions};
pub use measure::Measurer;
pub use pool::{Mixture, Pool};

use crate::LoadedModel;
use crate::layers::RopeTable;
use crate::rows;
use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;
use polykv_core::{Error, KvCache, Phase, PromptCache, Result, ops};
use std::ops::Range;

fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f64>> {
    let values: Vec<f32> = tensor.try_into_vec_as().map_err(ops::read_error)?;
    match values.iter().any(|value| value.is_nan()) {
        true => Err(Error::Failed("a calibration signal is NaN".into())),
        false => Ok(values.into_iter().map(f64::from).collect()),
    }
}

/// Runs `x [caches, tokens, hidden]` through layers, each row over its own compressed cache: under [`Phase::Prefill`] nothing
/// more is evicted, under [`Phase::Decode`] something is at every token. A layer's outputs depend on its inputs only, so each
/// layer can take all tokens before the next one.
fn layers(
    model: &LoadedModel,
    range: Range<usize>,
    x: Tensor<3>,
    rope: &RopeTable,
    caches: &mut [KvCache],
    phase: Phase,
) -> Result<Tensor<3>> {
    rows::run(&*model.model, range, x, rope, &mut |row, layer, q, k, v| {
        attend(&mut caches[row], phase, layer, [&q, &k, &v])
    })
}

/// One layer's attention, as in [`layers`].
fn attend(
    cache: &mut KvCache,
    phase: Phase,
    layer: usize,
    [q, k, v]: [&Tensor<4>; 3],
) -> Result<Tensor<4>> {
    match phase {
        Phase::Prefill => cache
            .untrimmed()
            .prefill(layer, q.clone(), k.clone(), v.clone()),
        Phase::Decode => {
            let token = |token: usize| {
                let one = |all: &Tensor<4>| all.clone().narrow(2, token, 1);
                cache.decode(layer, one(q), one(k), one(v))
            };
            let outputs = (0..q.dims()[2]).map(token).collect::<Result<Vec<_>>>()?;
            Ok(Tensor::cat(outputs, 2))
        }
    }
}

/// The mean negative log-likelihood of an example's scored tokens, `[rows]`, from the hidden states after the last layer of
/// all tokens that were run, `[rows, tokens, hidden]`.
fn nll(model: &LoadedModel, example: &Example, hidden: Tensor<3>) -> Tensor<1> {
    let (rows, Range { start, end }) = (hidden.dims()[0], example.queries());
    let logits = model.model.head(hidden.narrow(1, start, end - start));
    let targets = model
        .ids(&example.continuation[start + 1..end + 1])
        .unsqueeze_dim::<3>(2);
    let own = log_softmax(logits, 2).gather(2, targets.repeat_dim(0, rows));
    own.mean_dim(1).reshape([rows]).neg()
}
