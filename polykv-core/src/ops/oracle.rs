//! The operators in plain tensor operations: what runs on backends without kernels, and what kernels are tested
//! against. Shapes are those of the operators of the same names.

pub mod choice;
pub(crate) mod codes;
pub mod keys;
pub mod pool;
pub(crate) mod ranges;

use super::mask::{Mask, Places};
use super::tensor::product;
use crate::Result;
use burn::tensor::activation::{gelu_approximate, silu, softmax};
use burn::tensor::{Bool, Device, Int, IntDType, Tensor, TensorData, s};
use std::ops::Range;

/// Query rows per block: the score matrix of a long prompt never exists as a whole.
const BLOCK: usize = 128;

/// Receives the probabilities of a block of queries, `[batch, kv_heads, group * tokens, entries]`, rows grouped by query
/// head, over the entries that the last of the queries sees.
pub type BlockObserver<'a> = dyn FnMut(Tensor<4>) -> Result<()> + 'a;

/// [`attend`](super::attend), in blocks of queries; `observer` gets the probabilities of each.
///
/// # Errors
/// Only those of `observer`.
pub fn attend(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: &Mask,
    mut observer: Option<&mut BlockObserver<'_>>,
) -> Result<Tensor<4>> {
    let [batch, heads, tokens, d] = q.dims();
    let [_, kv_heads, entries, _] = k.dims();
    let group = heads / kv_heads;
    let device = q.device();
    let q = q.mul_scalar(1.0 / (d as f32).sqrt());
    let mut outputs = Vec::with_capacity(tokens.div_ceil(BLOCK));
    for start in (0..tokens).step_by(BLOCK) {
        let end = tokens.min(start + BLOCK);
        let rows = end - start;
        let visible = entries - tokens + end;
        // Slicing the whole range would still cost a copy in the matrix products.
        let part = |t: &Tensor<4>| match visible == entries {
            true => t.clone(),
            false => t.clone().slice(s![.., .., 0..visible, ..]),
        };
        let folded =
            q.clone()
                .slice(s![.., .., start..end, ..])
                .reshape([batch, kv_heads, group * rows, d]);
        let mut scores = soft_capped(product(folded, part(&k).swap_dims(2, 3)), mask.softcap);
        let shape = [batch, kv_heads, group, rows, visible];
        let mut hide = |hidden: Tensor<5, Bool>| {
            scores.inplace(|scores| {
                scores
                    .reshape(shape)
                    .mask_fill(hidden.expand(shape), MASKED)
                    .reshape([batch, kv_heads, group * rows, visible])
            });
        };
        if rows > 1 {
            hide(causal_mask(rows, visible, &device));
        }
        if let Some((places, _)) = mask.window() {
            let positions = places.positions.clone().narrow(2, 0, visible);
            let last = places.seen - tokens + end;
            hide(past(places, positions, last - rows..last));
        }
        let probabilities = softmax(scores, 3);
        if let Some(observer) = observer.as_mut() {
            observer(probabilities.clone())?;
        }
        let output = product(probabilities, part(&v));
        outputs.push(output.reshape([batch, heads, rows, d]));
    }
    Ok(match outputs.len() {
        1 => outputs.swap_remove(0),
        _ => Tensor::cat(outputs, 2),
    })
}

/// [`attend_first`](super::attend_first) over all entries, or [`attend_lengths`](super::attend_lengths) over the first
/// `lengths [batch, kv_heads]` of each head: the output `[batch, heads, 1, d]` and the probabilities `[batch, kv_heads,
/// group, n]`.
pub fn attend_token(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    lengths: Option<Tensor<2, Int>>,
    mask: &Mask,
) -> (Tensor<4>, Tensor<4>) {
    let dims = q.dims();
    let row = attention_row(q, k, lengths, mask);
    let output = product(row.clone(), v).reshape(dims);
    (output, row)
}

/// The probabilities of [`attend_token`].
pub fn attention_row(
    q: Tensor<4>,
    k: Tensor<4>,
    lengths: Option<Tensor<2, Int>>,
    mask: &Mask,
) -> Tensor<4> {
    let [batch, heads, _, d] = q.dims();
    let [_, kv_heads, entries, _] = k.dims();
    let dims = [batch, kv_heads, heads / kv_heads, entries];
    let device = q.device();
    let q = q
        .mul_scalar(1.0 / (d as f32).sqrt())
        .reshape([batch, kv_heads, heads / kv_heads, d]);
    let mut scores = soft_capped(product(q, k.swap_dims(2, 3)), mask.softcap);
    if let Some(lengths) = lengths {
        let slots = Tensor::<1, Int>::arange(0..entries as i64, &device)
            .cast(IntDType::from(lengths.dtype()))
            .reshape([1, 1, 1, entries])
            .expand(dims);
        let lengths = lengths.clamp_min(1).reshape([batch, kv_heads, 1, 1]);
        scores = scores.mask_fill(slots.greater_equal(lengths.expand(dims)), MASKED);
    }
    if let Some((places, _)) = mask.window() {
        let hidden = past(
            places,
            places.positions.clone(),
            places.seen - 1..places.seen,
        );
        let hidden = hidden.reshape([batch, kv_heads, 1, entries]);
        scores = scores.mask_fill(hidden.expand(dims), MASKED);
    }
    softmax(scores, 3)
}

/// `c · tanh(score / c)`.
fn soft_capped<const D: usize>(scores: Tensor<D>, softcap: Option<f64>) -> Tensor<D> {
    match softcap {
        Some(cap) => scores.div_scalar(cap).tanh().mul_scalar(cap),
        None => scores,
    }
}

/// True where an entry at one of `positions [batch, kv_heads, n]` has left the window of a query at `queries`: `[batch,
/// kv_heads, 1, queries, n]`.
fn past(places: &Places, positions: Tensor<3, Int>, queries: Range<usize>) -> Tensor<5, Bool> {
    let [batch, kv_heads, entries] = positions.dims();
    let count = queries.len();
    let shape = [batch, kv_heads, 1, count, entries];
    let oldest: Vec<i64> = queries.map(|p| places.first_seen(p) as i64).collect();
    let oldest = TensorData::new(oldest, [1, 1, 1, count, 1]);
    let oldest = Tensor::<5, Int>::from_data(oldest, &positions.device());
    let positions = positions.reshape([batch, kv_heads, 1, 1, entries]);
    positions.expand(shape).lower(oldest.expand(shape))
}

/// Finite, since WGSL has no infinity literal; exp(MASKED − max) is 0 in f32.
const MASKED: f32 = -1e30;

/// True where row `i` of `rows` must not see column `j` of `columns` (the last row sees all).
fn causal_mask(rows: usize, columns: usize, device: &Device) -> Tensor<5, Bool> {
    Tensor::<2, Bool>::tril_mask([rows, columns], (columns - rows) as i64, device)
        .reshape([1, 1, 1, rows, columns])
}

/// Sum over the rows of `[batch, kv_heads, group * tokens, entries]`, mean over the group: `[batch, kv_heads,
/// entries]`.
pub fn column_sums(probabilities: Tensor<4>, group: usize) -> Tensor<3> {
    let [batch, kv_heads, rows, entries] = probabilities.dims();
    let sums = match rows == group {
        true => probabilities.mean_dim(2),
        false => probabilities.sum_dim(2).div_scalar(group as f32),
    };
    sums.reshape([batch, kv_heads, entries])
}

/// The largest of the rows of `[batch, kv_heads, group * tokens, entries]`: `[batch, kv_heads, entries]`.
pub fn column_max(probabilities: Tensor<4>) -> Tensor<3> {
    let [batch, kv_heads, _, entries] = probabilities.dims();
    probabilities.max_dim(2).reshape([batch, kv_heads, entries])
}

/// [`AttentionBlock::hits`](super::AttentionBlock::hits), from the block's probabilities and how many entries each of the
/// queries sees, `[batch or 1, kv_heads or 1, queries]`.
pub fn attention_hits(
    probabilities: Tensor<4>,
    group: usize,
    queries: Range<usize>,
    bits: usize,
    counts: Tensor<3>,
) -> (Tensor<3>, Tensor<3>) {
    let [batch, kv_heads, rows, entries] = probabilities.dims();
    let (tokens, count) = (rows / group, queries.len());
    let seen = entries - tokens + queries.end;
    let attention = probabilities
        .reshape([batch, kv_heads, group, tokens, entries])
        .slice(s![.., .., .., queries, 0..seen]);
    let device = attention.device();
    let column = |f: &dyn Fn(usize) -> f32| {
        let values: Vec<f32> = (0..count).map(f).collect();
        Tensor::<5>::from_data(TensorData::new(values, [1, 1, 1, count, 1]), &device)
    };
    let [batches, heads, _] = counts.dims();
    let average = counts.recip().reshape([batches, heads, 1, count, 1]);
    let hits = attention
        .clone()
        .greater_equal(average.expand(attention.dims()));
    let hits = hits.float().sum_dim(2); // [batch, kv_heads, 1, count, seen]
    let flat = [batch, kv_heads, seen];
    let counts = hits.clone().sum_dim(3).reshape(flat);
    let digits = hits * column(&|i| (bits as f32 * i as f32).exp2());
    (digits.sum_dim(3).reshape(flat), counts)
}

/// [`window_attention`](super::window_attention).
pub fn window_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    places: &Places,
    softcap: Option<f64>,
) -> Tensor<5> {
    let (positions, seen) = (places.positions.clone(), places.seen);
    let [batch, heads, window, d] = q.dims();
    let [_, kv_heads, entries, _] = k.dims();
    let group = heads / kv_heads;
    let device = q.device();
    let q = q
        .mul_scalar(1.0 / (d as f32).sqrt())
        .reshape([batch, kv_heads, group * window, d]);
    let scores = soft_capped(product(q, k.swap_dims(2, 3)), softcap);
    let dims = [batch, kv_heads, group, window, entries];
    let scores = scores.reshape(dims);
    let mut hidden = None;
    if window > 1 {
        let shape = [batch, kv_heads, 1, window, entries];
        let first = (seen - window) as i64;
        let of_query = Tensor::<1, Int>::arange(first..seen as i64, &device)
            .reshape([1, 1, 1, window, 1])
            .expand(shape);
        let of_entry = positions
            .clone()
            .reshape([batch, kv_heads, 1, 1, entries])
            .expand(shape);
        hidden = Some(of_entry.greater(of_query).expand(dims));
    }
    if places.window.is_some() {
        let past = past(places, positions, seen - window..seen).expand(dims);
        hidden = Some(match hidden {
            Some(later) => later.bool_or(past),
            None => past,
        });
    }
    match hidden {
        // A query that sees none of the entries pays no attention.
        Some(hidden) => softmax(scores.mask_fill(hidden.clone(), MASKED), 4).mask_fill(hidden, 0.0),
        None => softmax(scores, 4),
    }
}

/// [`window_score`](super::window_score).
pub fn window_score(
    q: Tensor<4>,
    k: Tensor<4>,
    places: &Places,
    softcap: Option<f64>,
) -> (Tensor<3>, Tensor<3>) {
    let [batch, kv_heads, entries] = places.positions.dims();
    let window = q.dims()[2];
    let attention = window_attention(q, k, places, softcap);
    let mean = attention.clone().mean_dim(3);
    let squares = (attention - mean.clone()).square().sum_dim(3);
    let dims = [batch, kv_heads, entries];
    let of_group = |x: Tensor<5>| x.mean_dim(2).reshape(dims);
    (
        of_group(mean).mul_scalar(window as f32),
        of_group(squares).div_scalar((window.max(2) - 1) as f32),
    )
}

/// [`swiglu`](super::swiglu).
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    silu(gate) * up
}

/// [`geglu`](super::geglu).
pub fn geglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    gelu_approximate(gate) * up
}

/// [`rms_norm`](super::rms_norm).
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    let mean_square = x.clone().square().mean_dim(D - 1);
    x / mean_square.add_scalar(eps).sqrt() * weight.unsqueeze::<D>()
}

/// [`rotate`](super::rotate).
pub fn rotate(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let [_, _, _, d] = x.dims();
    let first = x.clone().slice(s![.., .., .., 0..d / 2]);
    let second = x.slice(s![.., .., .., d / 2..d]);
    Tensor::cat(
        vec![
            first.clone() * cos.clone() - second.clone() * sin.clone(),
            second * cos + first * sin,
        ],
        3,
    )
}
