//! Merging evicted entries into those that stay.

use super::{dense, empty, existing, width};
use crate::ops::kernels::MergeOps;
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

const UNITS: usize = 64;

impl MergeOps for CubeBackend {
    fn merge_into(
        vectors: CubeTensor,
        evicted: CubeTensor,
        kept: CubeTensor,
        places: CubeTensor,
        parts: CubeTensor,
    ) -> CubeTensor {
        let vectors = dense(vectors);
        let [evicted, kept, places, parts] = [evicted, kept, places, parts].map(into_contiguous);
        let [batch, kv_heads, _, dim] = vectors.shape().dims::<4>();
        let going = evicted.shape().dims::<3>()[2];
        let staying = kept.shape().dims::<3>()[2];
        let sums = empty(&vectors, [batch, kv_heads, staying, dim], DType::F32);
        let client = vectors.client.clone();
        let dtypes = [vectors.dtype, evicted.dtype].map(dtype_to_storage_type);
        debug_assert_eq!(places.shape(), evicted.shape());
        debug_assert_eq!(parts.shape(), evicted.shape());
        debug_assert!([kept.dtype, places.dtype] == [evicted.dtype; 2]);
        // SAFETY: units beyond the kept entries' elements end; slots are cut to the number of entries by `existing`, and
        // places are only compared.
        unsafe {
            merge_kernel::launch_unchecked(
                &client,
                CubeCount::Static(
                    (batch * kv_heads) as u32,
                    (staying * dim).div_ceil(UNITS) as u32,
                    1,
                ),
                CubeDim::new_1d(UNITS as u32),
                vectors.into_tensor_arg(),
                evicted.into_tensor_arg(),
                kept.into_tensor_arg(),
                places.into_tensor_arg(),
                parts.into_tensor_arg(),
                sums.clone().into_tensor_arg(),
                going,
                staying,
                dim,
                dtypes,
            );
        }
        sums
    }

    fn spread_into(
        vectors: CubeTensor,
        positions: CubeTensor,
        evicted: CubeTensor,
        kept: CubeTensor,
        parts: CubeTensor,
        window: usize,
    ) -> CubeTensor {
        let vectors = dense(vectors);
        let [positions, evicted] = [positions, evicted].map(into_contiguous);
        let [kept, parts] = [kept, parts].map(into_contiguous);
        let [batch, kv_heads, _, dim] = vectors.shape().dims::<4>();
        let going = evicted.shape().dims::<3>()[2];
        let staying = kept.shape().dims::<3>()[2];
        let sums = empty(&vectors, [batch, kv_heads, staying, dim], DType::F32);
        let width = width(&[&vectors]);
        let words = dim / width;
        let client = vectors.client.clone();
        let dtypes = [vectors.dtype, evicted.dtype].map(dtype_to_storage_type);
        debug_assert_eq!(parts.shape(), evicted.shape());
        debug_assert!([kept.dtype, positions.dtype] == [evicted.dtype; 2]);
        // SAFETY: a cube has a kept entry, `first` and `end` are at most `going` as the search starts with them, slots are
        // cut to the number of entries by `existing`, and shared memory has `slices · words` places.
        unsafe {
            spread_kernel::launch_unchecked(
                &client,
                CubeCount::Static((batch * kv_heads) as u32, staying as u32, 1),
                CubeDim::new_1d(SPREAD_UNITS as u32),
                width,
                vectors.into_tensor_arg(),
                positions.into_tensor_arg(),
                evicted.into_tensor_arg(),
                kept.into_tensor_arg(),
                parts.into_tensor_arg(),
                sums.clone().into_tensor_arg(),
                going,
                staying,
                window,
                words,
                width,
                (SPREAD_UNITS / words).max(1),
                dtypes,
            );
        }
        sums
    }
}

/// One unit per element of what stays, which all that goes passes: sums do not depend on the order of units.
#[cube(launch_unchecked)]
fn merge_kernel<E: Float, I: Int>(
    vectors: &Tensor<E>,
    evicted: &Tensor<I>,
    kept: &Tensor<I>,
    places: &Tensor<I>,
    parts: &Tensor<f32>,
    sums: &mut Tensor<f32>,
    going: usize,
    staying: usize,
    dim: usize,
    #[define(E, I)] _dtypes: [ElemType; 2],
) {
    let kv = CUBE_POS_X as usize;
    let unit = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if unit >= staying * dim {
        terminate!();
    }
    let (kv_heads, n) = (vectors.shape(1), vectors.shape(2));
    let (place, d) = (unit / dim, unit % dim);
    let start = kv / kv_heads * vectors.stride(0) + kv % kv_heads * vectors.stride(1) + d;
    let slot = existing::<I>(kept[kv * staying + place], n);
    let target = f32::cast_from(vectors[start + slot * vectors.stride(2)]);
    let mut sum = 0.0f32;
    for i in 0..going {
        if usize::cast_from(places[kv * going + i]) == place {
            let slot = existing::<I>(evicted[kv * going + i], n);
            let x = f32::cast_from(vectors[start + slot * vectors.stride(2)]);
            sum += (x - target) * parts[kv * going + i];
        }
    }
    sums[kv * staying * dim + unit] = sum;
}

/// Units that share the evicted entries of one that stays.
const SPREAD_UNITS: usize = 256;

/// One cube per kept entry: it gets the evicted ones between the kept one `window` before it and itself.
#[cube(launch_unchecked)]
fn spread_kernel<E: Float, I: Int, N: Size>(
    vectors: &Tensor<Vector<E, N>>,
    positions: &Tensor<I>,
    evicted: &Tensor<I>,
    kept: &Tensor<I>,
    parts: &Tensor<f32>,
    sums: &mut Tensor<Vector<f32, N>>,
    going: usize,
    staying: usize,
    window: usize,
    #[comptime] words: usize,
    #[comptime] width: usize,
    #[comptime] slices: usize,
    #[define(E, I)] _dtypes: [ElemType; 2],
) {
    let unit = UNIT_POS_X as usize;
    let kv = CUBE_POS_X as usize;
    let rank = CUBE_POS_Y as usize;
    let (kv_heads, n) = (vectors.shape(1), vectors.shape(2));
    let entry = kv * staying + rank;
    let mut first = 0usize;
    if rank >= window {
        let slot = existing::<I>(kept[entry - window], n);
        first += evicted_before(slot, positions, evicted, kv, n, going);
    }
    let slot = existing::<I>(kept[entry], n);
    let end = evicted_before(slot, positions, evicted, kv, n, going);

    let start = kv / kv_heads * vectors.stride(0) + kv % kv_heads * vectors.stride(1);
    let mut gathered = Shared::<[Vector<f32, N>]>::new_slice(comptime!(slices * words));
    let mut place = unit;
    while place < comptime!(slices * words) {
        let mut sum = Vector::<f32, N>::new(0.0f32);
        let mut i = first + place / words;
        while i < end {
            let slot = existing::<I>(evicted[kv * going + i], n);
            let at = (start + slot * vectors.stride(2)) / width + place % words;
            let part = parts[kv * going + i];
            sum += Vector::<f32, N>::cast_from(vectors[at]) * Vector::new(part);
            i += slices;
        }
        gathered[place] = sum;
        place += SPREAD_UNITS;
    }
    sync_cube();
    let mut w = unit;
    while w < words {
        let mut sum = Vector::<f32, N>::new(0.0f32);
        for slice in 0..slices {
            sum += gathered[slice * words + w];
        }
        sums[entry * words + w] = sum;
        w += SPREAD_UNITS;
    }
}

/// How many of a head's evicted entries lie before the entry in `slot`.
#[cube]
fn evicted_before<I: Int>(
    slot: usize,
    positions: &Tensor<I>,
    evicted: &Tensor<I>,
    kv: usize,
    n: usize,
    going: usize,
) -> usize {
    let limit = positions[kv * n + slot];
    let mut low = 0usize;
    let mut high = 0usize;
    high += going;
    while low < high {
        let middle = (low + high) / 2;
        let slot = existing::<I>(evicted[kv * going + middle], n);
        if positions[kv * n + slot] < limit {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}
