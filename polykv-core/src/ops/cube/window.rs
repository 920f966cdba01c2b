//! What the last queries of a prompt pay attention to. The scores of the window, `group · w` rows per KV head, are
//! computed once and lie on the device until two short kernels have read them.

use super::{HIDDEN, cap, dense, empty, in_window, length, unrolls, width};
use crate::ops::kernels::WindowOps;
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

const UNITS: usize = 64;

impl WindowOps for CubeBackend {
    fn window_score(
        q: CubeTensor,
        k: CubeTensor,
        positions: CubeTensor,
        seen: usize,
        sliding: Option<usize>,
        softcap: Option<f32>,
    ) -> (CubeTensor, CubeTensor) {
        let (q, k, positions) = (dense(q), dense(k), into_contiguous(positions));
        let [batch, heads, window, dim] = q.shape().dims::<4>();
        let [_, kv_heads, n, _] = k.shape().dims::<4>();
        let (group, kv) = (heads / kv_heads, batch * kv_heads);
        let width = width(&[&q, &k]);
        let scores = empty(&q, [kv, group * window, n], DType::F32);
        let log_sums = empty(&q, [kv, group * window], DType::F32);
        let sums = empty(&q, [batch, kv_heads, n], DType::F32);
        let variances = empty(&q, [batch, kv_heads, n], DType::F32);
        let client = q.client.clone();
        let known = unrolls(&client);
        let dtypes = [k.dtype, positions.dtype].map(dtype_to_storage_type);
        let tiles = n.div_ceil(UNITS) as u32;
        let (units, kv) = (CubeDim::new_1d(UNITS as u32), kv as u32);
        debug_assert!(window <= seen);
        debug_assert_eq!(positions.shape().num_elements(), (kv as usize) * n);
        // SAFETY: units beyond the keys end. The others have one key, pass the `group · window` rows of its head, for
        // which `scores` has `n` numbers each, and write their own sums; positions are only compared. Cubes of the second
        // kernel have a row each.
        unsafe {
            scores_kernel::launch_unchecked(
                &client,
                CubeCount::Static(kv, tiles, group as u32),
                units,
                width,
                q.into_tensor_arg(),
                k.into_tensor_arg(),
                positions.into_tensor_arg(),
                scores.clone().into_tensor_arg(),
                1.0 / (dim as f32).sqrt(),
                softcap.unwrap_or(0.0),
                seen - window,
                sliding.unwrap_or(0),
                window,
                dim / width,
                softcap.is_some(),
                sliding.is_some(),
                dim / width,
                width,
                known,
                dtypes,
            );
            log_sums_kernel::launch_unchecked(
                &client,
                CubeCount::Static(kv * (group * window) as u32, 1, 1),
                units,
                scores.clone().into_tensor_arg(),
                log_sums.clone().into_tensor_arg(),
                n,
            );
            columns_kernel::launch_unchecked(
                &client,
                CubeCount::Static(kv, tiles, 1),
                units,
                scores.into_tensor_arg(),
                log_sums.into_tensor_arg(),
                sums.clone().into_tensor_arg(),
                variances.clone().into_tensor_arg(),
                n,
                window,
                group,
            );
        }
        (sums, variances)
    }
}

/// One unit per key, which stays in its registers while the rows of a query head pass.
#[cube(launch_unchecked)]
fn scores_kernel<E: Float, I: Int, N: Size>(
    q: &Tensor<Vector<f32, N>>,
    k: &Tensor<Vector<E, N>>,
    positions: &Tensor<I>,
    scores: &mut Tensor<f32>,
    scale: f32,
    softcap: f32,
    first: usize,
    size: usize,
    window: usize,
    steps: usize,
    #[comptime] capped: bool,
    #[comptime] slides: bool,
    #[comptime] words: usize,
    #[comptime] width: usize,
    #[comptime] known: bool,
    #[define(E, I)] _dtypes: [ElemType; 2],
) {
    let steps = length(steps, words, known);
    let kv = CUBE_POS_X as usize;
    let (kv_heads, n) = (k.shape(1), k.shape(2));
    let j = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if j >= n {
        terminate!();
    }
    let at = (kv / kv_heads * k.stride(0) + kv % kv_heads * k.stride(1) + j * k.stride(2)) / width;
    let mut key = Array::<Vector<f32, N>>::new(words);
    for w in 0..steps {
        key[w] = Vector::<f32, N>::cast_from(k[at + w]) * Vector::new(scale);
    }
    let position = usize::cast_from(positions[kv * n + j]);
    let mut last = window;
    if comptime!(slides) {
        last = in_window::<I>(positions[kv * n + j], size, first, window);
    }
    let head = CUBE_POS_Z as usize;
    let heads = CUBE_COUNT_Z as usize;
    let start = kv / kv_heads * q.stride(0) + (kv % kv_heads * heads + head) * q.stride(1);
    for i in 0..window {
        let at = (start + i * q.stride(2)) / width;
        let mut products = Vector::<f32, N>::new(0.0f32);
        for w in 0..steps {
            products += key[w] * q[at + w];
        }
        let mut score = 0.0f32;
        #[unroll]
        for lane in 0..width {
            score += products.extract(lane);
        }
        score = cap(score, softcap, capped);
        if position > first + i || i >= last {
            score = HIDDEN;
        }
        scores[((kv * heads + head) * window + i) * n + j] = score;
    }
}

/// One cube per row: the log-sum-exp of its scores, larger than any score where all of them are hidden.
#[cube(launch_unchecked)]
fn log_sums_kernel(scores: &Tensor<f32>, log_sums: &mut Tensor<f32>, n: usize) {
    let row = CUBE_POS_X as usize;
    let unit = UNIT_POS_X as usize;
    let mut most = f32::new(HIDDEN);
    let mut j = unit;
    while j < n {
        most = max(most, scores[row * n + j]);
        j += UNITS;
    }
    let mut total = 0.0f32;
    let mut j = unit;
    while j < n {
        total += (scores[row * n + j] - most).exp();
        j += UNITS;
    }
    let mut all_most = Shared::<[f32]>::new_slice(UNITS);
    let mut all_totals = Shared::<[f32]>::new_slice(UNITS);
    all_most[unit] = most;
    all_totals[unit] = total;
    sync_cube();
    if unit == 0 {
        let mut most = f32::new(HIDDEN);
        for u in 0..UNITS {
            most = max(most, all_most[u]);
        }
        let mut total = 0.0f32;
        for u in 0..UNITS {
            total += all_totals[u] * (all_most[u] - most).exp();
        }
        let mut log_sum = most + total.ln();
        if most <= HIDDEN {
            log_sum = -HIDDEN;
        }
        log_sums[row] = log_sum;
    }
}

/// One unit per key; the variance by Welford's running mean.
#[cube(launch_unchecked)]
fn columns_kernel(
    scores: &Tensor<f32>,
    log_sums: &Tensor<f32>,
    sums: &mut Tensor<f32>,
    variances: &mut Tensor<f32>,
    n: usize,
    window: usize,
    group: usize,
) {
    let kv = CUBE_POS_X as usize;
    let j = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if j >= n {
        terminate!();
    }
    let mut sum = 0.0f32;
    let mut squares = 0.0f32;
    for g in 0..group {
        let mut mean = 0.0f32;
        for i in 0..window {
            let row = (kv * group + g) * window + i;
            let p = (scores[row * n + j] - log_sums[row]).exp();
            let delta = p - mean;
            mean += delta / f32::cast_from(i + 1);
            squares += delta * (p - mean);
            sum += p;
        }
    }
    sums[kv * n + j] = sum / f32::cast_from(group);
    variances[kv * n + j] = squares / f32::cast_from(group * max(window - 1, 1));
}
