//! What is done for every decoded token, in as few launches as there can be.

use super::choice::{UNITS as CHOOSING, find_lowest, spans};
use super::token::{New, attend};
use super::{Mask, dense, empty, writable};
use crate::ops::kernels::{self, Counts, ScoresOf, StepOps, Window};
use crate::ops::protect::Guard;
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

const UNITS: usize = 64;

impl StepOps for CubeBackend {
    fn extend(statistics: CubeTensor, count: usize) -> CubeTensor {
        let statistics = into_contiguous(statistics);
        let mut dims = statistics.shape().to_vec();
        let (heads, entries) = (dims[0] * dims[1], dims[2]);
        let width: usize = dims[3..].iter().product();
        dims[2] += count;
        let (held, all) = (entries * width, dims[2] * width);
        let extended = empty(&statistics, dims, DType::F32);
        let client = statistics.client.clone();
        debug_assert_eq!(statistics.dtype, DType::F32);
        // SAFETY: units beyond the `all` numbers of a head end; the others read below its `held` ones and write their own.
        unsafe {
            extend_kernel::launch_unchecked(
                &client,
                CubeCount::Static(heads as u32, all.div_ceil(UNITS) as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                statistics.into_tensor_arg(),
                extended.clone().into_tensor_arg(),
                held,
                all,
            );
        }
        extended
    }

    fn push(queries: CubeTensor, new: CubeTensor) -> CubeTensor {
        let (queries, new) = (into_contiguous(queries), into_contiguous(new));
        let [batch, heads, n, d] = queries.shape().dims::<4>();
        let pushed = empty(&queries, [batch, heads, n, d], DType::F32);
        let client = queries.client.clone();
        debug_assert_eq!(new.shape().dims::<4>(), [batch, heads, 1, d]);
        debug_assert_eq!([queries.dtype, new.dtype], [DType::F32; 2]);
        // SAFETY: units beyond the `n · d` numbers of a head end; the others read one `d` further on, or one of the new ones, and
        // write their own.
        unsafe {
            push_kernel::launch_unchecked(
                &client,
                CubeCount::Static((batch * heads) as u32, (n * d).div_ceil(UNITS) as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                queries.into_tensor_arg(),
                new.into_tensor_arg(),
                pushed.clone().into_tensor_arg(),
                n * d,
                d,
            );
        }
        pushed
    }

    fn add_mean(sums: CubeTensor, rows: CubeTensor) -> CubeTensor {
        let (sums, rows) = (into_contiguous(sums), into_contiguous(rows));
        let [batch, kv_heads, group, n] = rows.shape().dims::<4>();
        let more = empty(&sums, [batch, kv_heads, n], DType::F32);
        let client = sums.client.clone();
        let [.., known] = sums.shape().dims::<3>();
        debug_assert_eq!(sums.shape().dims::<3>()[..2], [batch, kv_heads]);
        debug_assert!(known <= n);
        // SAFETY: units beyond the `n` numbers of a head end; the others read theirs of `group` rows, and of the `known` sums.
        unsafe {
            add_mean_kernel::launch_unchecked(
                &client,
                CubeCount::Static((batch * kv_heads) as u32, n.div_ceil(UNITS) as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                sums.into_tensor_arg(),
                rows.into_tensor_arg(),
                more.clone().into_tensor_arg(),
                known,
                n,
                group,
            );
        }
        more
    }

    fn attend_new(
        q: CubeTensor,
        keys: CubeTensor,
        values: CubeTensor,
        positions: CubeTensor,
        key: CubeTensor,
        value: CubeTensor,
        entries: usize,
        position: usize,
        softcap: Option<f32>,
    ) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        let new = New {
            key: into_contiguous(key),
            value: into_contiguous(value),
            positions: writable(positions),
            position,
        };
        let [keys, values] = [keys, values].map(writable);
        let positions = new.positions.clone();
        let mask = kernels::Mask::<Self> {
            softcap,
            window: Window::None,
        };
        let mask = Mask::of(mask, 1);
        let held = (keys.clone(), values.clone());
        let (output, row) = attend(q, [keys, values], entries, Some(new), None, mask);
        (output, row, held.0, held.1, positions)
    }

    fn count_hits(rows: CubeTensor, least: f32) -> CubeTensor {
        let rows = into_contiguous(rows);
        let [batch, kv_heads, group, n] = rows.shape().dims::<4>();
        let counts = empty(&rows, [batch, kv_heads, n], DType::F32);
        let client = rows.client.clone();
        // SAFETY: units beyond the `n` numbers of a head end; the others read theirs of `group` rows.
        unsafe {
            count_hits_kernel::launch_unchecked(
                &client,
                CubeCount::Static((batch * kv_heads) as u32, n.div_ceil(UNITS) as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                rows.into_tensor_arg(),
                counts.clone().into_tensor_arg(),
                least,
                n,
                group,
            );
        }
        counts
    }

    fn evict(
        scores: CubeTensor,
        of: ScoresOf,
        count: usize,
        keys: CubeTensor,
        values: CubeTensor,
        positions: CubeTensor,
        guard: Guard,
        before: Counts<Self>,
        key: CubeTensor,
        value: CubeTensor,
        position: usize,
    ) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        let scores = match of {
            // Rows of all heads lie behind each other.
            ScoresOf::Heads => into_contiguous(scores),
            ScoresOf::Group | ScoresOf::Positions => dense(scores),
        };
        let [keys, values, positions] = [keys, values, positions].map(writable);
        let (key, value) = (into_contiguous(key), into_contiguous(value));
        let [batch, kv_heads, group, _] = scores.shape().dims::<4>();
        let n = count;
        let dim = keys.shape().dims::<4>()[3];
        let victim = empty(&scores, [batch, kv_heads, 1], positions.dtype);
        let nans = empty(&scores, [batch, kv_heads], DType::F32);
        let before = before.tensor();
        let client = keys.client.clone();
        let dtypes = [keys.dtype, positions.dtype, key.dtype, value.dtype];
        let dtypes = dtypes.map(dtype_to_storage_type);
        debug_assert_eq!(keys.shape(), values.shape());
        debug_assert_eq!(keys.dtype, values.dtype);
        debug_assert_eq!(positions.shape().dims::<3>(), keys.shape().dims::<4>()[..3]);
        debug_assert!((1..=keys.shape().dims::<4>()[2]).contains(&n));
        debug_assert_eq!(key.shape().num_elements(), batch * kv_heads * dim);
        debug_assert_eq!(value.shape().num_elements(), batch * kv_heads * dim);
        debug_assert!(of == ScoresOf::Positions || scores.shape().dims::<4>()[3] == n);
        let rows = match of {
            ScoresOf::Positions => 0,
            ScoresOf::Group => group,
            ScoresOf::Heads => kv_heads * group,
        };
        // SAFETY: a cube has rows of a head's `n` scores, or of those of all heads, and the positions of as many entries, whose slots it finds the victim among; it
        // overwrites the elements of that entry below `dim`, through the strides of tensors that nobody else holds.
        unsafe {
            evict_kernel::launch_unchecked(
                &client,
                CubeCount::Static((batch * kv_heads) as u32, 1, 1),
                CubeDim::new_1d(CHOOSING as u32),
                scores.into_tensor_arg(),
                keys.clone().into_tensor_arg(),
                values.clone().into_tensor_arg(),
                positions.clone().into_tensor_arg(),
                spans(&victim, &guard),
                before.map(CubeTensor::into_buffer_arg).into(),
                key.into_tensor_arg(),
                value.into_tensor_arg(),
                victim.clone().into_tensor_arg(),
                nans.clone().into_tensor_arg(),
                rows,
                of == ScoresOf::Heads,
                n,
                guard.sinks,
                guard.recent,
                guard.spans.len(),
                position,
                dim,
                dtypes,
            );
        }
        (keys, values, positions, victim, nans)
    }

    fn evict_summed(
        sums: CubeTensor,
        rows: CubeTensor,
        seen: usize,
        keys: CubeTensor,
        values: CubeTensor,
        positions: CubeTensor,
        guard: Guard,
        before: Counts<Self>,
        key: CubeTensor,
        value: CubeTensor,
        position: usize,
    ) -> (
        CubeTensor,
        CubeTensor,
        CubeTensor,
        CubeTensor,
        CubeTensor,
        CubeTensor,
    ) {
        let [sums, rows, key, value] = [sums, rows, key, value].map(into_contiguous);
        let [keys, values, positions] = [keys, values, positions].map(writable);
        let [batch, kv_heads, group, n] = rows.shape().dims::<4>();
        let dim = keys.shape().dims::<4>()[3];
        let victim = empty(&sums, [batch, kv_heads, 1], positions.dtype);
        let nans = empty(&sums, [batch, kv_heads], DType::F32);
        let stay = empty(&sums, [batch, kv_heads, n - 1], DType::F32);
        let before = before.tensor();
        let client = keys.client.clone();
        let dtypes = [keys.dtype, positions.dtype, key.dtype, value.dtype];
        let dtypes = dtypes.map(dtype_to_storage_type);
        debug_assert_eq!(sums.shape(), stay.shape());
        debug_assert_eq!(keys.shape(), values.shape());
        debug_assert_eq!(keys.dtype, values.dtype);
        debug_assert_eq!(positions.shape().dims::<3>(), keys.shape().dims::<4>()[..3]);
        debug_assert!((1..=keys.shape().dims::<4>()[2]).contains(&n));
        debug_assert_eq!(key.shape().num_elements(), batch * kv_heads * dim);
        debug_assert_eq!(value.shape().num_elements(), batch * kv_heads * dim);
        // SAFETY: a cube has a head's `n` columns of `group` rows, the sums of all but the last, and the positions of as many entries, whose
        // slots it finds the victim among; it writes the sums of all but one, and overwrites the elements of that entry below
        // `dim`, through the strides of tensors that nobody else holds.
        unsafe {
            evict_summed_kernel::launch_unchecked(
                &client,
                CubeCount::Static((batch * kv_heads) as u32, 1, 1),
                CubeDim::new_1d(CHOOSING as u32),
                sums.into_tensor_arg(),
                rows.into_tensor_arg(),
                keys.clone().into_tensor_arg(),
                values.clone().into_tensor_arg(),
                positions.clone().into_tensor_arg(),
                spans(&victim, &guard),
                before.map(CubeTensor::into_buffer_arg).into(),
                key.into_tensor_arg(),
                value.into_tensor_arg(),
                victim.clone().into_tensor_arg(),
                nans.clone().into_tensor_arg(),
                stay.clone().into_tensor_arg(),
                group,
                seen.min(i32::MAX as usize) as i32,
                n,
                guard.sinks,
                guard.recent,
                guard.spans.len(),
                position,
                dim,
                dtypes,
            );
        }
        (keys, values, positions, victim, nans, stay)
    }
}

/// One unit per number.
#[cube(launch_unchecked)]
fn extend_kernel(statistics: &Tensor<f32>, extended: &mut Tensor<f32>, held: usize, all: usize) {
    let head = CUBE_POS_X as usize;
    let i = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if i >= all {
        terminate!();
    }
    let mut number = 0.0f32;
    if i < held {
        number = statistics[head * held + i];
    }
    extended[head * all + i] = number;
}

/// One unit per number.
#[cube(launch_unchecked)]
fn push_kernel(
    queries: &Tensor<f32>,
    new: &Tensor<f32>,
    pushed: &mut Tensor<f32>,
    all: usize,
    d: usize,
) {
    let head = CUBE_POS_X as usize;
    let i = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if i >= all {
        terminate!();
    }
    let mut number = 0.0f32;
    if i + d < all {
        number += queries[head * all + i + d];
    } else {
        number += new[head * d + i + d - all];
    }
    pushed[head * all + i] = number;
}

/// One unit per sum.
#[cube(launch_unchecked)]
fn add_mean_kernel(
    sums: &Tensor<f32>,
    rows: &Tensor<f32>,
    more: &mut Tensor<f32>,
    known: usize,
    n: usize,
    group: usize,
) {
    let head = CUBE_POS_X as usize;
    let i = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if i >= n {
        terminate!();
    }
    more[head * n + i] = sum_so_far(sums, rows, head, i, known, n, group);
}

/// The sum of a head's entry `i` of `n`, of which `known` have one, with the mean of the latest row.
#[cube]
pub(super) fn sum_so_far(
    sums: &Tensor<f32>,
    rows: &Tensor<f32>,
    head: usize,
    i: usize,
    known: usize,
    n: usize,
    group: usize,
) -> f32 {
    let mut latest = 0.0f32;
    for g in 0..group {
        latest += rows[(head * group + g) * n + i];
    }
    let mut sum = 0.0f32;
    if i < known {
        sum += sums[head * known + i];
    }
    sum + latest / f32::cast_from(group)
}

/// One unit per count.
#[cube(launch_unchecked)]
fn count_hits_kernel(
    rows: &Tensor<f32>,
    counts: &mut Tensor<f32>,
    least: f32,
    n: usize,
    group: usize,
) {
    let head = CUBE_POS_X as usize;
    let i = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if i >= n {
        terminate!();
    }
    let mut count = 0.0f32;
    for g in 0..group {
        if rows[(head * group + g) * n + i] >= least {
            count += 1.0f32;
        }
    }
    counts[head * n + i] = count;
}

/// One cube per sequence and KV head.
#[cube(launch_unchecked)]
fn evict_kernel<E: Float, I: Int, K: Float, V: Float>(
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
        scores,
        false,
        0,
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
fn evict_summed_kernel<E: Float, I: Int, K: Float, V: Float>(
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
    let kv = CUBE_POS_X as usize;
    let slot = find_lowest::<I>(
        rows,
        group,
        0,
        false,
        sums,
        true,
        seen,
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
    let last = n - 1;
    let mut i = UNIT_POS_X as usize;
    while i < last {
        let from = select(i == slot, last, i);
        stay[kv * last + i] = sum_so_far(sums, rows, kv, from, last, n, group);
        i += CHOOSING;
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
        d += CHOOSING;
    }
    if unit == 0 {
        let at = batch * positions.stride(0) + head * positions.stride(1);
        let at = at + slot * positions.stride(2);
        positions[at] = I::cast_from(position);
    }
}
