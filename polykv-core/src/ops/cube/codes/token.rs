//! Attention of one token per sequence over entries in codes: each word is read once for the queries of its group, or for
//! four of them at a time, and no vector is decoded into memory. The parts are joined as those of floats are.

use super::Channels;
use super::run::{code_words, decode_word, number_of, per_word};
use crate::codes::Codes;
use crate::ops::cube::token::{CHUNK, exponentiate, join_kernel};
use crate::ops::cube::{HIDDEN, Mask, cap, dense, empty, in_window, share, width};
use crate::ops::kernels::{self, ExactEntries, Relative};
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// `q [batch, heads, 1, d]`, words of keys and values `[batch, kv_heads, capacity, words]` → the output like `q` and the
/// probabilities of the first `n` entries, `[batch, kv_heads, group, n]`.
pub fn attend(
    q: CubeTensor,
    words: [CubeTensor; 2],
    relative: Relative<CubeBackend>,
    exact: ExactEntries<CubeBackend>,
    codes: Codes,
    n: usize,
    mask: kernels::Mask<CubeBackend>,
) -> (CubeTensor, CubeTensor) {
    let (q, [keys, values]) = (into_contiguous(q), words.map(dense));
    let mask = Mask::of(mask, 1);
    let [batch, heads, _, dim] = q.shape().dims::<4>();
    let [_, kv_heads, capacity, in_entry] = keys.shape().dims::<4>();
    let group = heads / kv_heads;
    let part = share(group, 4);
    let in_vector = code_words(codes, dim);
    // Every word of the codes of a value has a unit of its own.
    let units = in_vector.next_power_of_two().max(64);
    let splits = n.div_ceil(CHUNK);
    let blocks = batch * heads / part;
    let parts = empty(&q, [blocks, splits, part, dim], DType::F32);
    let stats = empty(&q, [blocks, splits, part, 2], DType::F32);
    let row = empty(&q, [batch, kv_heads, group, n], DType::F32);
    let output = empty(&q, [batch, heads, 1, dim], DType::F32);
    let channels = Channels::of(relative, &q);
    let (exact_keys, exact_values, slots, exact) = match exact {
        ExactEntries::None => {
            let none = empty(&q, [1], DType::F32);
            (none.clone(), none, empty(&q, [1], DType::I32), 0)
        }
        ExactEntries::Rows {
            keys,
            values,
            slots,
        } => {
            let each = slots.shape().dims::<3>()[2];
            let [keys, values, slots] = [keys, values, slots].map(into_contiguous);
            (keys, values, slots, each)
        }
    };
    let client = q.client.clone();
    let dtypes = [exact_keys.dtype, slots.dtype, mask.dtype()].map(dtype_to_storage_type);
    let width = width(&[&output]);
    debug_assert!(channels.fits(batch * kv_heads, dim));
    debug_assert_eq!(keys.shape(), values.shape());
    debug_assert_eq!(exact_keys.dtype, exact_values.dtype);
    debug_assert!(in_entry == codes.words(dim) && (1..=capacity).contains(&n));
    debug_assert!(heads.is_multiple_of(kv_heads) && group.is_multiple_of(part));
    debug_assert!(exact <= units && units >= in_vector);
    // SAFETY: a cube has `part` queries of a KV head and a split of its first `n` entries. It writes the places of its block and
    // split; shared memory has a place per unit, code and key of a split; slots of exact entries are only used between the ends
    // of the split. The second kernel has a cube per query head and reads all splits.
    unsafe {
        part_kernel::launch_unchecked(
            &client,
            CubeCount::Static(blocks as u32, splits as u32, 1),
            CubeDim::new_1d(units as u32),
            q.into_tensor_arg(),
            keys.into_tensor_arg(),
            values.into_tensor_arg(),
            channels.mean.into_buffer_arg(),
            channels.scale.into_buffer_arg(),
            exact_keys.into_buffer_arg(),
            exact_values.into_buffer_arg(),
            slots.into_buffer_arg(),
            row.clone().into_tensor_arg(),
            parts.clone().into_tensor_arg(),
            stats.clone().into_tensor_arg(),
            mask.positions.map(CubeTensor::into_buffer_arg).into(),
            n,
            1.0 / (dim as f32).sqrt(),
            mask.softcap,
            mask.size,
            mask.first,
            channels.relative,
            mask.capped,
            exact,
            group,
            part,
            units,
            codes,
            dim,
            dtypes,
        );
        let none: Option<CubeTensor> = None;
        join_kernel::launch_unchecked(
            &client,
            CubeCount::Static((batch * heads) as u32, 1, 1),
            CubeDim::new_1d(units as u32),
            width,
            parts.into_tensor_arg(),
            stats.into_tensor_arg(),
            none.clone().map(CubeTensor::into_buffer_arg).into(),
            none.map(CubeTensor::into_buffer_arg).into(),
            row.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            splits,
            n,
            0,
            n,
            group,
            part,
            dim / width,
            units,
            [dtype_to_storage_type(DType::I32); 2],
        );
    }
    (output, row)
}

/// One cube per (`part` queries of a KV head, `CHUNK` entries). `parts` get the values weighted by the exponentials relative to
/// the part's largest score, `stats` that score and the exponentials' sum, `row` the exponentials.
///
/// Queries lie in the order of codes and hold what the channels of keys multiply by, so that a key is only `step · (code −
/// zero)`; what its channels add is the same for all keys.
#[cube(launch_unchecked)]
fn part_kernel<E: Float, I: Int, P: Int>(
    q: &Tensor<f32>,
    keys: &Tensor<u32>,
    values: &Tensor<u32>,
    mean: &[f32],
    channel_scale: &[f32],
    exact_keys: &[E],
    exact_values: &[E],
    slots: &[I],
    row: &mut Tensor<f32>,
    parts: &mut Tensor<f32>,
    stats: &mut Tensor<f32>,
    positions: ComptimeOption<&[P]>,
    n: usize,
    scale: f32,
    softcap: f32,
    size: usize,
    position: usize,
    #[comptime] relative: bool,
    #[comptime] capped: bool,
    #[comptime] exact: usize,
    #[comptime] group: usize,
    #[comptime] part: usize,
    #[comptime] units: usize,
    #[comptime] codes: Codes,
    #[comptime] dim: usize,
    #[define(E, I, P)] _dtypes: [ElemType; 3],
) {
    let per = comptime!(per_word(codes));
    let in_vector = comptime!(code_words(codes, dim));
    let coded = comptime!(in_vector * per);
    let unit = UNIT_POS_X as usize;
    let block = CUBE_POS_X as usize;
    let split = CUBE_POS_Y as usize;
    let splits = CUBE_COUNT_Y as usize;
    let kv = block / comptime!(group / part);
    let kv_heads = keys.shape(1);
    let (batch, head) = (kv / kv_heads, kv % kv_heads);
    let first = split * CHUNK;
    let count = min(n - first, CHUNK);

    let mut queries = Shared::<[f32]>::new_slice(comptime!(part * coded));
    let mut shared = Shared::<[f32]>::new_slice(part);
    let mut exact_rows = Shared::<[u32]>::new_slice(comptime!(CHUNK));
    let mut scores = Shared::<[f32]>::new_slice(comptime!(part * CHUNK));
    let mut most = Shared::<[f32]>::new_slice(part);
    let mut gathered = Shared::<[f32]>::new_slice(comptime!(part * units));
    let mut sums = Shared::<[f32]>::new_slice(comptime!(part * units * per));

    let mut i = unit;
    while i < comptime!(part * coded) {
        let number = number_of(i % coded, codes, dim);
        let mut x = 0.0f32;
        if number < dim {
            x = q[(block * part + i / coded) * dim + number] * scale;
            if comptime!(relative) {
                x *= channel_scale[kv * dim + number];
            }
        }
        queries[i] = x;
        i += units;
    }
    if unit < part {
        let mut sum = 0.0f32;
        if comptime!(relative) {
            for d in 0..dim {
                sum += q[(block * part + unit) * dim + d] * mean[kv * dim + d];
            }
        }
        shared[unit] = sum * scale;
    }
    // Which entries are exact: 0 for none, else one more than the row.
    let mut j = unit;
    while j < CHUNK {
        exact_rows[j] = 0u32;
        j += units;
    }
    sync_cube();
    if unit < exact {
        let slot = i32::cast_from(slots[kv * exact + unit]) - i32::cast_from(first);
        if slot >= 0i32 && slot < i32::cast_from(count) {
            exact_rows[slot as usize] = unit as u32 + 1u32;
        }
    }
    sync_cube();

    // One key per unit.
    let key_start = batch * keys.stride(0) + head * keys.stride(1) + first * keys.stride(2);
    let mut best = Array::<f32>::new(part);
    #[unroll]
    for g in 0..part {
        best[g] = HIDDEN;
    }
    let mut j = unit;
    while j < count {
        let at = key_start + j * keys.stride(2);
        let exact_row = exact_rows[j] as usize;
        let mut products = Array::<f32>::new(part);
        #[unroll]
        for g in 0..part {
            products[g] = shared[g];
        }
        for w in 0..in_vector {
            let mut x = Array::<f32>::new(per);
            if exact_row == 0usize {
                decode_word(keys, at, w, &mut x, codes, dim);
            } else {
                let from = (kv * exact + exact_row - 1) * dim;
                for c in 0..per {
                    x[c] = 0.0f32;
                    let number = number_of(w * per + c, codes, dim);
                    if number < dim {
                        let mut key = f32::cast_from(exact_keys[from + number]);
                        if comptime!(relative) {
                            let channel = kv * dim + number;
                            key = (key - mean[channel]) / channel_scale[channel];
                        }
                        x[c] = key;
                    }
                }
            }
            #[unroll]
            for g in 0..part {
                #[unroll]
                for c in 0..per {
                    products[g] += x[c] * queries[g * coded + w * per + c];
                }
            }
        }
        let place = kv * n + first + j;
        let seen_by: ComptimeOption<usize> =
            positions.map(|all| in_window::<P>(all[place], size, position, n));
        // There is one query: more than 0 mean that it sees the key.
        let seen_by = seen_by.unwrap_or(n);
        #[unroll]
        for g in 0..part {
            let mut score = cap(products[g], softcap, capped);
            if seen_by == 0usize {
                score = HIDDEN;
            }
            scores[g * CHUNK + j] = score;
            best[g] = max(best[g], score);
        }
        j += units;
    }
    let place = (block * splits + split) * part;
    exponentiate(
        &best,
        &mut scores,
        &mut most,
        &mut gathered,
        row,
        block * part * n + first,
        stats,
        place,
        n,
        count,
        count,
        part,
        units,
    );

    // One word per unit, and as many values at a time as there are units for.
    let slices = comptime!(units / in_vector);
    let (word, slice) = (unit % in_vector, unit / in_vector);
    let value_start = batch * values.stride(0) + head * values.stride(1) + first * values.stride(2);
    if slice < slices {
        let mut weighted = Array::<f32>::new(comptime!(part * per));
        #[unroll]
        for i in 0..comptime!(part * per) {
            weighted[i] = 0.0f32;
        }
        let mut j = slice;
        while j < count {
            let at = value_start + j * values.stride(2);
            let exact_row = exact_rows[j] as usize;
            let mut x = Array::<f32>::new(per);
            if exact_row == 0usize {
                decode_word(values, at, word, &mut x, codes, dim);
            } else {
                let from = (kv * exact + exact_row - 1) * dim;
                for c in 0..per {
                    x[c] = 0.0f32;
                    let number = number_of(word * per + c, codes, dim);
                    if number < dim {
                        x[c] = f32::cast_from(exact_values[from + number]);
                    }
                }
            }
            #[unroll]
            for g in 0..part {
                #[unroll]
                for c in 0..per {
                    weighted[g * per + c] += x[c] * scores[g * CHUNK + j];
                }
            }
            j += slices;
        }
        #[unroll]
        for g in 0..part {
            #[unroll]
            for c in 0..per {
                sums[(g * slices + slice) * coded + word * per + c] = weighted[g * per + c];
            }
        }
    }
    sync_cube();
    let mut i = unit;
    while i < comptime!(part * coded) {
        let (g, code) = (i / coded, i % coded);
        let number = number_of(code, codes, dim);
        if number < dim {
            let mut sum = 0.0f32;
            for s in 0..slices {
                sum += sums[(g * slices + s) * coded + code];
            }
            parts[(place + g) * dim + number] = sum;
        }
        i += units;
    }
}
