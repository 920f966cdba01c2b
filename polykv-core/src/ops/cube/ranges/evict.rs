//! The eviction of one entry of every KV head that holds more than its budget.

use super::super::choice::{UNITS, is_nan_bits, lowest_of_units, rank};
use super::super::empty;
use super::{Ranges, at_step, first_of, held_of, number};
use crate::ops::ranges::table::{BUDGET, FIELDS, ID, RECENT, RULE, SINKS};
use crate::ops::ranges::table::{KEEPS, OF_GROUP, OF_HEADS, OF_SUMS, OF_VISIBLE_SUMS};
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Entries, sums and counts of NaN scores after the eviction by `rows [1, 1, group, slots]` and by sums, to which the rows are
/// added.
pub fn evict(
    rows: CubeTensor,
    [keys, values, positions]: [CubeTensor; 3],
    [sums, nans]: [CubeTensor; 2],
    ranges: Ranges,
) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
    let Ranges {
        table,
        steps,
        kv_heads,
    } = ranges;
    let rows = into_contiguous(rows);
    let [_, _, group, slots] = rows.shape().dims::<4>();
    let dim = keys.shape().dims::<4>()[3];
    let heads = table.shape().dims::<2>()[0];
    let client = keys.client.clone();
    let spans = empty(&keys, [1], DType::I32);
    let dtypes = [keys.dtype, positions.dtype, table.dtype].map(dtype_to_storage_type);
    debug_assert_eq!(keys.shape(), values.shape());
    debug_assert_eq!(keys.dtype, values.dtype);
    debug_assert_eq!(positions.shape().num_elements(), slots);
    debug_assert_eq!(sums.shape().num_elements(), slots);
    debug_assert_eq!(table.shape().dims::<2>()[1], FIELDS);
    debug_assert!(heads.is_multiple_of(kv_heads));
    // SAFETY: a cube has a row of the table, whose range `first_of` and `held_of` put within the slots; it writes entries, positions
    // and sums of that range, and one of the counts of NaN scores, whose index is cut to their number. Nobody else holds them.
    unsafe {
        evict_ranges_kernel::launch_unchecked(
            &client,
            CubeCount::Static(heads as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            rows.into_tensor_arg(),
            keys.clone().into_tensor_arg(),
            values.clone().into_tensor_arg(),
            positions.clone().into_tensor_arg(),
            sums.clone().into_tensor_arg(),
            nans.clone().into_tensor_arg(),
            ComptimeOptionArgs::Some(table.into_buffer_arg()),
            spans.into_buffer_arg(),
            steps,
            slots,
            group,
            kv_heads,
            dim,
            dtypes,
        );
    }
    (keys, values, positions, sums, nans)
}

/// One cube per sequence and KV head.
#[cube(launch_unchecked)]
fn evict_ranges_kernel<E: Float, I: Int, T: Int>(
    rows: &Tensor<f32>,
    keys: &mut Tensor<E>,
    values: &mut Tensor<E>,
    positions: &mut Tensor<I>,
    sums: &mut Tensor<f32>,
    nans: &mut Tensor<f32>,
    table: ComptimeOption<&[T]>,
    spans: &[i32],
    steps: usize,
    slots: usize,
    group: usize,
    kv_heads: usize,
    dim: usize,
    #[define(E, I, T)] _dtypes: [ElemType; 3],
) {
    let kv = CUBE_POS_X as usize;
    let unit = UNIT_POS_X as usize;
    let start = first_of::<T>(table, kv, slots);
    let n = held_of::<T>(table, kv, steps, slots, 0usize);
    let last = n - 1;
    let seen = at_step::<T>(table, kv, steps) as i32 + 1;
    let rule = number::<T>(table, kv, RULE, 0usize);
    let budget = number::<T>(table, kv, BUDGET, 0usize);
    let sinks = number::<T>(table, kv, SINKS, 0usize) as i32;
    let recent = seen - number::<T>(table, kv, RECENT, 0usize) as i32;
    // The KV heads whose rows make the scores.
    let mut first_head = kv;
    let mut heads = 1usize;
    if rule == OF_HEADS {
        first_head = kv - kv % kv_heads;
        heads = kv_heads;
    }

    let mut least = 0xFFFF_FFFFu32;
    let mut place = 0xFFFF_FFFFu32;
    let mut slot = 0u32;
    let mut count = 0u32;
    let mut j = unit;
    if rule == KEEPS {
        j = n;
    }
    while j < n {
        let position = i32::cast_from(positions[start + j]);
        let mut score = f32::cast_from(position);
        if rule >= OF_GROUP {
            score = 0.0f32;
            for h in 0..heads {
                let at = first_of::<T>(table, first_head + h, slots) + j;
                for g in 0..group {
                    score += rows[g * slots + at];
                }
            }
            score /= f32::cast_from((heads * group) as u32);
        }
        if rule >= OF_SUMS {
            if j < last {
                score += sums[start + j];
            }
            sums[start + j] = score;
        }
        if rule == OF_VISIBLE_SUMS {
            score /= f32::cast_from(seen - position);
        }
        let key = rank(score, position, spans, sinks, recent, 0usize);
        let at = u32::cast_from(position);
        if key < least || key == least && at < place {
            least = key;
            place = at;
            slot = j as u32;
        }
        if is_nan_bits(score) {
            count += 1u32;
        }
        j += UNITS;
    }
    let mut found = Shared::<[u32]>::new_slice(2usize);
    lowest_of_units(least, place, slot, count, &mut found);
    if n > budget {
        let slot = found[0] as usize;
        let (to, from) = (start + slot, start + last);
        let mut d = unit;
        while d < dim {
            keys[to * dim + d] = keys[from * dim + d];
            values[to * dim + d] = values[from * dim + d];
            d += UNITS;
        }
        // The unit that has written this sum. The last one is of the latest rows alone.
        if unit == slot % UNITS {
            positions[to] = positions[from];
            let mut sum = 0.0f32;
            for g in 0..group {
                sum += rows[g * slots + from];
            }
            sums[to] = sum / f32::cast_from(group as u32);
        }
        if unit == 0 {
            let id = min(number::<T>(table, kv, ID, 0usize), nans.len() - 1);
            nans[id] += f32::cast_from(found[1]);
        }
    }
}
