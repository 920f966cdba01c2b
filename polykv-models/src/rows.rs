//! Several caches in one pass: the weights are read once for all of them, and each row attends to the entries of its cache.

use crate::causal_lm::CausalLm;
use crate::layers::RopeTable;
use burn::tensor::{Int, Tensor, TensorData};
use polykv_core::{Error, KvCache, Result, ops};
use rayon::prelude::*;
use std::ops::Range;

/// Rows per pass, of all caches together. A GEMM of few rows spends much of its time on packing the weights: a quarter at 128
/// rows on a CPU. The number also bounds the logits that are held at once.
#[cfg(any(feature = "eval", feature = "calibrate"))]
const ROWS: usize = 512;

/// How many caches go into a pass of `tokens` tokens each.
#[cfg(any(feature = "eval", feature = "calibrate"))]
pub(crate) fn at_once(tokens: usize) -> usize {
    (ROWS / tokens.max(1)).max(1)
}

/// The attention of one row in one layer, from its queries, keys and values, `[1, heads or kv_heads, tokens, head_dim]` each:
/// `(row, layer, [q, k, v])`.
type AttendRow<'a, R> = dyn Fn(&mut R, usize, [Tensor<4>; 3]) -> Result<Tensor<4>> + Sync + 'a;

/// `x [rows, tokens, hidden]` through some layers.
///
/// # Errors
/// The errors of `attend`.
pub(crate) fn run<R: Send>(
    model: &dyn CausalLm,
    layers: Range<usize>,
    x: Tensor<3>,
    rope: &RopeTable,
    rows: &mut [R],
    attend: &AttendRow<'_, R>,
) -> Result<Tensor<3>> {
    // A row alone is too little work for several cores; another device has its own order.
    let on_cpu = ops::is_cpu(model.device());
    layers.into_iter().try_fold(x, |x, layer| {
        model.layer(layer, x, rope, &mut |q, k, v| {
            let of = |(index, row): (usize, &mut R)| {
                let parts = [&q, &k, &v].map(|all| all.clone().narrow(0, index, 1));
                attend(row, layer, parts)
            };
            let attended: Result<Vec<Tensor<4>>> = match on_cpu {
                true => rows.par_iter_mut().enumerate().map(of).collect(),
                false => rows.iter_mut().enumerate().map(of).collect(),
            };
            Ok(Tensor::cat(attended?, 0))
        })
    })
}

/// One token of several sequences, each with a cache of one row under a plan of its own: `tokens[i]` goes to `caches[i]`,
/// whatever the others have seen. The weights are read once for all of them. Returns the logits of the next tokens, `[sequences,
/// vocab]`.
///
/// # Errors
/// No sequence, other than one token for each, a cache of several rows, and every error of a cache; some of the caches may
/// have taken the token then.
pub fn decode_rows(
    model: &dyn CausalLm,
    tokens: &[u32],
    caches: &mut [&mut KvCache],
) -> Result<Tensor<2>> {
    let refuse = |field, found: usize, allowed: String| {
        Err(Error::invalid("decode_rows", field, found, allowed))
    };
    let count = caches.len();
    if tokens.len() != count || count == 0 {
        let allowed = format!("one for each of the {count} caches, of which there is one at least");
        return refuse("tokens", tokens.len(), allowed);
    }
    if let Some(cache) = caches.iter().find(|cache| cache.shape().batch != 1) {
        return refuse("rows of a cache", cache.shape().batch, "1".into());
    }
    let positions = caches.iter().flat_map(|cache| cache.next_positions());
    let positions: Vec<usize> = positions.collect();
    let rope = model.rope_of_rows(&positions, 1);
    let ids: Vec<i64> = tokens.iter().map(|&id| i64::from(id)).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [count, 1]), model.device());
    let (logits, errors) = decode_each(model, ids, &rope, caches)?;
    errors.into_iter().flatten().next().map_or(Ok(logits), Err)
}

/// One token of several sequences, `ids [sequences, 1]`, each with a cache of one row. Returns the logits of the next tokens,
/// `[sequences, vocab]`, and the first error of each cache that had one, whose row is not to be used.
///
/// # Errors
/// An error of the model, which is no cache's own.
pub(crate) fn decode_each(
    model: &dyn CausalLm,
    ids: Tensor<2, Int>,
    rope: &RopeTable,
    caches: &mut [&mut KvCache],
) -> Result<(Tensor<2>, Vec<Option<Error>>)> {
    let (config, count) = (model.config(), caches.len());
    let mut failed: Vec<Option<Error>> = caches.iter().map(|_| None).collect();
    let layers = 0..config.layers.len();
    let x = layers.into_iter().try_fold(model.embed(ids), |x, layer| {
        model.layer(layer, x, rope, &mut |q, k, v| {
            let (output, errors) = KvCache::decode_together(caches, layer, [q, k, v])?;
            for (first, error) in failed.iter_mut().zip(errors) {
                *first = first.take().or(error);
            }
            Ok(output)
        })
    })?;
    let logits = model.head(x).reshape([count, config.vocab_size]);
    Ok((logits, failed))
}
