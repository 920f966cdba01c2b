//! What is done for every decoded token, in as few launches as there can be.

mod evict;
mod hits;

use super::token::{Extent, New, attend};
use super::{Mask, empty, writable};
use crate::ops::hit_note::HitNote;
use crate::ops::kernels::{self, Counts, ScoresOf, StepOps, Window};
use crate::ops::protect::Guard;
use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use evict::Step;

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
        let (output, row) = attend(q, [keys, values], entries, Some(new), Extent::Alike, mask);
        (output, row, held.0, held.1, positions)
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
        let step = Step::new(
            [keys, values, positions],
            [key, value],
            position,
            guard,
            before,
        );
        step.evict(scores, of, count)
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
        let step = Step::new(
            [keys, values, positions],
            [key, value],
            position,
            guard,
            before,
        );
        step.evict_summed(sums, rows, seen)
    }

    fn note_hits(
        counts: CubeTensor,
        words: CubeTensor,
        rows: CubeTensor,
        note: HitNote,
    ) -> (CubeTensor, CubeTensor) {
        hits::note(counts, words, rows, note)
    }

    fn evict_noted(
        counts: CubeTensor,
        words: CubeTensor,
        rows: CubeTensor,
        note: HitNote,
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
        CubeTensor,
    ) {
        let step = Step::new(
            [keys, values, positions],
            [key, value],
            position,
            guard,
            before,
        );
        step.evict_noted(counts, words, rows, note)
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
