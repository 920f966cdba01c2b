//! Causal attention of many queries by online softmax, and the sums and maxima of its columns. No row of scores ever exists.

use super::{HIDDEN, Mask, cap, dense, empty, in_window, length, unrolls, width};
use crate::ops::kernels::{self, PromptOps};
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Queries per cube, or keys where columns are summed.
const UNITS: usize = 64;
/// Keys that a cube holds at a time: as many as fit 16 KiB of shared memory beside their values.
fn tile_keys(dim: usize) -> usize {
    (2048 / dim.max(1)).clamp(1, 16)
}

impl PromptOps for CubeBackend {
    fn attend_prompt(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        mask: kernels::Mask<Self>,
    ) -> (CubeTensor, CubeTensor) {
        let (q, k, v) = (into_contiguous(q), dense(k), dense(v));
        let [batch, heads, tokens, dim] = q.shape().dims::<4>();
        let mask = Mask::of(mask, tokens);
        let kv_heads = k.shape()[1];
        let width = width(&[&k, &v]);
        let output = empty(&q, [batch, heads, tokens, dim], DType::F32);
        let log_sums = empty(&q, [batch, heads, tokens], DType::F32);
        let client = q.client.clone();
        let known = unrolls(&client);
        let dtypes = [k.dtype, mask.dtype()].map(dtype_to_storage_type);
        let tiles = tokens.div_ceil(UNITS) as u32;
        let tile = tile_keys(dim);
        debug_assert_eq!(k.shape(), v.shape());
        debug_assert_eq!(k.dtype, v.dtype);
        debug_assert!(tokens <= k.shape()[2] && heads.is_multiple_of(kv_heads));
        // SAFETY: keys, values and positions are read at rows cut to `n − 1`, queries at rows cut to the last; only units
        // with a query write, to its row. Shared memory has a tile's words; positions are only compared.
        unsafe {
            attend_kernel::launch_unchecked(
                &client,
                CubeCount::Static((batch * heads) as u32, tiles, 1),
                CubeDim::new_1d(UNITS as u32),
                width,
                q.into_tensor_arg(),
                k.into_tensor_arg(),
                v.into_tensor_arg(),
                output.clone().into_tensor_arg(),
                log_sums.clone().into_tensor_arg(),
                mask.positions.map(CubeTensor::into_buffer_arg).into(),
                1.0 / (dim as f32).sqrt(),
                mask.softcap,
                mask.size,
                mask.first,
                heads / kv_heads,
                tile,
                dim / width,
                mask.capped,
                tile,
                dim / width,
                width,
                known,
                dtypes,
            );
        }
        (output, log_sums)
    }

    fn attend_summed(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        mask: kernels::Mask<Self>,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let (q, k) = (into_contiguous(q), dense(k));
        let (output, log_sums) = Self::attend_prompt(q.clone(), k.clone(), v, mask.clone());
        let sums = Self::column_sums(q, k, log_sums.clone(), mask);
        (output, log_sums, sums)
    }

    fn column_sums(
        q: CubeTensor,
        k: CubeTensor,
        log_sums: CubeTensor,
        mask: kernels::Mask<Self>,
    ) -> CubeTensor {
        columns([q, k, log_sums], mask, false)
    }

    fn column_max(
        q: CubeTensor,
        k: CubeTensor,
        log_sums: CubeTensor,
        mask: kernels::Mask<Self>,
    ) -> CubeTensor {
        columns([q, k, log_sums], mask, true)
    }
}

/// The sums over the columns, or the largest of them.
fn columns(
    [q, k, log_sums]: [CubeTensor; 3],
    mask: kernels::Mask<CubeBackend>,
    largest: bool,
) -> CubeTensor {
    let (q, k, log_sums) = (into_contiguous(q), dense(k), into_contiguous(log_sums));
    let [_, heads, tokens, dim] = q.shape().dims::<4>();
    let mask = Mask::of(mask, tokens);
    let [batch, kv_heads, n, _] = k.shape().dims::<4>();
    let width = width(&[&k]);
    let sums = empty(&q, [batch, kv_heads, n], DType::F32);
    let client = q.client.clone();
    let known = unrolls(&client);
    let dtypes = [k.dtype, mask.dtype()].map(dtype_to_storage_type);
    debug_assert_eq!(
        log_sums.shape().num_elements(),
        batch * heads * q.shape()[2]
    );
    debug_assert!(q.shape()[2] <= n && heads.is_multiple_of(kv_heads));
    // SAFETY: units beyond the keys end; the others read their own key and the queries of its head, below all of them,
    // and write their own sum.
    unsafe {
        columns_kernel::launch_unchecked(
            &client,
            CubeCount::Static((batch * kv_heads) as u32, n.div_ceil(UNITS) as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            width,
            q.into_tensor_arg(),
            k.into_tensor_arg(),
            log_sums.into_tensor_arg(),
            sums.clone().into_tensor_arg(),
            mask.positions.map(CubeTensor::into_buffer_arg).into(),
            1.0 / (dim as f32).sqrt(),
            mask.softcap,
            mask.size,
            mask.first,
            heads / kv_heads,
            dim / width,
            mask.capped,
            dim / width,
            width,
            known,
            largest,
            dtypes,
        );
    }
    sums
}

/// One unit per query; keys and values pass through shared memory.
#[cube(launch_unchecked)]
fn attend_kernel<E: Float, I: Int, N: Size>(
    q: &Tensor<Vector<f32, N>>,
    k: &Tensor<Vector<E, N>>,
    v: &Tensor<Vector<E, N>>,
    output: &mut Tensor<Vector<f32, N>>,
    log_sums: &mut Tensor<f32>,
    positions: ComptimeOption<&[I]>,
    scale: f32,
    softcap: f32,
    size: usize,
    first_position: usize,
    group: usize,
    tile_keys: usize,
    steps: usize,
    #[comptime] capped: bool,
    #[comptime] tile_size: usize,
    #[comptime] words: usize,
    #[comptime] width: usize,
    #[comptime] known: bool,
    #[define(E, I)] _dtypes: [ElemType; 2],
) {
    let steps = length(steps, words, known);
    let tile_keys = length(tile_keys, tile_size, known);
    let unit = UNIT_POS_X as usize;
    let block = CUBE_POS_X as usize;
    let first = CUBE_POS_Y as usize * UNITS;
    let (heads, tokens, n) = (q.shape(1), q.shape(2), k.shape(2));
    let batch = block / heads;
    let head = block % heads / group;
    let i = first + unit;
    // Units without a query help to load; what they compute is not written.
    let row = block * tokens + min(i, tokens - 1);
    let visible = n - tokens + i + 1;
    let end = min(n - tokens + first + UNITS, n);
    let mut keys = Shared::<[Vector<f32, N>]>::new_slice(comptime!(tile_size * words));
    let mut values = Shared::<[Vector<f32, N>]>::new_slice(comptime!(tile_size * words));
    let mut query = Array::<Vector<f32, N>>::new(words);
    let mut result = Array::<Vector<f32, N>>::new(words);
    for w in 0..steps {
        query[w] = q[row * words + w] * Vector::new(scale);
        result[w] = Vector::new(0.0f32);
    }
    let key_start = (batch * k.stride(0) + head * k.stride(1)) / width;
    let value_start = (batch * v.stride(0) + head * v.stride(1)) / width;
    let (key_step, value_step) = (k.stride(2) / width, v.stride(2) / width);
    let mut most = f32::new(HIDDEN);
    let mut total = 0.0f32;
    let mut scores = Array::<f32>::new(tile_size);
    let tiles = (end + tile_keys - 1) / tile_keys;
    for tile in 0..tiles {
        let start = tile * tile_keys;
        sync_cube();
        let mut at = unit;
        while at < comptime!(tile_size * words) {
            // Beyond the end any key does, its score is hidden.
            let j = min(start + at / words, n - 1);
            let w = at % words;
            keys[at] = Vector::<f32, N>::cast_from(k[key_start + j * key_step + w]);
            values[at] = Vector::<f32, N>::cast_from(v[value_start + j * value_step + w]);
            at += UNITS;
        }
        sync_cube();
        let mut top = most;
        for s in 0..tile_keys {
            let mut products = Vector::<f32, N>::new(0.0f32);
            for w in 0..steps {
                products += query[w] * keys[s * words + w];
            }
            let mut score = 0.0f32;
            #[unroll]
            for lane in 0..width {
                score += products.extract(lane);
            }
            score = cap(score, softcap, capped);
            if start + s >= visible {
                score = HIDDEN;
            }
            let at = (batch * k.shape(1) + head) * n + min(start + s, n - 1);
            let seen_by: ComptimeOption<usize> =
                positions.map(|all| in_window::<I>(all[at], size, first_position, tokens));
            if i >= seen_by.unwrap_or(tokens) {
                score = HIDDEN;
            }
            scores[s] = score;
            top = max(top, score);
        }
        let decay = (most - top).exp();
        total *= decay;
        for w in 0..steps {
            result[w] *= Vector::new(decay);
        }
        for s in 0..tile_keys {
            let p = (scores[s] - top).exp();
            total += p;
            for w in 0..steps {
                result[w] += values[s * words + w] * Vector::new(p);
            }
        }
        most = top;
    }
    if i < tokens {
        for w in 0..steps {
            output[row * words + w] = result[w] / Vector::new(total);
        }
        log_sums[row] = most + total.ln();
    }
}

/// One unit per key, which stays in its registers while the queries that see it pass.
#[cube(launch_unchecked)]
fn columns_kernel<E: Float, I: Int, N: Size>(
    q: &Tensor<Vector<f32, N>>,
    k: &Tensor<Vector<E, N>>,
    log_sums: &Tensor<f32>,
    sums: &mut Tensor<f32>,
    positions: ComptimeOption<&[I]>,
    scale: f32,
    softcap: f32,
    size: usize,
    first_position: usize,
    group: usize,
    steps: usize,
    #[comptime] capped: bool,
    #[comptime] words: usize,
    #[comptime] width: usize,
    #[comptime] known: bool,
    #[comptime] largest: bool,
    #[define(E, I)] _dtypes: [ElemType; 2],
) {
    let steps = length(steps, words, known);
    let kv = CUBE_POS_X as usize;
    let (kv_heads, tokens, n) = (k.shape(1), q.shape(2), k.shape(2));
    let j = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if j >= n {
        terminate!();
    }
    let at = (kv / kv_heads * k.stride(0) + kv % kv_heads * k.stride(1) + j * k.stride(2)) / width;
    let mut key = Array::<Vector<f32, N>>::new(words);
    for w in 0..steps {
        key[w] = Vector::<f32, N>::cast_from(k[at + w]) * Vector::new(scale);
    }
    // Query i sees the keys up to n − tokens + i.
    let hidden = n - tokens;
    let mut first = 0usize;
    if j > hidden {
        first = j - hidden;
    }
    let seen_by: ComptimeOption<usize> =
        positions.map(|all| in_window::<I>(all[kv * n + j], size, first_position, tokens));
    let last = seen_by.unwrap_or(tokens);
    let mut sum = 0.0f32;
    for g in 0..group {
        for i in first..last {
            let row = (kv * group + g) * tokens + i;
            let mut products = Vector::<f32, N>::new(0.0f32);
            for w in 0..steps {
                products += key[w] * q[row * words + w];
            }
            let mut score = 0.0f32;
            #[unroll]
            for lane in 0..width {
                score += products.extract(lane);
            }
            let p = (cap(score, softcap, capped) - log_sums[row]).exp();
            if comptime!(largest) {
                sum = max(sum, p);
            } else {
                sum += p;
            }
        }
    }
    if comptime!(!largest) {
        sum /= f32::cast_from(group);
    }
    sums[kv * n + j] = sum;
}
