//! Moving and overwriting entries.

use super::PARALLEL_BYTES;
use super::bridge::{elements, existing, inner_dense, integer_tensor, integers};
use super::simd::Element;
use super::view::Heads;
use crate::ops::kernels::EntryOps;
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::Element as Number;
use burn::tensor::{DType, Shape, TensorData, bf16, f16};
use bytemuck::Pod;
use rayon::prelude::*;

impl EntryOps for Flex {
    fn compact(
        keys: FlexTensor,
        values: FlexTensor,
        positions: FlexTensor,
        slots: FlexTensor,
        capacity: usize,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (slots, positions) = (slots.to_contiguous(), positions.to_contiguous());
        let slots = integers(&slots);
        let gather = |tensor: FlexTensor| {
            let tensor = inner_dense(tensor);
            match tensor.dtype() {
                DType::F16 => gathered::<f16>(&tensor, &slots, capacity),
                DType::BF16 => gathered::<bf16>(&tensor, &slots, capacity),
                _ => gathered::<f32>(&tensor, &slots, capacity),
            }
        };
        let (keys, values) = (gather(keys), gather(values));
        let moved = kept_positions(&positions, &slots, capacity);
        (keys, values, moved)
    }

    fn replace_entry(
        keys: FlexTensor,
        values: FlexTensor,
        positions: FlexTensor,
        victim: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        position: usize,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let victim = victim.to_contiguous();
        replace(
            (keys, values, positions),
            &integers(&victim),
            key,
            value,
            position,
        )
    }

    fn write_entry(
        keys: FlexTensor,
        values: FlexTensor,
        positions: FlexTensor,
        slot: usize,
        key: FlexTensor,
        value: FlexTensor,
        position: usize,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [batch, heads, _] = positions.layout().shape().dims::<3>();
        let slots = vec![slot as i64; batch * heads];
        replace((keys, values, positions), &slots, key, value, position)
    }

    fn move_last(statistics: FlexTensor, victim: FlexTensor) -> FlexTensor {
        let (statistics, victim) = (statistics.to_contiguous(), victim.to_contiguous());
        let mut dims = statistics.layout().shape().to_vec();
        let heads = dims[0] * dims[1];
        let values = elements::<f32>(&statistics);
        let moved = move_last(values, &integers(&victim), values.len() / heads / dims[2]);
        dims[2] -= 1;
        FlexTensor::from_data(TensorData::new(moved, Shape::from(dims)))
    }
}

/// Contiguous `positions [batch, heads, n]` at `slots [batch * heads * count]`, in room for `capacity` of them; zeros follow.
pub fn kept_positions(positions: &FlexTensor, slots: &[i64], capacity: usize) -> FlexTensor {
    let [batch, heads, entries] = positions.layout().shape().dims::<3>();
    let count = slots.len() / (batch * heads);
    let mut moved = vec![0; batch * heads * capacity];
    let places = integers(positions);
    let of_heads = slots.chunks_exact(count).zip(places.chunks_exact(entries));
    for ((slots, places), moved) in of_heads.zip(moved.chunks_exact_mut(capacity)) {
        for (slot, moved) in slots.iter().zip(moved) {
            *moved = places[existing(*slot, entries)];
        }
    }
    integer_tensor(moved, [batch, heads, capacity], positions.dtype())
}

/// `positions [batch, heads, n]` with `position` at `slots [batch * heads]`, in place while the tensor is not shared.
pub fn set_positions(positions: FlexTensor, slots: &[i64], position: usize) -> FlexTensor {
    let mut positions = whole(positions);
    let capacity = positions.layout().shape().dims::<3>()[2];
    let at = slots.iter().enumerate();
    let at = at.map(|(head, &slot)| head * capacity + existing(slot, capacity));
    match positions.dtype() {
        DType::I64 => {
            let places = positions.storage_mut::<i64>();
            at.for_each(|at| places[at] = position as i64);
        }
        _ => {
            let places = positions.storage_mut::<i32>();
            at.for_each(|at| places[at] = position as i32);
        }
    }
    positions
}

fn gathered<E: Element>(tensor: &FlexTensor, slots: &[i64], capacity: usize) -> FlexTensor {
    let heads = Heads::<E>::of(tensor);
    let dims = [heads.batch, heads.heads, capacity, heads.dim];
    let output = gather(&heads, slots, capacity);
    FlexTensor::from_data(TensorData::new(output, Shape::from(dims)))
}

/// Contiguous and alone in its storage, to be written; a copy only if it is not.
pub fn whole(tensor: FlexTensor) -> FlexTensor {
    let whole = tensor.to_contiguous();
    // Writing copies what has a second holder.
    drop(tensor);
    whole
}

/// Overwrites the slot of each head.
fn replace(
    (keys, values, positions): (FlexTensor, FlexTensor, FlexTensor),
    slots: &[i64],
    key: FlexTensor,
    value: FlexTensor,
    position: usize,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let replace = |tensor: FlexTensor, entry: FlexTensor| {
        let dtype = tensor.dtype();
        let entry = match entry.dtype() == dtype {
            true => entry,
            false => Flex::float_cast(entry, dtype.into()),
        };
        match dtype {
            DType::F16 => overwrite::<f16>(tensor, slots, entry),
            DType::BF16 => overwrite::<bf16>(tensor, slots, entry),
            _ => overwrite::<f32>(tensor, slots, entry),
        }
    };
    let (keys, values) = (replace(keys, key), replace(values, value));
    (keys, values, set_positions(positions, slots, position))
}

/// Overwrites vectors of each head: `tensor [batch, heads, n, dim]` at `slots [batch * heads * count]` becomes `new
/// [batch, heads, count, dim]`.
pub fn overwrite<E: Number + Pod>(
    tensor: FlexTensor,
    slots: &[i64],
    new: FlexTensor,
) -> FlexTensor {
    let (mut tensor, new) = (whole(tensor), inner_dense(new));
    let [_, heads, entries, dim] = tensor.layout().shape().dims::<4>();
    let new = Heads::<E>::of(&new);
    let elements = tensor.storage_mut::<E>();
    for (index, &slot) in slots.iter().enumerate() {
        let (head, i) = (index / new.tokens, index % new.tokens);
        let at = (head * entries + existing(slot, entries)) * dim;
        let row = new.row(head / heads, head % heads, i);
        elements[at..at + dim].copy_from_slice(row);
    }
    tensor
}

/// The vectors at `slots [batch * kv_heads * count]`, in room for `capacity` of them; zeros follow.
pub fn gather<E: Number + Pod + Send + Sync>(
    tensor: &Heads<'_, E>,
    slots: &[i64],
    capacity: usize,
) -> Vec<E> {
    let heads = tensor.batch * tensor.heads;
    let count = slots.len() / heads;
    let mut output = vec![E::zeroed(); heads * capacity * tensor.dim];
    let work = |(kv, output): (usize, &mut [E])| {
        let slots = &slots[kv * count..(kv + 1) * count];
        for (slot, output) in slots.iter().zip(output.chunks_exact_mut(tensor.dim)) {
            let slot = existing(*slot, tensor.tokens);
            let row = tensor.row(kv / tensor.heads, kv % tensor.heads, slot);
            output.copy_from_slice(row);
        }
    };
    match size_of_val(&output[..]) < PARALLEL_BYTES {
        true => output
            .chunks_exact_mut(capacity * tensor.dim)
            .enumerate()
            .for_each(work),
        false => output
            .par_chunks_exact_mut(capacity * tensor.dim)
            .enumerate()
            .for_each(work),
    }
    output
}

/// `statistics [heads][n][width]` without the last entry, which moves to the slot `victims [heads]`.
pub fn move_last(statistics: &[f32], victims: &[i64], width: usize) -> Vec<f32> {
    let size = statistics.len() / victims.len();
    let mut moved = Vec::with_capacity(statistics.len() - victims.len() * width);
    for (statistics, &victim) in statistics.chunks_exact(size).zip(victims) {
        let (stay, last) = statistics.split_at(size - width);
        let at = moved.len() + existing(victim, size / width) * width;
        moved.extend_from_slice(stay);
        // The last entry may be the one that goes.
        if at < moved.len() {
            moved[at..at + width].copy_from_slice(last);
        }
    }
    moved
}
