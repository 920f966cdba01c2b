//! Causal attention of many queries by online softmax, in tiles that stay in cache, and the sums of its columns. Neither ever holds a
//! row of scores, let alone the matrix.

#[cfg(target_arch = "x86_64")]
use super::blocks::gemm::Hardware;
use super::bridge::{elements, inner_dense, tensor, widened};
use super::columns::{self, Fold};
use super::mask::Mask;
#[cfg(target_arch = "x86_64")]
use super::prefill_tiles;
use super::shared::Shared;
use super::simd::{Level, Vector, dispatch, exp, exp_sum, fma, max};
use super::tiles::{HIDDEN, KEYS, ROWS, Scores, Tile, WIDTH, pack_all, scores};
use super::view::Heads;
use crate::ops::kernels::{self, PromptOps};
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::DType;
use rayon::prelude::*;
use std::borrow::Cow;

impl PromptOps for Flex {
    fn attend_prompt(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        mask: kernels::Mask<Self>,
    ) -> (FlexTensor, FlexTensor) {
        let stored = [k.dtype(), v.dtype()];
        let (q, k, v) = (inner_dense(q), widened(k), widened(v));
        let (q, k, v) = (Heads::of(&q), Heads::of(&k), Heads::of(&v));
        let mask = Mask::of(mask, q.tokens);
        let by_tiles = attend_by_tiles(stored, [&q, &k, &v], &mask);
        let by_vectors = || attend(Level::best(), &q, &k, &v, &mask);
        let (output, log_sums) = by_tiles.unwrap_or_else(by_vectors);
        // The kernel writes [batch, tokens, heads, head_dim], which the output projection wants.
        let output = tensor(output, [q.batch, q.tokens, q.heads, q.dim]).transpose(1, 2);
        (output, tensor(log_sums, [q.batch, q.heads, q.tokens]))
    }

    fn attend_summed(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        mask: kernels::Mask<Self>,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (q, k, v) = (inner_dense(q), widened(k), widened(v));
        let (q, k, v) = (Heads::of(&q), Heads::of(&k), Heads::of(&v));
        let mask = Mask::of(mask, q.tokens);
        let (output, log_sums, sums) = attend_summed(Level::best(), &q, &k, &v, &mask);
        let output = tensor(output, [q.batch, q.tokens, q.heads, q.dim]).transpose(1, 2);
        let log_sums = tensor(log_sums, [q.batch, q.heads, q.tokens]);
        (output, log_sums, tensor(sums, [k.batch, k.heads, k.tokens]))
    }

    fn column_sums(
        q: FlexTensor,
        k: FlexTensor,
        log_sums: FlexTensor,
        mask: kernels::Mask<Self>,
    ) -> FlexTensor {
        columns([q, k, log_sums], mask, Fold::Sum)
    }

    fn column_max(
        q: FlexTensor,
        k: FlexTensor,
        log_sums: FlexTensor,
        mask: kernels::Mask<Self>,
    ) -> FlexTensor {
        columns([q, k, log_sums], mask, Fold::Max)
    }
}

fn columns([q, k, log_sums]: [FlexTensor; 3], mask: kernels::Mask<Flex>, fold: Fold) -> FlexTensor {
    let (q, k, log_sums) = (inner_dense(q), widened(k), log_sums.to_contiguous());
    let (q, k) = (Heads::of(&q), Heads::of(&k));
    let mask = Mask::of(mask, q.tokens);
    let found = columns::columns(Level::best(), &q, &k, elements(&log_sums), &mask, fold);
    tensor(found, [k.batch, k.heads, k.tokens])
}

/// [`attend`] where keys and values are stored in 16 bits and the processor has tiles of bf16.
fn attend_by_tiles(
    stored: [DType; 2],
    heads: [&Heads<'_>; 3],
    mask: &Mask,
) -> Option<(Vec<f32>, Vec<f32>)> {
    #[cfg(target_arch = "x86_64")]
    {
        let half = |dtype: &DType| matches!(dtype, DType::BF16 | DType::F16);
        let exact = stored.map(|dtype| dtype == DType::BF16);
        let halves = stored.iter().all(half);
        halves
            .then(|| prefill_tiles::attend::<Hardware>(heads, exact, mask))
            .flatten()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (stored, heads, mask);
        None
    }
}

/// A prompt's attention on its way: every tile writes its own part of the results.
struct Prompt<'a> {
    level: Level,
    q: &'a Heads<'a>,
    /// Keys that the first query does not share with the others: those before its own.
    hidden: usize,
    group: usize,
    kv_heads: usize,
    mask: &'a Mask,
    keys: Vec<Vec<f32>>,
    values: Vec<Cow<'a, [f32]>>,
    /// `[batch, t, heads, dim]`
    output: Shared,
    /// `[batch, heads, t]`
    log_sums: Shared,
}

impl<'a> Prompt<'a> {
    fn new(
        level: Level,
        [q, k, v]: [&'a Heads<'a>; 3],
        mask: &'a Mask,
        output: &mut [f32],
        log_sums: &mut [f32],
    ) -> Self {
        Self {
            level,
            q,
            hidden: k.tokens - q.tokens,
            group: q.heads / k.heads,
            kv_heads: k.heads,
            mask,
            keys: pack_all(k),
            values: (0..v.batch * v.heads)
                .into_par_iter()
                .map(|i| v.dense(i / v.heads, i % v.heads))
                .collect(),
            output: Shared::new(output),
            log_sums: Shared::new(log_sums),
        }
    }

    /// The queries from `first` on, as many as a tile has. No two calls for the same ones may overlap.
    fn tile(&self, batch: usize, head: usize, first: usize, columns: Option<&mut Columns>) {
        let q = self.q;
        let kv = batch * self.kv_heads + head / self.group;
        let tile = Tile {
            batch,
            head,
            first,
            rows: ROWS.min(q.tokens - first),
            visible: self.hidden + first + 1,
            softcap: self.mask.softcap,
            sight: self.mask.sight(kv, first),
        };
        let (keys, values) = (&self.keys[kv][..], &self.values[kv][..]);
        let result = &mut vec![0.0; ROWS * q.dim][..];
        let logs = dispatch!(self.level, fn tile_attention(
            tile: Tile<'_>, q: &Heads<'_>, keys: &[f32], values: &[f32], result: &mut [f32],
            columns: Option<&mut Columns>,
        ) -> [f32; ROWS]);
        for r in 0..tile.rows {
            let token = first + r;
            let at = ((batch * q.tokens + token) * q.heads + head) * q.dim;
            // SAFETY: `at` is the vector of (batch, token, head) in an output of that shape; each of them belongs to
            // exactly one tile, and no two calls for a tile overlap.
            unsafe { self.output.write(at, &result[r * q.dim..(r + 1) * q.dim]) };
            let at = (batch * q.heads + head) * q.tokens + token;
            // SAFETY: `at` is the number of (batch, head, token) in sums of that shape; it belongs to this tile alone.
            unsafe { self.log_sums.write(at, &logs[r..=r]) };
        }
    }
}

/// `q [batch, heads, t, dim]` over `k`, `v [batch, kv_heads, n, dim]`, aligned at the end. Returns
/// `[batch, t, heads, dim]` and per query the log-sum-exp of its scores, `[batch, heads, t]`.
pub fn attend(
    level: Level,
    q: &Heads<'_>,
    k: &Heads<'_>,
    v: &Heads<'_>,
    mask: &Mask,
) -> (Vec<f32>, Vec<f32>) {
    let mut output = vec![0.0; q.batch * q.tokens * q.heads * q.dim];
    let mut log_sums = vec![0.0; q.batch * q.heads * q.tokens];
    let prompt = Prompt::new(level, [q, k, v], mask, &mut output, &mut log_sums);
    let blocks = q.tokens.div_ceil(ROWS);
    // The longest tiles first, so that no thread is left with one at the end.
    let tiles = (0..q.batch * q.heads * blocks).into_par_iter().rev();
    tiles.for_each(|i| {
        let (batch, head, block) = (i / (q.heads * blocks), i % q.heads, i / q.heads % blocks);
        prompt.tile(batch, head, block * ROWS, None);
    });
    (output, log_sums)
}

/// Tiles of one head whose columns are added up by one thread, at least, and the most parts that a head has. Parts depend
/// on shapes alone: the same numbers give the same sums on any machine.
const PART: usize = 12;
const PARTS: usize = 16;

/// [`attend`], and the attention received per key: sum over the queries, mean over the query group, `[batch,
/// kv_heads, n]`.
pub fn attend_summed(
    level: Level,
    q: &Heads<'_>,
    k: &Heads<'_>,
    v: &Heads<'_>,
    mask: &Mask,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let mut output = vec![0.0; q.batch * q.tokens * q.heads * q.dim];
    let mut log_sums = vec![0.0; q.batch * q.heads * q.tokens];
    let prompt = Prompt::new(level, [q, k, v], mask, &mut output, &mut log_sums);
    let blocks = q.tokens.div_ceil(ROWS);
    let size = blocks.div_ceil(PARTS).max(PART);
    let parts = blocks.div_ceil(size);
    let count = q.batch * q.heads * parts;
    let mut found: Vec<Vec<f32>> = (0..count)
        .into_par_iter()
        .with_max_len(1)
        .map(|i| {
            // Long ones first here too: the part changes slowest, from the last one on.
            let i = count - 1 - i;
            let (head, part) = (i % (q.batch * q.heads), i / (q.batch * q.heads));
            let last = ((part + 1) * size * ROWS).min(q.tokens);
            let mut columns = Columns::new(prompt.hidden + last);
            for block in part * size..last.div_ceil(ROWS) {
                let (batch, head) = (head / q.heads, head % q.heads);
                prompt.tile(batch, head, block * ROWS, Some(&mut columns));
            }
            columns.sums
        })
        .collect();
    found.reverse();
    let mut sums = vec![0.0; k.batch * k.heads * k.tokens];
    let share = 1.0 / prompt.group as f32;
    for (i, part) in found.iter().enumerate() {
        let kv = i % (q.batch * q.heads) / prompt.group;
        let sums = &mut sums[kv * k.tokens..(kv + 1) * k.tokens];
        for (sum, x) in sums.iter_mut().zip(part) {
            *sum += x * share;
        }
    }
    (output, log_sums, sums)
}

/// Sums over the queries of the tiles that one thread goes through.
struct Columns {
    /// Tiles of keys by index, the exponentials of their scores, and what was the largest score when they were taken.
    tiles: Vec<usize>,
    rows: Vec<Scores>,
    tops: Vec<[f32; ROWS]>,
    /// Per key.
    sums: Vec<f32>,
}

impl Columns {
    /// For queries that see `keys` keys.
    fn new(keys: usize) -> Self {
        let tiles = keys.div_ceil(KEYS);
        Self {
            tiles: Vec::with_capacity(tiles),
            rows: Vec::with_capacity(tiles),
            tops: Vec::with_capacity(tiles),
            sums: vec![0.0; tiles * KEYS],
        }
    }

    /// Adds the `rows` queries of a tile, of which the largest scores and the totals are known now.
    #[inline(always)]
    fn add<V: Vector>(&mut self, rows: usize, most: [f32; ROWS], totals: [f32; ROWS]) {
        let all = self.sums.as_chunks_mut::<KEYS>().0;
        for ((scores, tops), &tile) in self.rows.iter().zip(&self.tops).zip(&self.tiles) {
            let sums = &mut all[tile];
            let mut weights = [0.0; ROWS];
            for r in 0..rows {
                weights[r] = exp::<V>(tops[r] - most[r]) / totals[r];
            }
            for i in 0..KEYS {
                for r in 0..ROWS {
                    sums[i] = fma::<V>(scores[r][i], weights[r], sums[i]);
                }
            }
        }
        self.tiles.clear();
        self.rows.clear();
        self.tops.clear();
    }
}

#[inline(always)]
fn tile_attention<V: Vector>(
    tile: Tile<'_>,
    q: &Heads<'_>,
    keys: &[f32],
    values: &[f32],
    result: &mut [f32],
    mut columns: Option<&mut Columns>,
) -> [f32; ROWS] {
    let dim = q.dim;
    let queries = tile.pack(q);
    let mut most = [HIDDEN; ROWS];
    let mut totals = [0.0f32; ROWS];
    let tiles = keys
        .chunks_exact(KEYS * dim)
        .zip(values.chunks(KEYS * dim))
        .take(tile.last_visible().div_ceil(KEYS));
    for (index, (keys, values)) in tiles.enumerate() {
        if let Some(sight) = &tile.sight
            && sight.is_past(index)
        {
            continue;
        }
        let start = index * KEYS;
        let mut scores = scores::<V>(tile, &queries, keys, start);
        let mut decay = [0.0; ROWS];
        for r in 0..ROWS {
            let top = most[r].max(max(&scores[r]));
            decay[r] = exp::<V>(most[r] - top);
            most[r] = top;
            totals[r] = totals[r] * decay[r] + exp_sum::<V>(&mut scores[r], top);
        }
        if let Some(columns) = &mut columns {
            columns.tiles.push(index);
            columns.rows.push(scores);
            columns.tops.push(most);
        }
        let count = KEYS.min(tile.last_visible() - start);
        accumulate::<V>(&scores, decay, &values[..count * dim], result);
    }
    for (row, total) in result.chunks_exact_mut(dim).zip(totals) {
        row.iter_mut().for_each(|x| *x /= total);
    }
    if let Some(columns) = columns {
        columns.add::<V>(tile.rows, most, totals);
    }
    std::array::from_fn(|r| most[r] + totals[r].ln())
}

/// `result [ROWS][dim] = decay · result + weights · values`, with `values [..][dim]`.
#[inline(always)]
fn accumulate<V: Vector>(weights: &Scores, decay: [f32; ROWS], values: &[f32], result: &mut [f32]) {
    let dim = result.len() / ROWS;
    let full = dim / WIDTH * WIDTH;
    for first in (0..full).step_by(WIDTH) {
        let mut sums = [[0.0f32; WIDTH]; ROWS];
        for (j, value) in values.chunks_exact(dim).enumerate().take(KEYS) {
            let value = &value[first..first + WIDTH];
            for r in 0..ROWS {
                for i in 0..WIDTH {
                    sums[r][i] = fma::<V>(weights[r][j], value[i], sums[r][i]);
                }
            }
        }
        for r in 0..ROWS {
            let result = &mut result[r * dim + first..][..WIDTH];
            for i in 0..WIDTH {
                result[i] = fma::<V>(decay[r], result[i], sums[r][i]);
            }
        }
    }
    if full == dim {
        return;
    }
    // Head sizes that are no multiple of the width leave a rest.
    for (r, result) in result.chunks_exact_mut(dim).enumerate() {
        let rest = &mut result[full..];
        rest.iter_mut().for_each(|x| *x *= decay[r]);
        for (value, weight) in values.chunks_exact(dim).zip(&weights[r]) {
            for (x, v) in rest.iter_mut().zip(&value[full..]) {
                *x = fma::<V>(*weight, *v, *x);
            }
        }
    }
}
