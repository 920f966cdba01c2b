//! A token of several sequences at once, whose entries lie in ranges of the same slots: attention, then the eviction of one entry of
//! every KV head that holds more than its budget. What a range is stands in a table on the device.

mod evict;

use super::token::{Extent, New, attend};
use super::{Mask, writable};
use crate::ops::kernels::{self, RangeOps, Window};
use crate::ops::ranges::table::{
    BUDGET, FIELDS, KEEPS, LEN, OF_GROUP, RULE, SEEN, SHARED, SHARED_START, START,
};
use burn::backend::TensorMetadata;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// The ranges of the KV heads of several sequences.
pub(super) struct Ranges {
    /// `[heads, FIELDS]`, a row for each KV head of each sequence.
    pub table: CubeTensor,
    /// Tokens since the table was made.
    pub steps: usize,
    pub kv_heads: usize,
}

impl RangeOps for CubeBackend {
    fn attend_ranges(
        q: CubeTensor,
        keys: CubeTensor,
        values: CubeTensor,
        positions: CubeTensor,
        key: CubeTensor,
        value: CubeTensor,
        table: CubeTensor,
        steps: usize,
        most: usize,
        softcap: Option<f32>,
    ) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        let kv_heads = key.shape()[1];
        let [keys, values, positions] = [keys, values, positions].map(writable);
        let new = New {
            key: into_contiguous(key),
            value: into_contiguous(value),
            positions: positions.clone(),
            position: 0,
        };
        let mask = kernels::Mask::<Self> {
            softcap,
            window: Window::None,
        };
        let ranges = Extent::Ranges(Ranges {
            table: into_contiguous(table),
            steps,
            kv_heads,
        });
        let entries = [keys.clone(), values.clone()];
        let (output, row) = attend(q, entries, most, Some(new), ranges, Mask::of(mask, 1));
        (output, row, keys, values, positions)
    }

    fn evict_ranges(
        rows: CubeTensor,
        keys: CubeTensor,
        values: CubeTensor,
        positions: CubeTensor,
        sums: CubeTensor,
        nans: CubeTensor,
        table: CubeTensor,
        steps: usize,
        kv_heads: usize,
    ) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        let entries = [keys, values, positions].map(writable);
        let table = into_contiguous(table);
        let ranges = Ranges {
            table,
            steps,
            kv_heads,
        };
        evict::evict(rows, entries, [sums, nans].map(writable), ranges)
    }
}

/// A number of a KV head in the table, or the other number if there is none.
#[cube]
fn number<T: Int>(
    table: ComptimeOption<&[T]>,
    kv: usize,
    #[comptime] field: usize,
    otherwise: usize,
) -> usize {
    let found: ComptimeOption<usize> = table.map(|all| usize::cast_from(all[kv * FIELDS + field]));
    found.unwrap_or(otherwise)
}

/// The first slot of a KV head's range of `slots`, 0 without ranges.
#[cube]
pub(super) fn first_of<T: Int>(table: ComptimeOption<&[T]>, kv: usize, slots: usize) -> usize {
    min(number::<T>(table, kv, START, 0usize), slots - 1)
}

/// How many entries of a KV head lie before its range, where others share them, and the first slot of these.
#[cube]
pub(super) fn shared_of<T: Int>(table: ComptimeOption<&[T]>, kv: usize) -> (usize, usize) {
    let count = number::<T>(table, kv, SHARED, 0usize);
    (count, number::<T>(table, kv, SHARED_START, 0usize))
}

/// The slot of entry `i` of a KV head whose range begins at `start`, behind `shared` entries from `shared_start` on.
#[cube]
pub(super) fn slot_of(
    i: usize,
    start: usize,
    shared: usize,
    shared_start: usize,
    slots: usize,
) -> usize {
    let mut slot = shared_start + i;
    if i >= shared {
        slot = start + (i - shared);
    }
    min(slot, slots - 1)
}

/// How many of `count` probabilities of a KV head anybody wants to know.
#[cube]
pub(super) fn wanted_of<T: Int>(table: ComptimeOption<&[T]>, kv: usize, count: usize) -> usize {
    let mut wanted = count;
    if number::<T>(table, kv, RULE, OF_GROUP) == KEEPS {
        wanted = 0;
    }
    wanted
}

/// How many entries a KV head has in its range of `slots` and before it, the newest included; as many as are `given` without
/// ranges.
#[cube]
pub(super) fn held_of<T: Int>(
    table: ComptimeOption<&[T]>,
    kv: usize,
    steps: usize,
    slots: usize,
    given: usize,
) -> usize {
    let mut held = given;
    let ranged = table.is_some();
    if comptime!(ranged) {
        let before = min(
            number::<T>(table, kv, LEN, 0usize) + steps,
            number::<T>(table, kv, BUDGET, 0usize),
        );
        let own = slots - first_of::<T>(table, kv, slots);
        held = min(before + 1, number::<T>(table, kv, SHARED, 0usize) + own);
    }
    held
}

/// The position of the newest entry of a KV head.
#[cube]
pub(super) fn at_step<T: Int>(table: ComptimeOption<&[T]>, kv: usize, steps: usize) -> usize {
    number::<T>(table, kv, SEEN, 0usize) + steps
}
