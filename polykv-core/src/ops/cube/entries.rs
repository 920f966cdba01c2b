//! Moving and overwriting entries.

use super::{dense, empty, existing, width, writable};
use crate::ops::kernels::EntryOps;
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

const UNITS: usize = 64;

impl EntryOps for CubeBackend {
    fn compact(
        keys: CubeTensor,
        values: CubeTensor,
        positions: CubeTensor,
        slots: CubeTensor,
        capacity: usize,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        compact_all(keys, values, positions, slots, capacity)
    }

    fn replace_entry(
        keys: CubeTensor,
        values: CubeTensor,
        positions: CubeTensor,
        victim: CubeTensor,
        key: CubeTensor,
        value: CubeTensor,
        position: usize,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let slot = Slot::Of(Box::new(into_contiguous(victim)));
        replace([keys, values, positions], slot, key, value, position)
    }

    fn write_entry(
        keys: CubeTensor,
        values: CubeTensor,
        positions: CubeTensor,
        slot: usize,
        key: CubeTensor,
        value: CubeTensor,
        position: usize,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        replace(
            [keys, values, positions],
            Slot::Same(slot),
            key,
            value,
            position,
        )
    }

    fn move_last(statistics: CubeTensor, victim: CubeTensor) -> CubeTensor {
        let (statistics, victim) = (into_contiguous(statistics), into_contiguous(victim));
        let mut dims = statistics.shape().to_vec();
        let (heads, entries) = (dims[0] * dims[1], dims[2]);
        let width: usize = dims[3..].iter().product();
        dims[2] -= 1;
        let moved = empty(&statistics, dims, DType::F32);
        let client = statistics.client.clone();
        let dtype = dtype_to_storage_type(victim.dtype);
        debug_assert_eq!(victim.shape().num_elements(), heads);
        // SAFETY: units beyond the `entries − 1` entries that stay end; the others read their own number or one of the
        // last entry, whatever the victim is.
        unsafe {
            move_last_kernel::launch_unchecked(
                &client,
                CubeCount::Static(
                    heads as u32,
                    ((entries - 1) * width).div_ceil(UNITS) as u32,
                    1,
                ),
                CubeDim::new_1d(UNITS as u32),
                statistics.into_tensor_arg(),
                victim.into_tensor_arg(),
                moved.clone().into_tensor_arg(),
                entries - 1,
                width,
                dtype,
            );
        }
        moved
    }
}

/// [`EntryOps::compact`] of any numbers.
pub(super) fn compact_all(
    keys: CubeTensor,
    values: CubeTensor,
    positions: CubeTensor,
    slots: CubeTensor,
    capacity: usize,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let (keys, values, slots) = (dense(keys), dense(values), into_contiguous(slots));
    let [batch, kv_heads, _, dim] = keys.shape().dims::<4>();
    let count = slots.shape().dims::<3>()[2];
    let new_keys = empty(&keys, [batch, kv_heads, capacity, dim], keys.dtype);
    let new_values = empty(&keys, [batch, kv_heads, capacity, dim], keys.dtype);
    let new_positions = empty(&keys, [batch, kv_heads, capacity], positions.dtype);
    let width = width(&[&keys, &values]);
    let words = dim / width;
    let client = keys.client.clone();
    let dtypes = [keys.dtype, positions.dtype, slots.dtype].map(dtype_to_storage_type);
    debug_assert_eq!(keys.shape(), values.shape());
    debug_assert_eq!(keys.dtype, values.dtype);
    debug_assert_eq!(positions.shape().dims::<3>(), keys.shape().dims::<4>()[..3]);
    debug_assert!(count <= capacity);
    // SAFETY: units beyond the last word end; the others write their own word of the new tensors, read a slot below
    // `count` and from it an entry that `existing` has put below the number of entries.
    unsafe {
        compact_kernel::launch_unchecked(
            &client,
            CubeCount::Static(
                (batch * kv_heads) as u32,
                (capacity * words).div_ceil(UNITS) as u32,
                1,
            ),
            CubeDim::new_1d(UNITS as u32),
            width,
            keys.into_tensor_arg(),
            values.into_tensor_arg(),
            positions.into_tensor_arg(),
            slots.into_tensor_arg(),
            new_keys.clone().into_tensor_arg(),
            new_values.clone().into_tensor_arg(),
            new_positions.clone().into_tensor_arg(),
            capacity,
            count,
            words,
            width,
            dtypes,
        );
    }
    (new_keys, new_values, new_positions)
}

/// One unit per word of an entry.
#[cube(launch_unchecked)]
fn compact_kernel<E: Numeric, I: Int, S: Int, N: Size>(
    keys: &Tensor<Vector<E, N>>,
    values: &Tensor<Vector<E, N>>,
    positions: &Tensor<I>,
    slots: &Tensor<S>,
    new_keys: &mut Tensor<Vector<E, N>>,
    new_values: &mut Tensor<Vector<E, N>>,
    new_positions: &mut Tensor<I>,
    capacity: usize,
    count: usize,
    words: usize,
    #[comptime] width: usize,
    #[define(E, I, S)] _dtypes: [ElemType; 3],
) {
    let kv = CUBE_POS_X as usize;
    let i = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if i >= capacity * words {
        terminate!();
    }
    let kv_heads = keys.shape(1);
    let (batch, head) = (kv / kv_heads, kv % kv_heads);
    let (entry, word) = (i / words, i % words);
    let mut key = Vector::<E, N>::new(E::from_int(0));
    let mut value = Vector::<E, N>::new(E::from_int(0));
    let mut position = I::new(0);
    if entry < count {
        let slot = existing::<S>(slots[kv * count + entry], keys.shape(2));
        let at = batch * keys.stride(0) + head * keys.stride(1) + slot * keys.stride(2);
        key = keys[at / width + word];
        let at = batch * values.stride(0) + head * values.stride(1) + slot * values.stride(2);
        value = values[at / width + word];
        let at = batch * positions.stride(0) + head * positions.stride(1);
        position = positions[at + slot * positions.stride(2)];
    }
    new_keys[kv * capacity * words + i] = key;
    new_values[kv * capacity * words + i] = value;
    if word == 0 {
        new_positions[kv * capacity + entry] = position;
    }
}

/// The slot that is overwritten.
enum Slot {
    /// Of each head, `[batch, kv_heads, 1]`.
    Of(Box<CubeTensor>),
    /// Of all heads.
    Same(usize),
}

/// Overwrites one entry of every head, in place while nobody else holds the tensors.
fn replace(
    [keys, values, positions]: [CubeTensor; 3],
    slot: Slot,
    key: CubeTensor,
    value: CubeTensor,
    position: usize,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [keys, values, positions] = [keys, values, positions].map(writable);
    let (key, value) = (into_contiguous(key), into_contiguous(value));
    let [batch, kv_heads, _, dim] = keys.shape().dims::<4>();
    let client = keys.client.clone();
    let (victim, slot) = match slot {
        Slot::Of(victim) => (Some(*victim), 0),
        Slot::Same(slot) => (None, slot),
    };
    let integer = victim.as_ref().map_or(DType::I32, |victim| victim.dtype);
    let dtypes = [keys.dtype, positions.dtype, integer, key.dtype, value.dtype];
    let dtypes = dtypes.map(dtype_to_storage_type);
    debug_assert_eq!(keys.shape(), values.shape());
    debug_assert_eq!(keys.dtype, values.dtype);
    debug_assert_eq!(key.shape().num_elements(), batch * kv_heads * dim);
    debug_assert_eq!(value.shape().num_elements(), batch * kv_heads * dim);
    // SAFETY: units beyond `dim` end; the others write one element of an entry whose slot is cut to the number of
    // entries, through the strides of tensors that nobody else holds, see `writable`.
    unsafe {
        replace_kernel::launch_unchecked(
            &client,
            CubeCount::Static((batch * kv_heads) as u32, dim.div_ceil(UNITS) as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            keys.clone().into_tensor_arg(),
            values.clone().into_tensor_arg(),
            positions.clone().into_tensor_arg(),
            victim.map(CubeTensor::into_buffer_arg).into(),
            key.into_tensor_arg(),
            value.into_tensor_arg(),
            slot,
            position,
            dim,
            dtypes,
        );
    }
    (keys, values, positions)
}

/// One unit per element of an entry.
#[cube(launch_unchecked)]
fn replace_kernel<E: Float, I: Int, S: Int, K: Float, V: Float>(
    keys: &mut Tensor<E>,
    values: &mut Tensor<E>,
    positions: &mut Tensor<I>,
    victim: ComptimeOption<&[S]>,
    key: &Tensor<K>,
    value: &Tensor<V>,
    slot: usize,
    position: usize,
    dim: usize,
    #[define(E, I, S, K, V)] _dtypes: [ElemType; 5],
) {
    let kv = CUBE_POS_X as usize;
    let d = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if d >= dim {
        terminate!();
    }
    let kv_heads = keys.shape(1);
    let (batch, head) = (kv / kv_heads, kv % kv_heads);
    let of_head: ComptimeOption<usize> = victim.map(|all| usize::cast_from(all[kv]));
    let slot = min(of_head.unwrap_or(slot), keys.shape(2) - 1);
    let at = batch * keys.stride(0) + head * keys.stride(1) + slot * keys.stride(2);
    keys[at + d] = E::cast_from(key[kv * dim + d]);
    let at = batch * values.stride(0) + head * values.stride(1) + slot * values.stride(2);
    values[at + d] = E::cast_from(value[kv * dim + d]);
    if d == 0 {
        let at = batch * positions.stride(0) + head * positions.stride(1);
        let at = at + slot * positions.stride(2);
        positions[at] = I::cast_from(position);
    }
}

/// One unit per number that stays; `last` is the slot that is moved.
#[cube(launch_unchecked)]
fn move_last_kernel<I: Int>(
    statistics: &Tensor<f32>,
    victim: &Tensor<I>,
    moved: &mut Tensor<f32>,
    last: usize,
    width: usize,
    #[define(I)] _dtype: ElemType,
) {
    let head = CUBE_POS_X as usize;
    let i = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if i >= last * width {
        terminate!();
    }
    let mut from = 0usize;
    from += i;
    if i / width == usize::cast_from(victim[head]) {
        from = last * width + i % width;
    }
    moved[head * last * width + i] = statistics[head * (last + 1) * width + from];
}
