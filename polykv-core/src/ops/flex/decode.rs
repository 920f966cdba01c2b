//! One token per sequence: products of a matrix and a few vectors, and attention over a cache. Both are bound by
//! memory, so each element of the weights and of the cache is read once.

use super::simd::{Level, dispatch, dot, exp_sum, fma, max};
use super::view::{Heads, Matrix};
use rayon::prelude::*;

/// Below this many bytes of work a second thread costs more than it saves.
const PARALLEL_BYTES: usize = 64 << 10;

/// `x [rows, columns]` times the transpose of `weight [outputs, columns]` → `[rows, outputs]`.
pub fn linear(level: Level, x: &[f32], weight: &Matrix<'_>) -> Vec<f32> {
    let mut output = vec![0.0; x.len() / weight.columns * weight.rows];
    for (x, output) in x
        .chunks_exact(weight.columns)
        .zip(output.chunks_exact_mut(weight.rows))
    {
        let bytes = weight.rows * weight.columns * size_of::<f32>();
        let threads = match bytes < PARALLEL_BYTES {
            true => 1,
            false => rayon::current_num_threads(),
        };
        // Several parts per thread even out threads that are late; too many would cost more than they even out.
        let parts = if bytes > 8 << 20 {
            threads * 8
        } else {
            threads
        };
        let chunk = weight.rows.div_ceil(parts).max(1);
        output.par_chunks_mut(chunk).enumerate().for_each(|(i, output)| {
            let first = i * chunk;
            dispatch!(level, fn rows(output: &mut [f32], x: &[f32], weight: &Matrix<'_>, first: usize));
        });
    }
    output
}

#[inline(always)]
fn rows<const FMA: bool>(output: &mut [f32], x: &[f32], weight: &Matrix<'_>, first: usize) {
    for (i, y) in output.iter_mut().enumerate() {
        *y = dot::<FMA>(x, weight.row(first + i));
    }
}

/// Attention of one query per head, `q [batch, heads, 1, dim]`, over all tokens of `k` and `v [batch, kv_heads, n,
/// dim]`. Returns `[batch, heads, dim]` and the probabilities `[batch, heads, n]`.
pub fn attend(level: Level, q: &Heads<'_>, k: &Heads<'_>, v: &Heads<'_>) -> (Vec<f32>, Vec<f32>) {
    let group = q.heads / k.heads;
    let kv_heads = k.batch * k.heads;
    let small = k.tokens * k.dim * size_of::<f32>() < PARALLEL_BYTES;
    // Two tasks per thread at least: KV heads alone rarely divide by the threads.
    let splits = match small {
        true => 1,
        false => (2 * rayon::current_num_threads()).div_ceil(kv_heads),
    };
    let step = k.tokens.div_ceil(splits).max(1);
    let part = |i: usize| {
        let (kv, first) = (i / splits, (i % splits * step).min(k.tokens));
        let at = Part {
            batch: kv / k.heads,
            kv_head: kv % k.heads,
            group,
            first,
            count: step.min(k.tokens - first),
        };
        dispatch!(level, fn part_attention(
            at: Part, q: &Heads<'_>, k: &Heads<'_>, v: &Heads<'_>,
        ) -> Partial)
    };
    let parts: Vec<Partial> = match small {
        true => (0..kv_heads * splits).map(part).collect(),
        false => (0..kv_heads * splits)
            .into_par_iter()
            .with_max_len(1)
            .map(part)
            .collect(),
    };
    let mut output = vec![0.0; q.batch * q.heads * q.dim];
    let mut row = Vec::with_capacity(q.batch * q.heads * k.tokens);
    for (head, output) in output.chunks_exact_mut(q.dim).enumerate() {
        let (kv, g) = (head / group, head % group);
        join(&parts[kv * splits..(kv + 1) * splits], g, output, &mut row);
    }
    (output, row)
}

/// A range of the keys of one KV head.
#[derive(Clone, Copy)]
struct Part {
    batch: usize,
    kv_head: usize,
    group: usize,
    first: usize,
    count: usize,
}

/// Attention over a part, not yet divided by its total.
struct Partial {
    /// Exponentials relative to the part's largest score, `[group][count]`.
    row: Vec<f32>,
    /// Per query of the group: the largest score and the sum of the exponentials.
    most: Vec<f32>,
    total: Vec<f32>,
    /// `[group][dim]`
    output: Vec<f32>,
}

#[inline(always)]
fn part_attention<const FMA: bool>(
    at: Part,
    q: &Heads<'_>,
    k: &Heads<'_>,
    v: &Heads<'_>,
) -> Partial {
    let (n, dim) = (at.count, q.dim);
    let scale = 1.0 / (dim as f32).sqrt();
    let mut row = vec![0.0; at.group * n];
    for t in 0..n {
        let key = k.row(at.batch, at.kv_head, at.first + t);
        for g in 0..at.group {
            let query = q.row(at.batch, at.kv_head * at.group + g, 0);
            row[g * n + t] = dot::<FMA>(query, key) * scale;
        }
    }
    // Loops instead of closures here and below: a closure is compiled without the features of its caller.
    let mut most = vec![0.0; at.group];
    let mut total = vec![0.0; at.group];
    for g in 0..at.group {
        let row = &mut row[g * n..(g + 1) * n];
        most[g] = max(row);
        total[g] = exp_sum::<FMA>(row, most[g]);
    }
    let mut output = vec![0.0; at.group * dim];
    for t in 0..n {
        let value = v.row(at.batch, at.kv_head, at.first + t);
        for (g, output) in output.chunks_exact_mut(dim).enumerate() {
            let p = row[g * n + t];
            for (o, v) in output.iter_mut().zip(value) {
                *o = fma::<FMA>(p, *v, *o);
            }
        }
    }
    Partial {
        row,
        most,
        total,
        output,
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
