//! The order of entries by position, and scores along it.

use super::choice::is_nan_bits;
use super::{empty, existing};
use crate::ops::kernels::OrderOps;
use crate::ops::pool::Pool;
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

const UNITS: usize = 64;

impl OrderOps for CubeBackend {
    fn drop_from_order(order: CubeTensor, victim: CubeTensor, moved: bool) -> CubeTensor {
        let (order, victim) = (into_contiguous(order), into_contiguous(victim));
        let [batch, kv_heads, entries] = order.shape().dims::<3>();
        let kept = empty(&order, [batch, kv_heads, entries - 1], order.dtype);
        let client = order.client.clone();
        let dtypes = [order.dtype, victim.dtype].map(dtype_to_storage_type);
        debug_assert_eq!(victim.shape().num_elements(), batch * kv_heads);
        // SAFETY: a cube has a head, of which `order` and `kept` have `entries` and `entries − 1` numbers, one after the
        // other; units go up to the last of them. The rank is below `entries` by its start and its loop.
        unsafe {
            drop_kernel::launch_unchecked(
                &client,
                CubeCount::Static((batch * kv_heads) as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                order.into_tensor_arg(),
                victim.into_tensor_arg(),
                kept.clone().into_tensor_arg(),
                entries - 1,
                moved,
                dtypes,
            );
        }
        kept
    }

    fn extend_order(order: CubeTensor, count: usize) -> CubeTensor {
        let order = into_contiguous(order);
        let [batch, kv_heads, entries] = order.shape().dims::<3>();
        let all = entries + count;
        let extended = empty(&order, [batch, kv_heads, all], order.dtype);
        let client = order.client.clone();
        let dtype = dtype_to_storage_type(order.dtype);
        // SAFETY: units beyond `all` end; the others write below `all` of their head, and read `order` below `entries`.
        unsafe {
            extend_kernel::launch_unchecked(
                &client,
                CubeCount::Static((batch * kv_heads) as u32, all.div_ceil(UNITS) as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                order.into_tensor_arg(),
                extended.clone().into_tensor_arg(),
                entries,
                all,
                dtype,
            );
        }
        extended
    }

    fn pool_scores(
        scores: CubeTensor,
        order: CubeTensor,
        tail: usize,
        width: usize,
        mode: Pool,
    ) -> CubeTensor {
        let (scores, order) = (into_contiguous(scores), into_contiguous(order));
        let [batch, kv_heads, entries] = scores.shape().dims::<3>();
        let pooled = empty(&scores, [batch, kv_heads, entries], DType::F32);
        let client = scores.client.clone();
        let dtype = dtype_to_storage_type(order.dtype);
        debug_assert_eq!(order.shape(), scores.shape());
        // SAFETY: units beyond `entries` end; ranks are below `old`, which is at most `entries`, and slots are what
        // `existing` makes of the order's numbers: below `entries`.
        unsafe {
            pool_kernel::launch_unchecked(
                &client,
                CubeCount::Static((batch * kv_heads) as u32, entries.div_ceil(UNITS) as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                scores.into_tensor_arg(),
                order.into_tensor_arg(),
                pooled.clone().into_tensor_arg(),
                entries,
                entries.saturating_sub(tail),
                width / 2,
                mode == Pool::Max,
                dtype,
            );
        }
        pooled
    }
}

/// One cube per sequence and KV head; `last` is the number of entries that stay.
#[cube(launch_unchecked)]
fn drop_kernel<I: Int, S: Int>(
    order: &Tensor<I>,
    victim: &Tensor<S>,
    kept: &mut Tensor<I>,
    last: usize,
    #[comptime] moved: bool,
    #[define(I, S)] _dtypes: [ElemType; 2],
) {
    let head = CUBE_POS_X as usize;
    let unit = UNIT_POS_X as usize;
    let start = head * (last + 1);
    let gone = usize::cast_from(victim[head]);
    let mut rank = Shared::<[u32]>::new_slice(1usize);
    if unit == 0 {
        // Without such a slot the last one goes.
        rank[0] = last as u32;
    }
    sync_cube();
    let mut r = unit;
    while r <= last {
        if usize::cast_from(order[start + r]) == gone {
            rank[0] = r as u32;
        }
        r += UNITS;
    }
    sync_cube();
    let mut r = unit;
    while r < last {
        let mut from = 0usize;
        from += r;
        if r >= rank[0] as usize {
            from += 1usize;
        }
        let mut slot = 0usize;
        slot += usize::cast_from(order[start + from]);
        if comptime!(moved) {
            if slot == last {
                slot = gone;
            }
        }
        kept[head * last + r] = I::cast_from(slot);
        r += UNITS;
    }
}

/// One unit per slot.
#[cube(launch_unchecked)]
fn extend_kernel<I: Int>(
    order: &Tensor<I>,
    extended: &mut Tensor<I>,
    entries: usize,
    all: usize,
    #[define(I)] _dtype: ElemType,
) {
    let head = CUBE_POS_X as usize;
    let rank = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if rank >= all {
        terminate!();
    }
    let mut slot = I::cast_from(rank);
    if rank < entries {
        slot = order[head * entries + rank];
    }
    extended[head * all + rank] = slot;
}

/// One unit per entry; the first `old` of the order are pooled.
#[cube(launch_unchecked)]
fn pool_kernel<I: Int>(
    scores: &Tensor<f32>,
    order: &Tensor<I>,
    pooled: &mut Tensor<f32>,
    entries: usize,
    old: usize,
    half: usize,
    #[comptime] highest: bool,
    #[define(I)] _dtype: ElemType,
) {
    let start = CUBE_POS_X as usize * entries;
    let rank = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if rank >= entries {
        terminate!();
    }
    let slot = start + existing::<I>(order[start + rank], entries);
    let mut result = 0.0f32;
    result += scores[slot];
    if rank < old {
        let mut first = 0usize;
        if rank > half {
            first += rank - half;
        }
        let end = min(rank + half + 1, old);
        if comptime!(!highest) {
            result = 0.0f32;
        }
        for r in first..end {
            let x = scores[start + existing::<I>(order[start + r], entries)];
            if comptime!(highest) {
                // A NaN stays one, to be reported.
                if x > result || is_nan_bits(x) {
                    result = x;
                }
            } else {
                result += x;
            }
        }
        if comptime!(!highest) {
            result = result / f32::cast_from(2 * half + 1);
        }
    }
    pooled[slot] = result;
}
