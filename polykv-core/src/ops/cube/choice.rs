//! Choosing entries on the device: one cube per sequence and KV head, nothing sorted.

mod lowest;

pub(super) use lowest::{find_lowest, lowest_of_units};

use super::{dense, empty, existing};
use crate::ops::kernels::{ChoiceOps, Counts};
use crate::ops::protect::Guard;
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use lowest::lowest_kernel;

pub(super) const UNITS: usize = 128;
const DIGITS: usize = 256;

impl ChoiceOps for CubeBackend {
    fn select_top(
        scores: CubeTensor,
        positions: CubeTensor,
        guard: Guard,
        seen: usize,
        budget: usize,
    ) -> (CubeTensor, CubeTensor) {
        let (scores, positions) = (into_contiguous(scores), into_contiguous(positions));
        let [batch, kv_heads, n] = scores.shape().dims::<3>();
        let chosen = empty(&scores, [batch, kv_heads, budget], positions.dtype);
        let kept = empty(&scores, [batch, kv_heads, budget], positions.dtype);
        let nans = empty(&scores, [batch, kv_heads], DType::F32);
        let disorder = empty(&scores, [batch, kv_heads], DType::F32);
        let client = scores.client.clone();
        let dtype = dtype_to_storage_type(positions.dtype);
        let last = seen.max(2) - 1;
        let position_digits = (usize::BITS - last.leading_zeros()).div_ceil(8);
        debug_assert_eq!(positions.shape(), scores.shape());
        debug_assert!((1..=n).contains(&budget));
        // SAFETY: a cube has a head's `n` scores and positions; units write a slot only while its place is below the
        // budget. Slots that were never written, of wrong positions, are cut to the number of entries by `existing` in the
        // second kernel, whose places count the chosen ones before: they are below the budget.
        unsafe {
            select_kernel::launch_unchecked(
                &client,
                CubeCount::Static((batch * kv_heads) as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                scores.into_tensor_arg(),
                positions.clone().into_tensor_arg(),
                spans(&chosen, &guard),
                chosen.clone().into_tensor_arg(),
                nans.clone().into_tensor_arg(),
                disorder.clone().into_tensor_arg(),
                n,
                budget,
                guard.sinks,
                guard.recent,
                guard.spans.len(),
                position_digits,
                dtype,
            );
            order_kernel::launch_unchecked(
                &client,
                CubeCount::Static((batch * kv_heads) as u32, budget.div_ceil(UNITS) as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                chosen.into_tensor_arg(),
                positions.into_tensor_arg(),
                disorder.into_tensor_arg(),
                kept.clone().into_tensor_arg(),
                n,
                budget,
                dtype,
            );
        }
        (kept, nans)
    }

    fn lowest(
        scores: CubeTensor,
        positions: CubeTensor,
        guard: Guard,
        before: Counts<Self>,
    ) -> (CubeTensor, CubeTensor) {
        // All heads of a sequence may share their scores.
        let (scores, positions) = (dense(scores), into_contiguous(positions));
        let [batch, kv_heads, n] = scores.shape().dims::<3>();
        let victim = empty(&scores, [batch, kv_heads, 1], positions.dtype);
        let nans = empty(&scores, [batch, kv_heads], DType::F32);
        let before = before.tensor();
        let client = scores.client.clone();
        let dtype = dtype_to_storage_type(positions.dtype);
        debug_assert_eq!(positions.shape(), scores.shape());
        debug_assert!(
            before
                .as_ref()
                .is_none_or(|all| all.shape() == nans.shape())
        );
        // SAFETY: a cube has a head's `n` scores, through their strides, and positions, units pass those below `n`, and the
        // first one writes.
        unsafe {
            lowest_kernel::launch_unchecked(
                &client,
                CubeCount::Static((batch * kv_heads) as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                scores.into_tensor_arg(),
                positions.into_tensor_arg(),
                spans(&victim, &guard),
                before.map(CubeTensor::into_buffer_arg).into(),
                victim.clone().into_tensor_arg(),
                nans.clone().into_tensor_arg(),
                n,
                guard.sinks,
                guard.recent,
                guard.spans.len(),
                dtype,
            );
        }
        (victim, nans)
    }
}

impl Counts<CubeBackend> {
    pub(super) fn tensor(self) -> Option<CubeTensor> {
        match self {
            Self::None => None,
            Self::Known { counts } => Some(into_contiguous(counts)),
        }
    }
}

/// Starts and ends, on the device of `like`; room that is not read if there are none.
pub(super) fn spans(like: &CubeTensor, guard: &Guard) -> BufferArg {
    if guard.spans.is_empty() {
        return empty(like, [2], DType::I32).into_buffer_arg();
    }
    let ends = guard.spans.iter().flat_map(|span| [span.start, span.end]);
    let values: Vec<i32> = ends.collect();
    let handle = like.client.create_from_slice(i32::as_bytes(&values));
    // SAFETY: the length is that of what was just uploaded.
    unsafe { BufferArg::from_raw_parts(handle, values.len()) }
}

/// What scores are compared by: integers in the order of `f32::total_cmp`. Protected entries are above all.
#[cube]
pub(super) fn rank(
    score: f32,
    position: i32,
    spans: &[i32],
    sinks: i32,
    recent: i32,
    span_count: usize,
) -> u32 {
    let bits = u32::reinterpret(score);
    let mut key = bits | 0x8000_0000u32;
    if bits >= 0x8000_0000u32 {
        key = bits ^ 0xFFFF_FFFFu32;
    }
    if position < sinks || position >= recent {
        key = 0xFFFF_FFFFu32;
    }
    for s in 0..span_count {
        if position >= spans[s * 2] && position < spans[s * 2 + 1] {
            key = 0xFFFF_FFFFu32;
        }
    }
    key
}

#[cube]
pub(super) fn is_nan_bits(score: f32) -> bool {
    (u32::reinterpret(score) & 0x7FFF_FFFFu32) > 0x7F80_0000u32
}

/// Finds the rank and the position of the last entry that stays, digit by digit from the highest: each pass counts
/// the digits of the entries that agree with what is known so far. Positions decide between equal ranks. The slots come
/// out ascending; `disorder` is not 0 where that is not the order of positions.
#[cube(launch_unchecked)]
fn select_kernel<I: Int>(
    scores: &Tensor<f32>,
    positions: &Tensor<I>,
    spans: &[i32],
    chosen: &mut Tensor<I>,
    nans: &mut Tensor<f32>,
    disorder: &mut Tensor<f32>,
    n: usize,
    budget: usize,
    sinks: i32,
    recent: i32,
    span_count: usize,
    #[comptime] position_digits: u32,
    #[define(I)] _dtype: ElemType,
) {
    let head = CUBE_POS_X as usize;
    let unit = UNIT_POS_X as usize;
    let start = head * n;
    let histogram = Shared::<[Atomic<u32>]>::new_slice(DIGITS);
    // The number of NaN, and whether slots are out of the order of positions.
    let found = Shared::<[Atomic<u32>]>::new_slice(2usize);
    // The rank and position found so far, and how many entries are still to be taken among those that agree.
    let mut known = Shared::<[u32]>::new_slice(3usize);
    let mut counts = Shared::<[u32]>::new_slice(UNITS);
    if unit == 0 {
        found[0].store(0u32);
        found[1].store(0u32);
        known[0] = 0u32;
        known[1] = 0u32;
        known[2] = budget as u32;
    }
    sync_cube();
    let mut j = unit;
    while j < n {
        if is_nan_bits(scores[start + j]) {
            found[0].fetch_add(1u32);
        }
        if j + 1 < n {
            if positions[start + j + 1] < positions[start + j] {
                found[1].fetch_add(1u32);
            }
        }
        j += UNITS;
    }

    let passes = comptime!(4 + position_digits);
    for pass in 0..passes {
        let mut d = unit;
        while d < DIGITS {
            histogram[d].store(0u32);
            d += UNITS;
        }
        sync_cube();
        let by_rank = pass < 4u32;
        let mut shift = 8u32 * (passes - 1u32 - pass);
        if by_rank {
            shift = 8u32 * (3u32 - pass);
        }
        let mut j = unit;
        while j < n {
            let position = i32::cast_from(positions[start + j]);
            let key = rank(
                scores[start + j],
                position,
                spans,
                sinks,
                recent,
                span_count,
            );
            let place = u32::cast_from(position);
            let mut digits = key;
            let mut agreed = known[0];
            let mut agrees = true;
            if !by_rank {
                digits = place;
                agreed = known[1];
                agrees = key == known[0];
            }
            // Two shifts: one by 32 would be none.
            if agrees && ((digits ^ agreed) >> shift) >> 8u32 == 0u32 {
                histogram[((digits >> shift) & 255u32) as usize].fetch_add(1u32);
            }
            j += UNITS;
        }
        sync_cube();
        if unit == 0 {
            let wanted = known[2];
            let mut above = 0u32;
            // DIGITS - 1; only a literal makes a variable.
            let mut d = 255usize;
            let mut count = histogram[d].load();
            while d > 0 && above + count < wanted {
                above += count;
                d -= 1;
                count = histogram[d].load();
            }
            known[2] = wanted - above;
            let digit = (d as u32) << shift;
            if by_rank {
                known[0] = known[0] | digit;
            } else {
                known[1] = known[1] | digit;
            }
        }
        sync_cube();
    }

    // Each unit has a stretch of slots.
    let chunk = (n + UNITS - 1) / UNITS;
    let first = min(unit * chunk, n);
    let end = min(first + chunk, n);
    let mut count = 0u32;
    for j in first..end {
        let position = i32::cast_from(positions[start + j]);
        let key = rank(
            scores[start + j],
            position,
            spans,
            sinks,
            recent,
            span_count,
        );
        if key > known[0] || key == known[0] && u32::cast_from(position) >= known[1] {
            count += 1u32;
        }
    }
    counts[unit] = count;
    sync_cube();
    if unit == 0 {
        let mut so_far = 0u32;
        for u in 0..UNITS {
            so_far += counts[u];
            counts[u] = so_far;
        }
        nans[head] = f32::cast_from(found[0].load());
        disorder[head] = f32::cast_from(found[1].load());
    }
    sync_cube();
    let mut at = 0usize;
    at += (counts[unit] - count) as usize;
    for j in first..end {
        let position = i32::cast_from(positions[start + j]);
        let key = rank(
            scores[start + j],
            position,
            spans,
            sinks,
            recent,
            span_count,
        );
        if key > known[0] || key == known[0] && u32::cast_from(position) >= known[1] {
            // Equal positions, which no cache has, would make more than the budget.
            if at < budget {
                chosen[head * budget + at] = I::cast_from(j);
            }
            at += 1usize;
        }
    }
}

/// One unit per entry that stays: its place in the order of positions. Slots are out of that order only in a cache that
/// decoded and is trimmed again.
#[cube(launch_unchecked)]
fn order_kernel<I: Int>(
    chosen: &Tensor<I>,
    positions: &Tensor<I>,
    disorder: &Tensor<f32>,
    kept: &mut Tensor<I>,
    n: usize,
    budget: usize,
    #[define(I)] _dtype: ElemType,
) {
    let head = CUBE_POS_X as usize;
    let i = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if i >= budget {
        terminate!();
    }
    let (start, first) = (head * n, head * budget);
    let slot = chosen[first + i];
    let mut at = 0usize;
    if disorder[head] == 0.0f32 {
        at += i;
    } else {
        let position = positions[start + existing::<I>(slot, n)];
        for other in 0..budget {
            if positions[start + existing::<I>(chosen[first + other], n)] < position {
                at += 1usize;
            }
        }
    }
    kept[first + at] = slot;
}
