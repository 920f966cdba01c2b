//! Attention of one token per sequence over a cache. It is bound by memory: each key and value is read once for the
//! whole query group.

use super::PARALLEL_BYTES;
use super::bridge::{float, float_back, inner_dense, integers, tensor};
use super::mask::{Mask, cap};
use super::simd::{
    Element, LANES, Level, Vector, dispatch, dot, dots, exp_sum, fetch_ahead, fma, max,
};
use super::view::{Heads, Tokens};
use crate::ops::kernels::{self, TokenOps};
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Tensor, bf16, f16};
use rayon::prelude::*;

impl TokenOps for Flex {
    fn attend_token(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        entries: usize,
        mask: kernels::Mask<Self>,
    ) -> (FlexTensor, FlexTensor) {
        let (k, v) = (k.narrow(2, 0, entries), v.narrow(2, 0, entries));
        run(q, k, v, None, &Mask::of(mask, 1))
    }

    fn attend_lengths(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        lengths: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        let lengths = lengths.to_contiguous();
        run(q, k, v, Some(&integers(&lengths)), &Mask::default())
    }
}

/// Over the first `lengths [batch * kv_heads]` keys of each head, or over all.
fn run(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    lengths: Option<&[i64]>,
    mask: &Mask,
) -> (FlexTensor, FlexTensor) {
    let (q, k, v) = (inner_dense(q), inner_dense(k), inner_dense(v));
    match k.dtype() {
        DType::F16 => attend_stored::<f16>(&q, &k, &v, lengths, mask),
        DType::BF16 => attend_stored::<bf16>(&q, &k, &v, lengths, mask),
        _ => attend_stored::<f32>(&q, &k, &v, lengths, mask),
    }
}

fn attend_stored<E: Element>(
    q: &FlexTensor,
    k: &FlexTensor,
    v: &FlexTensor,
    lengths: Option<&[i64]>,
    mask: &Mask,
) -> (FlexTensor, FlexTensor) {
    attend_tokens(
        &Heads::of(q),
        &Heads::<E>::of(k),
        &Heads::<E>::of(v),
        lengths,
        mask,
    )
}

fn attend_tokens<T: Tokens>(
    q: &Heads<'_>,
    k: &T,
    v: &T,
    lengths: Option<&[i64]>,
    mask: &Mask,
) -> (FlexTensor, FlexTensor) {
    let (output, row) = attend(Level::best(), q, k, v, lengths, mask);
    let group = q.heads / k.heads();
    (
        tensor(output, [q.batch, q.heads, 1, q.dim]),
        tensor(row, [q.batch, k.heads(), group, k.tokens()]),
    )
}

/// Attention of one query per head, `q [batch, heads, 1, dim]`, over keys and values `[batch, kv_heads, n, dim]` and then over more
/// of them, with the sums in the order of [`TokenOps::attend_token`] over all of them in one tensor. Returns the output and
/// the probabilities as there.
pub fn attend_behind(
    q: Tensor<4>,
    before: [Tensor<4>; 2],
    own: [Tensor<4>; 2],
    softcap: Option<f32>,
) -> (Tensor<4>, Tensor<4>) {
    let dense = |all: Tensor<4>| inner_dense(float(all));
    let (q, before, own) = (dense(q), before.map(dense), own.map(dense));
    let mask = Mask {
        softcap,
        window: None,
    };
    let (output, row) = match before[0].dtype() {
        DType::F16 => attend_both::<f16>(&q, &before, &own, &mask),
        DType::BF16 => attend_both::<bf16>(&q, &before, &own, &mask),
        _ => attend_both::<f32>(&q, &before, &own, &mask),
    };
    (float_back(output), float_back(row))
}

fn attend_both<E: Element>(
    q: &FlexTensor,
    [k, v]: &[FlexTensor; 2],
    [more_k, more_v]: &[FlexTensor; 2],
    mask: &Mask,
) -> (FlexTensor, FlexTensor) {
    let both = |before, own| [Heads::<E>::of(before), Heads::of(own)];
    attend_tokens(
        &Heads::of(q),
        &both(k, more_k),
        &both(v, more_v),
        None,
        mask,
    )
}

/// Attention of one query per head, `q [batch, heads, 1, dim]`, over the tokens of `k` and `v [batch, kv_heads, n,
/// dim]`, of each KV head the first `lengths [batch * kv_heads]` if they are given. Returns `[batch, heads, dim]` and the
/// probabilities `[batch, heads, n]`.
pub fn attend<T: Tokens>(
    level: Level,
    q: &Heads<'_>,
    k: &T,
    v: &T,
    lengths: Option<&[i64]>,
    mask: &Mask,
) -> (Vec<f32>, Vec<f32>) {
    let shape = Shape {
        batch: q.batch,
        heads: q.heads,
        kv_heads: k.heads(),
        tokens: k.tokens(),
        dim: q.dim,
        bytes: k.dim() * size_of::<T::Element>(),
    };
    in_parts(shape, lengths, |at| {
        dispatch!(level, fn part_attention<T: Tokens>(
            at: Part, q: &Heads<'_>, k: &T, v: &T, mask: &Mask,
        ) -> Partial)
    })
}

/// Of one query per head over a cache.
#[derive(Clone, Copy)]
pub struct Shape {
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Keys per head.
    pub tokens: usize,
    pub dim: usize,
    /// Bytes of a key.
    pub bytes: usize,
}

/// Attention whose parts `part` computes, over the first `lengths [batch * kv_heads]` keys of each head or over all:
/// `[batch, heads, dim]` and the probabilities `[batch, heads, tokens]`.
pub fn in_parts(
    shape: Shape,
    lengths: Option<&[i64]>,
    part: impl Fn(Part) -> Partial + Sync,
) -> (Vec<f32>, Vec<f32>) {
    let (n, dim) = (shape.tokens, shape.dim);
    let group = shape.heads / shape.kv_heads;
    let kv_heads = shape.batch * shape.kv_heads;
    let small = n * shape.bytes < PARALLEL_BYTES;
    // Two tasks per thread at least: KV heads alone rarely divide by the threads.
    let splits = match small {
        true => 1,
        false => (2 * rayon::current_num_threads()).div_ceil(kv_heads),
    };
    let step = n.div_ceil(splits).max(1);
    let part = |i: usize| {
        let kv = i / splits;
        let seen = lengths.map_or(n, |lengths| visible(lengths[kv], n));
        let first = (i % splits * step).min(seen);
        part(Part {
            batch: kv / shape.kv_heads,
            kv_head: kv % shape.kv_heads,
            group,
            first,
            count: step.min(seen - first),
        })
    };
    let parts: Vec<Partial> = match small {
        true => (0..kv_heads * splits).map(part).collect(),
        false => (0..kv_heads * splits)
            .into_par_iter()
            .with_max_len(1)
            .map(part)
            .collect(),
    };
    let heads = shape.batch * shape.heads;
    let mut output = vec![0.0; heads * dim];
    let mut row = Vec::with_capacity(heads * n);
    for (head, output) in output.chunks_exact_mut(dim).enumerate() {
        let (kv, g) = (head / group, head % group);
        join(&parts[kv * splits..(kv + 1) * splits], g, output, &mut row);
        row.resize((head + 1) * n, 0.0);
    }
    (output, row)
}

/// How many of `n` keys a length means: 1 to n.
fn visible(length: i64, n: usize) -> usize {
    length.clamp(1, n as i64) as usize
}

/// A range of the keys of one KV head.
#[derive(Clone, Copy)]
pub struct Part {
    pub batch: usize,
    pub kv_head: usize,
    pub group: usize,
    pub first: usize,
    pub count: usize,
}

/// Attention over a part, not yet divided by its total.
pub struct Partial {
    /// Exponentials relative to the part's largest score, `[group][count]`.
    pub row: Vec<f32>,
    /// Per query of the group: the largest score and the sum of the exponentials.
    pub most: Vec<f32>,
    pub total: Vec<f32>,
    /// `[group][dim]`
    pub output: Vec<f32>,
}

impl Partial {
    pub fn new(at: Part, dim: usize) -> Self {
        Self {
            row: vec![0.0; at.group * at.count],
            most: vec![0.0; at.group],
            total: vec![0.0; at.group],
            output: vec![0.0; at.group * dim],
        }
    }

    /// Brings scaled products in `row` to exponentials, after what the mask does to those of KV head `head` of all rows.
    #[inline(always)]
    pub fn exponentiate<V: Vector>(&mut self, at: Part, head: usize, mask: &Mask) {
        let n = at.count;
        if let Some(softcap) = mask.softcap {
            cap::<V>(&mut self.row, softcap);
        }
        if let Some(sight) = mask.sight(head, 0) {
            for g in 0..at.group {
                sight.hide_keys(at.first, &mut self.row[g * n..(g + 1) * n]);
            }
        }
        // Loops instead of closures: a closure is compiled without the features of its caller.
        for g in 0..at.group {
            let row = &mut self.row[g * n..(g + 1) * n];
            self.most[g] = max(row);
            self.total[g] = exp_sum::<V>(row, self.most[g]);
        }
    }
}

#[inline(always)]
fn part_attention<V: Vector, T: Tokens>(
    at: Part,
    q: &Heads<'_>,
    k: &T,
    v: &T,
    mask: &Mask,
) -> Partial {
    let (n, dim) = (at.count, q.dim);
    let mut part = Partial::new(at, dim);
    part_scores::<V, T>(at, q, k, &mut part.row);
    part.exponentiate::<V>(at, at.batch * k.heads() + at.kv_head, mask);
    let mut g = 0;
    while g < at.group {
        let output = &mut part.output[g * dim..];
        let rows = &part.row[g * n..];
        g += match at.group - g {
            0 | 1 => weighted_sum::<V, T, 1>(at, v, rows, output),
            2 => weighted_sum::<V, T, 2>(at, v, rows, output),
            3 => weighted_sum::<V, T, 3>(at, v, rows, output),
            _ => weighted_sum::<V, T, 4>(at, v, rows, output),
        };
    }
    part
}

/// Keys that all queries of a group meet before the next ones are read: few enough to stay in the first-level cache.
const KEYS: usize = 32;

/// Scaled products of the group's queries with the part's keys, `row [group][count]`.
#[inline(always)]
fn part_scores<V: Vector, T: Tokens>(at: Part, q: &Heads<'_>, k: &T, row: &mut [f32]) {
    let scale = 1.0 / (q.dim as f32).sqrt();
    let n = at.count;
    for start in (0..n).step_by(KEYS) {
        let end = n.min(start + KEYS);
        for g in 0..at.group {
            let query = q.row(at.batch, at.kv_head * at.group + g, 0);
            let row = &mut row[g * n + start..g * n + end];
            let (fours, rest) = row.as_chunks_mut::<4>();
            let mut token = at.first + start;
            for four in fours {
                let keys = [
                    k.row(at.batch, at.kv_head, token),
                    k.row(at.batch, at.kv_head, token + 1),
                    k.row(at.batch, at.kv_head, token + 2),
                    k.row(at.batch, at.kv_head, token + 3),
                ];
                if g == 0 {
                    for key in keys {
                        fetch_ahead(key);
                    }
                }
                let products = dots::<V, f32, T::Element>(query, keys);
                for i in 0..4 {
                    four[i] = products[i] * scale;
                }
                token += 4;
            }
            for (i, x) in rest.iter_mut().enumerate() {
                let key = k.row(at.batch, at.kv_head, token + i);
                *x = dot::<V, T::Element>(query, key) * scale;
            }
        }
    }
}

/// Values weighted by the first `G` of `rows [..][count]`, added to the first `G` of `output [..][dim]`; returns `G`.
#[inline(always)]
fn weighted_sum<V: Vector, T: Tokens, const G: usize>(
    at: Part,
    v: &T,
    rows: &[f32],
    output: &mut [f32],
) -> usize {
    let (dim, wide) = (v.dim(), 4 * LANES);
    let mut first = 0;
    while first + wide <= dim {
        weighted_lanes::<V, T, G, 4>(at, v, rows, first, output);
        first += wide;
    }
    while first + LANES <= dim {
        weighted_lanes::<V, T, G, 1>(at, v, rows, first, output);
        first += LANES;
    }
    for t in 0..at.count {
        let value = v.row(at.batch, at.kv_head, at.first + t);
        for g in 0..G {
            for d in first..dim {
                let o = &mut output[g * dim + d];
                *o = fma::<V>(rows[g * at.count + t], value[d].widen(), *o);
            }
        }
    }
    G
}

/// The part of [`weighted_sum`] that the `P` vectors from element `first` on make; their sums stay in registers.
#[inline(always)]
fn weighted_lanes<V: Vector, T: Tokens, const G: usize, const P: usize>(
    at: Part,
    v: &T,
    rows: &[f32],
    first: usize,
    output: &mut [f32],
) {
    let mut sums = [[V::splat(0.0); P]; G];
    for t in 0..at.count {
        let value = &v.row(at.batch, at.kv_head, at.first + t)[first..first + P * LANES];
        fetch_ahead(value);
        let parts = value.as_chunks::<LANES>().0;
        for part in 0..P {
            let value = T::Element::load::<V>(&parts[part]);
            for g in 0..G {
                let weight = V::splat(rows[g * at.count + t]);
                sums[g][part] = value.mul_add(weight, sums[g][part]);
            }
        }
    }
    for g in 0..G {
        let output = &mut output[g * v.dim() + first..][..P * LANES];
        for (part, output) in output.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            *output = sums[g][part].lanes();
        }
    }
}

/// Puts the parts of query `g` of a group together: adds to `output [dim]`, appends the probabilities to `row`.
fn join(parts: &[Partial], g: usize, output: &mut [f32], row: &mut Vec<f32>) {
    let most = parts
        .iter()
        .map(|part| part.most[g])
        .fold(f32::MIN, f32::max);
    let weights: Vec<f32> = parts
        .iter()
        .map(|part| (part.most[g] - most).exp())
        .collect();
    let total: f32 = parts
        .iter()
        .zip(&weights)
        .map(|(part, w)| part.total[g] * w)
        .sum();
    for (part, weight) in parts.iter().zip(weights) {
        let weight = weight / total;
        let n = part.row.len() / part.most.len();
        row.extend(part.row[g * n..(g + 1) * n].iter().map(|p| p * weight));
        let dim = output.len();
        for (o, x) in output.iter_mut().zip(&part.output[g * dim..(g + 1) * dim]) {
            *o += x * weight;
        }
    }
}
