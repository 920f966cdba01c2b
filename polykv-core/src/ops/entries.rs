//! Moving and overwriting the entries of a cache. A slot that is no number below n counts as n − 1.

#[cfg(feature = "cube")]
use super::kernels::StepOps;
use super::kernels::{EntryOps, kernel};
use super::oracle;
use super::route::Route;
use super::tensor::{put, take};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, s};

/// Keys and values `[batch, kv_heads, n, d]` as they are stored, and positions `[batch, kv_heads, n]`.
pub type Entries = (Tensor<4>, Tensor<4>, Tensor<3, Int>);

/// The entries at `slots [batch, kv_heads, m]`, in that order, in tensors with `capacity` slots; the slots behind them are
/// zero.
///
/// # Panics
/// If the shapes do not fit, without entries or slots, and if the room is less than m.
pub fn compact(entries: Entries, slots: Tensor<3, Int>, capacity: usize) -> Entries {
    let [batch, kv_heads, _] = check(&entries);
    let [sequences, heads, count] = slots.dims();
    assert_eq!([sequences, heads], [batch, kv_heads], "slots of every head");
    assert!(
        (1..=capacity).contains(&count),
        "{count} slots for {capacity}"
    );
    let (keys, values, positions) = entries;
    let route = Route::on(&keys.device()).if_alike([keys.dtype(), values.dtype()]);
    if route != Route::Plain {
        return kernel!(EntryOps::compact(keys, values, positions, slots, capacity));
    }
    let slots = oracle::choice::existing(slots, positions.dims()[2]);
    let kept = (
        take(keys, slots.clone()),
        take(values, slots.clone()),
        positions.gather(2, slots),
    );
    grow(kept, capacity)
}

/// The entries in tensors with room for `capacity` of them; what follows is zero.
pub(crate) fn grow((keys, values, positions): Entries, capacity: usize) -> Entries {
    let [batch, kv_heads, count] = positions.dims();
    let grown = |old: Tensor<4>| {
        let dims = [batch, kv_heads, capacity, old.dims()[3]];
        let room = Tensor::zeros(dims, (&old.device(), old.dtype()));
        match count {
            0 => room,
            _ => room.slice_assign(s![.., .., 0..count, ..], old),
        }
    };
    let room = Tensor::zeros([batch, kv_heads, capacity], &positions.device());
    let positions = match count {
        0 => room,
        _ => room.slice_assign(s![.., .., 0..count], positions),
    };
    (grown(keys), grown(values), positions)
}

/// Overwrites the entry in slot `victim [batch, kv_heads, 1]` by `key` and `value [batch, kv_heads, 1, d]`, in the type
/// that is stored or f32, at `position`, in place while the tensors are not shared.
///
/// # Panics
/// If the shapes do not fit, and without entries.
pub fn replace(
    entries: Entries,
    victim: Tensor<3, Int>,
    key: Tensor<4>,
    value: Tensor<4>,
    position: usize,
) -> Entries {
    let [batch, kv_heads, capacity] = check(&entries);
    check_entry(&entries, &key, &value);
    assert_eq!(victim.dims(), [batch, kv_heads, 1], "a victim per head");
    let (keys, values, positions) = entries;
    let route = Route::on(&victim.device()).if_alike([keys.dtype(), values.dtype()]);
    if route != Route::Plain {
        return kernel!(EntryOps::replace_entry(
            keys, values, positions, victim, key, value, position
        ));
    }
    let victim = oracle::choice::existing(victim, capacity);
    let moved = victim.full_like(position as i64);
    let (key, value) = (key.cast(keys.dtype()), value.cast(values.dtype()));
    (
        put(keys, victim.clone(), key),
        put(values, victim.clone(), value),
        positions.scatter(2, victim, moved, IndexingUpdateOp::Assign),
    )
}

/// Overwrites the entry in slot `slot` of every head by `key` and `value [batch, kv_heads, 1, d]`, in the type that is
/// stored or f32, at `position`, in place while the tensors are not shared.
///
/// # Panics
/// If the shapes do not fit, and for a slot beyond the last.
pub fn write(
    entries: Entries,
    slot: usize,
    key: Tensor<4>,
    value: Tensor<4>,
    position: usize,
) -> Entries {
    let [batch, kv_heads, capacity] = check(&entries);
    check_entry(&entries, &key, &value);
    assert!(slot < capacity, "slot {slot} of {capacity}");
    let device = entries.2.device();
    let types = [entries.0.dtype(), entries.1.dtype()];
    if Route::on(&device).if_alike(types) != Route::Plain {
        let (keys, values, positions) = entries;
        return kernel!(EntryOps::write_entry(
            keys, values, positions, slot, key, value, position
        ));
    }
    let slots = Tensor::full([batch, kv_heads, 1], slot as i64, &device);
    replace(entries, slots, key, value, position)
}

/// Statistics per entry, `[batch, kv_heads, n, ..]` in f32, after the last entry has moved into the slot `victim [batch,
/// kv_heads, 1]`: `[batch, kv_heads, n − 1, ..]`.
///
/// # Panics
/// If the shapes do not fit, and without entries.
pub fn move_last<const D: usize>(statistics: Tensor<D>, victim: Tensor<3, Int>) -> Tensor<D> {
    let dims = statistics.dims();
    assert!(D >= 3 && dims[2] > 0, "at least one entry");
    assert_eq!(victim.dims(), [dims[0], dims[1], 1], "a victim per head");
    match Route::of(&statistics) {
        Route::Plain => oracle::choice::move_last(statistics, victim),
        _ => kernel!(EntryOps::move_last(statistics, victim)),
    }
}

/// `queries [batch, heads, n, d]` without the first, and one behind the others, `new [batch, heads, 1, d]`, where that is one kernel.
pub(crate) fn push(queries: &Tensor<4>, new: &Tensor<4>) -> Option<Tensor<4>> {
    #[cfg(feature = "cube")]
    if Route::of(queries).if_f32(new) == Route::Gpu {
        return Some(kernel!(StepOps::push(queries.clone(), new.clone())));
    }
    let _ = (queries, new);
    None
}

/// Statistics per entry, `[batch, kv_heads, n, ..]`, with `count` zeros behind those of each head.
pub(crate) fn extend<const D: usize>(statistics: Tensor<D>, count: usize) -> Tensor<D> {
    if count == 0 {
        return statistics;
    }
    #[cfg(feature = "cube")]
    if Route::of(&statistics) == Route::Gpu {
        return kernel!(StepOps::extend(statistics, count));
    }
    let mut dims = statistics.dims();
    dims[2] = count;
    let zeros = Tensor::zeros(dims, (&statistics.device(), statistics.dtype()));
    Tensor::cat(vec![statistics, zeros], 2)
}

/// `[batch, kv_heads, n]` of entries whose shapes fit each other.
pub(super) fn check((keys, values, positions): &Entries) -> [usize; 3] {
    let dims @ [batch, kv_heads, entries] = positions.dims();
    let d = keys.dims()[3];
    assert!(entries > 0, "at least one entry");
    for tensor in [keys, values] {
        assert_eq!(
            tensor.dims(),
            [batch, kv_heads, entries, d],
            "a vector per position"
        );
    }
    dims
}

/// The shapes of one new entry of every head.
pub(super) fn check_entry((keys, ..): &Entries, key: &Tensor<4>, value: &Tensor<4>) {
    let [batch, kv_heads, _, d] = keys.dims();
    for vector in [key, value] {
        assert_eq!(vector.dims(), [batch, kv_heads, 1, d], "an entry per head");
    }
}
