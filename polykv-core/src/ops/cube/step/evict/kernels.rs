//! The kernels of evictions: one cube per sequence and KV head.

use super::super::super::choice::{UNITS, find_lowest};
use super::super::hits::{count_so_far, word_so_far};
use super::super::sum_so_far;
use cubecl::prelude::*;

/// One cube per sequence and KV head.
#[cube(launch_unchecked)]
pub fn evict_kernel<E: Float, I: Int, K: Float, V: Float>(
    scores: &Tensor<f32>,
    keys: &mut Tensor<E>,
    values: &mut Tensor<E>,
    positions: &mut Tensor<I>,
    spans: &[i32],
    before: ComptimeOption<&[f32]>,
    key: &Tensor<K>,
    value: &Tensor<V>,
    victim: &mut Tensor<I>,
    nans: &mut Tensor<f32>,
    rows: usize,
    #[comptime] of_heads: bool,
    n: usize,
    sinks: i32,
    recent: i32,
    span_count: usize,
    position: usize,
    dim: usize,
    #[define(E, I, K, V)] _dtypes: [ElemType; 4],
) {
    let slot = find_lowest::<I>(
        scores,
        rows,
        scores.stride(2),
        of_heads,
        &*positions,
        spans,
        before,
        victim,
        nans,
        n,
        sinks,
        recent,
        span_count,
    );
    overwrite::<E, I, K, V>(keys, values, positions, key, value, slot, position, dim);
}

/// One cube per sequence and KV head.
#[cube(launch_unchecked)]
pub fn evict_summed_kernel<E: Float, I: Int, K: Float, V: Float>(
    sums: &Tensor<f32>,
    rows: &Tensor<f32>,
    keys: &mut Tensor<E>,
    values: &mut Tensor<E>,
    positions: &mut Tensor<I>,
    spans: &[i32],
    before: ComptimeOption<&[f32]>,
    key: &Tensor<K>,
    value: &Tensor<V>,
    victim: &mut Tensor<I>,
    nans: &mut Tensor<f32>,
    scores: &mut Tensor<f32>,
    stay: &mut Tensor<f32>,
    group: usize,
    seen: i32,
    n: usize,
    sinks: i32,
    recent: i32,
    span_count: usize,
    position: usize,
    dim: usize,
    #[define(E, I, K, V)] _dtypes: [ElemType; 4],
) {
    let head = CUBE_POS_X as usize;
    let kv_heads = keys.shape(1);
    let (batch, kv_head) = (head / kv_heads, head % kv_heads);
    let start = batch * positions.stride(0) + kv_head * positions.stride(1);
    let last = n - 1;
    let mut j = UNIT_POS_X as usize;
    while j < n {
        let mut score = sum_so_far(sums, rows, head, j, last, n, group);
        if seen > 0 {
            score /= f32::cast_from(seen - i32::cast_from(positions[start + j]));
        }
        scores[head * n + j] = score;
        j += UNITS;
    }
    // Every unit reads the scores that it wrote.
    let slot = find_lowest::<I>(
        &*scores,
        1,
        0,
        false,
        &*positions,
        spans,
        before,
        victim,
        nans,
        n,
        sinks,
        recent,
        span_count,
    );
    overwrite::<E, I, K, V>(keys, values, positions, key, value, slot, position, dim);
    let mut i = UNIT_POS_X as usize;
    while i < last {
        let from = select(i == slot, last, i);
        stay[head * last + i] = sum_so_far(sums, rows, head, from, last, n, group);
        i += UNITS;
    }
}

/// One cube per sequence and KV head.
#[cube(launch_unchecked)]
pub fn evict_noted_kernel<E: Float, I: Int, K: Float, V: Float>(
    counts: &Tensor<f32>,
    words: &Tensor<f32>,
    rows: &Tensor<f32>,
    keys: &mut Tensor<E>,
    values: &mut Tensor<E>,
    positions: &mut Tensor<I>,
    spans: &[i32],
    before: ComptimeOption<&[f32]>,
    key: &Tensor<K>,
    value: &Tensor<V>,
    victim: &mut Tensor<I>,
    nans: &mut Tensor<f32>,
    scores: &mut Tensor<f32>,
    stay: &mut Tensor<f32>,
    words_stay: &mut Tensor<f32>,
    group: usize,
    word: usize,
    shift: u32,
    bits: u32,
    least: f32,
    #[comptime] replaces: bool,
    width: usize,
    n: usize,
    sinks: i32,
    recent: i32,
    span_count: usize,
    position: usize,
    dim: usize,
    #[define(E, I, K, V)] _dtypes: [ElemType; 4],
) {
    let head = CUBE_POS_X as usize;
    let last = n - 1;
    let mut j = UNIT_POS_X as usize;
    while j < n {
        scores[head * n + j] = count_so_far(
            counts, words, rows, head, j, word, shift, bits, least, replaces, last, width, n, group,
        );
        j += UNITS;
    }
    // Every unit reads the scores that it wrote.
    let slot = find_lowest::<I>(
        &*scores,
        1,
        0,
        false,
        &*positions,
        spans,
        before,
        victim,
        nans,
        n,
        sinks,
        recent,
        span_count,
    );
    overwrite::<E, I, K, V>(keys, values, positions, key, value, slot, position, dim);
    let mut i = UNIT_POS_X as usize;
    while i < last {
        let from = select(i == slot, last, i);
        stay[head * last + i] = count_so_far(
            counts, words, rows, head, from, word, shift, bits, least, replaces, last, width, n,
            group,
        );
        i += UNITS;
    }
    let mut w = UNIT_POS_X as usize;
    while w < last * width {
        let from = select(w / width == slot, last, w / width);
        words_stay[head * last * width + w] = word_so_far(
            words,
            rows,
            head,
            from,
            w % width,
            word,
            shift,
            bits,
            least,
            replaces,
            last,
            width,
            n,
            group,
        );
        w += UNITS;
    }
}

/// Writes a new entry into a head's slot, by all units of its cube.
#[cube]
fn overwrite<E: Float, I: Int, K: Float, V: Float>(
    keys: &mut Tensor<E>,
    values: &mut Tensor<E>,
    positions: &mut Tensor<I>,
    key: &Tensor<K>,
    value: &Tensor<V>,
    slot: usize,
    position: usize,
    dim: usize,
) {
    let kv = CUBE_POS_X as usize;
    let unit = UNIT_POS_X as usize;
    let kv_heads = keys.shape(1);
    let (batch, head) = (kv / kv_heads, kv % kv_heads);
    let key_at = batch * keys.stride(0) + head * keys.stride(1) + slot * keys.stride(2);
    let value_at = batch * values.stride(0) + head * values.stride(1) + slot * values.stride(2);
    let mut d = unit;
    while d < dim {
        keys[key_at + d] = E::cast_from(key[kv * dim + d]);
        values[value_at + d] = E::cast_from(value[kv * dim + d]);
        d += UNITS;
    }
    if unit == 0 {
        let at = batch * positions.stride(0) + head * positions.stride(1);
        let at = at + slot * positions.stride(2);
        positions[at] = I::cast_from(position);
    }
}
