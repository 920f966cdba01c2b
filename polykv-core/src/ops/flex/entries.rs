//! Choosing, comparing and moving entries: the tensors' elements go to the kernels, and back.

use super::simd::{Element, Level};
use super::view::Heads;
use super::{choice, elements, inner_dense, integer_tensor, integers, keys, pool, tensor, widened};
use crate::ops::Pool;
use crate::ops::kernels::{EntryOps, Guard, KeyOps};
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape, TensorData, bf16, f16};

impl EntryOps for Flex {
    fn select_top(
        scores: FloatTensor<Self>,
        positions: IntTensor<Self>,
        guard: Guard,
        _seen: usize,
        budget: usize,
    ) -> (IntTensor<Self>, FloatTensor<Self>) {
        let (scores, positions) = (scores.to_contiguous(), positions.to_contiguous());
        let [batch, heads, entries] = scores.layout().shape().dims::<3>();
        let (values, places) = (elements::<f32>(&scores), integers(&positions));
        let (kept, nans) = choice::select(values, &places, &guard, entries, budget);
        let kept = integer_tensor(kept, [batch, heads, budget], positions.dtype());
        (kept, tensor(nans, [batch, heads]))
    }

    fn compact(
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        positions: IntTensor<Self>,
        slots: IntTensor<Self>,
        capacity: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, IntTensor<Self>) {
        let (slots, positions) = (slots.to_contiguous(), positions.to_contiguous());
        let slots = integers(&slots);
        let gather = |tensor: FlexTensor| {
            let tensor = inner_dense(tensor);
            match tensor.dtype() {
                DType::F16 => gather::<f16>(&tensor, &slots, capacity),
                DType::BF16 => gather::<bf16>(&tensor, &slots, capacity),
                _ => gather::<f32>(&tensor, &slots, capacity),
            }
        };
        let (keys, values) = (gather(keys), gather(values));
        let [batch, heads, entries] = positions.layout().shape().dims::<3>();
        let count = slots.len() / (batch * heads);
        let mut moved = vec![0; batch * heads * capacity];
        let places = integers(&positions);
        let of_heads = slots.chunks_exact(count).zip(places.chunks_exact(entries));
        for ((slots, places), moved) in of_heads.zip(moved.chunks_exact_mut(capacity)) {
            for (slot, moved) in slots.iter().zip(moved) {
                *moved = places[*slot as usize];
            }
        }
        let moved = integer_tensor(moved, [batch, heads, capacity], positions.dtype());
        (keys, values, moved)
    }

    fn lowest(
        scores: FloatTensor<Self>,
        positions: IntTensor<Self>,
        guard: Guard,
    ) -> (IntTensor<Self>, FloatTensor<Self>) {
        let (scores, positions) = (scores.to_contiguous(), positions.to_contiguous());
        let [batch, heads, entries] = scores.layout().shape().dims::<3>();
        let (values, places) = (elements::<f32>(&scores), integers(&positions));
        let (slots, nans) = choice::lowest(values, &places, &guard, entries);
        let slots = integer_tensor(slots, [batch, heads, 1], positions.dtype());
        (slots, tensor(nans, [batch, heads]))
    }

    fn replace_entry(
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        positions: IntTensor<Self>,
        victim: IntTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        position: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, IntTensor<Self>) {
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
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        positions: IntTensor<Self>,
        slot: usize,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        position: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, IntTensor<Self>) {
        let [batch, heads, _] = positions.layout().shape().dims::<3>();
        let slots = vec![slot as i64; batch * heads];
        replace((keys, values, positions), &slots, key, value, position)
    }

    fn move_last(statistics: FloatTensor<Self>, victim: IntTensor<Self>) -> FloatTensor<Self> {
        let (statistics, victim) = (statistics.to_contiguous(), victim.to_contiguous());
        let mut dims = statistics.layout().shape().to_vec();
        let heads = dims[0] * dims[1];
        let values = elements::<f32>(&statistics);
        let moved = choice::move_last(values, &integers(&victim), values.len() / heads / dims[2]);
        dims[2] -= 1;
        FlexTensor::from_data(TensorData::new(moved, Shape::from(dims)))
    }

    fn drop_from_order(
        order: IntTensor<Self>,
        victim: IntTensor<Self>,
        moved: bool,
    ) -> IntTensor<Self> {
        let (order, victim) = (order.to_contiguous(), victim.to_contiguous());
        let [batch, heads, entries] = order.layout().shape().dims::<3>();
        let kept = choice::drop_from_order(&integers(&order), &integers(&victim), moved);
        integer_tensor(kept, [batch, heads, entries - 1], order.dtype())
    }

    fn extend_order(order: IntTensor<Self>, count: usize) -> IntTensor<Self> {
        let order = order.to_contiguous();
        let [batch, heads, entries] = order.layout().shape().dims::<3>();
        let slots = integers(&order);
        let new = entries as i64..(entries + count) as i64;
        let of_head = |old: &[i64]| old.iter().copied().chain(new.clone()).collect::<Vec<_>>();
        let all = slots.chunks_exact(entries).flat_map(of_head).collect();
        integer_tensor(all, [batch, heads, entries + count], order.dtype())
    }

    fn pool_scores(
        scores: FloatTensor<Self>,
        order: IntTensor<Self>,
        tail: usize,
        width: usize,
        mode: Pool,
    ) -> FloatTensor<Self> {
        let (scores, order) = (scores.to_contiguous(), order.to_contiguous());
        let dims = scores.layout().shape().dims::<3>();
        let (values, order) = (elements::<f32>(&scores), integers(&order));
        let pooled = pool::pool(Level::best(), values, &order, dims[2], tail, width, mode);
        tensor(pooled, dims)
    }
}

impl KeyOps for Flex {
    fn key_norms(keys: FloatTensor<Self>) -> FloatTensor<Self> {
        let keys = widened(keys);
        let keys = Heads::of(&keys);
        let norms = keys::norms(Level::best(), &keys);
        tensor(norms, [keys.batch, keys.heads, keys.tokens])
    }

    fn key_cosines(
        keys: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        anchor: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (keys, anchor, norms) = (widened(keys), inner_dense(anchor), norms.to_contiguous());
        let (keys, anchor) = (Heads::of(&keys), Heads::of(&anchor));
        let cosines = keys::cosines(Level::best(), &keys, elements(&norms), &anchor);
        tensor(cosines, [keys.batch, keys.heads, keys.tokens])
    }

    fn closest(
        keys: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        evicted: IntTensor<Self>,
        kept: IntTensor<Self>,
    ) -> (FloatTensor<Self>, IntTensor<Self>) {
        let (keys, norms) = (widened(keys), norms.to_contiguous());
        let [evicted, kept] = [evicted, kept].map(|slots| slots.to_contiguous());
        let dims = evicted.layout().shape().dims::<3>();
        let (all, norms) = (Heads::of(&keys), elements(&norms));
        let (slots, others) = (integers(&evicted), integers(&kept));
        let (cosines, places) = keys::closest(Level::best(), &all, norms, &slots, &others);
        let places = integer_tensor(places, dims, kept.dtype());
        (tensor(cosines, dims), places)
    }

    fn merge_into(
        vectors: FloatTensor<Self>,
        evicted: IntTensor<Self>,
        kept: IntTensor<Self>,
        places: IntTensor<Self>,
        parts: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (vectors, parts) = (widened(vectors), parts.to_contiguous());
        let [evicted, kept, places] = [evicted, kept, places].map(|slots| slots.to_contiguous());
        let [batch, heads, staying] = kept.layout().shape().dims::<3>();
        let vectors = Heads::of(&vectors);
        let (evicted, kept, places) = (integers(&evicted), integers(&kept), integers(&places));
        let sums = keys::merge_into(&vectors, &evicted, &kept, &places, elements(&parts));
        tensor(sums, [batch, heads, staying, vectors.dim])
    }

    fn spread_into(
        vectors: FloatTensor<Self>,
        positions: IntTensor<Self>,
        evicted: IntTensor<Self>,
        kept: IntTensor<Self>,
        parts: FloatTensor<Self>,
        window: usize,
    ) -> FloatTensor<Self> {
        let (vectors, parts) = (widened(vectors), parts.to_contiguous());
        let [positions, evicted, kept] = [positions, evicted, kept].map(|x| x.to_contiguous());
        let [batch, heads, staying] = kept.layout().shape().dims::<3>();
        let vectors = Heads::of(&vectors);
        let (places, evicted, kept) = (integers(&positions), integers(&evicted), integers(&kept));
        let parts = elements(&parts);
        let sums = keys::spread_into(&vectors, &places, &evicted, &kept, parts, window);
        tensor(sums, [batch, heads, staying, vectors.dim])
    }
}

fn gather<E: Element>(tensor: &FlexTensor, slots: &[i64], capacity: usize) -> FlexTensor {
    let heads = Heads::<E>::of(tensor);
    let dims = [heads.batch, heads.heads, capacity, heads.dim];
    let output = choice::gather(&heads, slots, capacity);
    FlexTensor::from_data(TensorData::new(output, Shape::from(dims)))
}

/// Contiguous and alone in its storage, to be written; a copy only if it is not.
fn whole(tensor: FlexTensor) -> FlexTensor {
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
    let mut positions = whole(positions);
    let capacity = positions.layout().shape().dims::<3>()[2];
    let at = slots.iter().enumerate();
    let at = at.map(|(head, &slot)| head * capacity + slot as usize);
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
    (keys, values, positions)
}

/// Overwrites one vector of each head: `tensor [batch, heads, n, dim]` at `slots [batch * heads]` becomes `entry
/// [batch, heads, 1, dim]`.
fn overwrite<E: Element>(tensor: FlexTensor, slots: &[i64], entry: FlexTensor) -> FlexTensor {
    let (mut tensor, entry) = (whole(tensor), inner_dense(entry));
    let [_, heads, entries, dim] = tensor.layout().shape().dims::<4>();
    let entry = Heads::<E>::of(&entry);
    let elements = tensor.storage_mut::<E>();
    for (head, &slot) in slots.iter().enumerate() {
        let at = (head * entries + slot as usize) * dim;
        let row = entry.row(head / heads, head % heads, 0);
        elements[at..at + dim].copy_from_slice(row);
    }
    tensor
}
