//! Several caches in one pass: the weights are read once for all of them, and each row attends to the entries of its cache.

use crate::causal_lm::CausalLm;
use crate::layers::RopeTable;
use burn::tensor::Tensor;
use polykv_core::Result;
use std::ops::Range;

/// Rows per pass, of all caches together. A GEMM of few rows spends much of its time on packing the weights: a quarter at 128
/// rows on a CPU. The number also bounds the logits that are held at once.
const ROWS: usize = 512;

/// The attention of one row of a batch in one layer, `[1, heads or kv_heads, tokens, head_dim]` each: `(row, layer, q, k, v)`.
pub(crate) type AttendRow<'a> =
    dyn FnMut(usize, usize, Tensor<4>, Tensor<4>, Tensor<4>) -> Result<Tensor<4>> + 'a;

/// How many caches go into a pass of `tokens` tokens each.
pub(crate) fn at_once(tokens: usize) -> usize {
    (ROWS / tokens.max(1)).max(1)
}

/// `x [caches, tokens, hidden]` through some layers.
///
/// # Errors
/// The errors of `attend`.
pub(crate) fn run(
    model: &dyn CausalLm,
    layers: Range<usize>,
    x: Tensor<3>,
    rope: &RopeTable,
    attend: &mut AttendRow<'_>,
) -> Result<Tensor<3>> {
    let [count, _, _] = x.dims();
    layers.into_iter().try_fold(x, |x, layer| {
        model.layer(layer, x, rope, &mut |q, k, v| {
            let rows = (0..count).map(|row| {
                let [q, k, v] = [&q, &k, &v].map(|all| all.clone().narrow(0, row, 1));
                attend(row, layer, q, k, v)
            });
            Ok(Tensor::cat(rows.collect::<Result<Vec<_>>>()?, 0))
        })
    })
}
