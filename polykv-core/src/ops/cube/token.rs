//! Attention of one token per sequence. Keys are split over cubes; a second kernel joins the parts. Each key and value
//! is read once for the queries of its group, or for eight of them at a time.

mod parts;

pub(super) use parts::{exponentiate, join_kernel};

use super::ranges::{Ranges, at_step, first_of, held_of, shared_of, slot_of, wanted_of};
use super::{HIDDEN, Mask, cap, dense, empty, in_window, length, share, unrolls, width};
use crate::ops::kernels::{self, TokenOps, Window};
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use parts::visible;

/// Keys per cube.
pub(super) const CHUNK: usize = 128;

impl TokenOps for CubeBackend {
    fn attend_token(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        entries: usize,
        mask: kernels::Mask<Self>,
    ) -> (CubeTensor, CubeTensor) {
        attend(q, [k, v], entries, None, Extent::Alike, Mask::of(mask, 1))
    }

    fn attend_lengths(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        lengths: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let none = kernels::Mask {
            softcap: None,
            window: Window::None,
        };
        let lengths = Extent::Lengths(into_contiguous(lengths));
        let n = k.shape()[2];
        attend(q, [k, v], n, None, lengths, Mask::of(none, 1))
    }
}

/// An entry that is written before it is attended to: key and value `[batch, kv_heads, 1, d]` in any type, contiguous, and the
/// positions `[batch, kv_heads, capacity]`, which nobody else holds.
pub(super) struct New {
    pub key: CubeTensor,
    pub value: CubeTensor,
    pub positions: CubeTensor,
    pub position: usize,
}

/// Which keys a KV head has.
pub(super) enum Extent {
    /// As many as all others.
    Alike,
    /// The first of its own, `[batch, kv_heads]`.
    Lengths(CubeTensor),
    /// Those of its range of `k` and `v [1, 1, slots, d]`.
    Ranges(Ranges),
}

/// `q [batch, heads, 1, d]`, `k`, `v [batch, kv_heads, capacity, d]` → the output like `q` and the probabilities `[batch,
/// kv_heads, group, n]` over the first `n` keys; of each KV head those that `extent` gives it, or those that the mask lets the query
/// see. The last of them is `new` if it is given: then nobody else holds `k` and `v`. In ranges, of which the longest has `n` keys,
/// the probabilities are `[1, 1, group, slots]` and undefined where no range is, and in those where nobody wants to know them.
pub(super) fn attend(
    q: CubeTensor,
    [k, v]: [CubeTensor; 2],
    n: usize,
    new: Option<New>,
    extent: Extent,
    mask: Mask,
) -> (CubeTensor, CubeTensor) {
    debug_assert!(n <= k.shape()[2] && n <= v.shape()[2]);
    let (lengths, ranges) = match extent {
        Extent::Alike => (None, None),
        Extent::Lengths(lengths) => (Some(lengths), None),
        Extent::Ranges(ranges) => (None, Some(ranges)),
    };
    let capacity = k.shape()[2];
    let [q, k, v] = [into_contiguous(q), dense(k), dense(v)];
    let [batch, heads, _, dim] = q.shape().dims::<4>();
    let kv_heads = ranges
        .as_ref()
        .map_or(k.shape()[1], |ranges| ranges.kv_heads);
    let group = heads / kv_heads;
    let part = share(group, 8);
    let width = width(&[&k, &v]);
    let words = dim / width;
    // Every word of a value has a unit of its own.
    let units = words.next_power_of_two().max(64);
    let splits = n.div_ceil(CHUNK);
    let blocks = batch * heads / part;
    let parts = empty(&q, [blocks, splits, part, dim], DType::F32);
    let stats = empty(&q, [blocks, splits, part, 2], DType::F32);
    let row = match ranges {
        Some(_) => [1, 1, group, capacity],
        None => [batch, kv_heads, group, n],
    };
    let row = empty(&q, row, DType::F32);
    let output = empty(&q, [batch, heads, 1, dim], DType::F32);
    let client = q.client.clone();
    let type_of = |tensor: Option<&CubeTensor>| tensor.map_or(DType::I32, |tensor| tensor.dtype);
    let (integer, steps) = (
        type_of(lengths.as_ref()),
        ranges.as_ref().map_or(0, |r| r.steps),
    );
    let table = ranges.map(|ranges| ranges.table);
    let dtypes = [k.dtype, integer, mask.dtype(), type_of(table.as_ref())];
    let dtypes @ [_, integer, _, numbers] = dtypes.map(dtype_to_storage_type);
    let writes = new.is_some();
    let (key, value, positions, position) = match new {
        Some(new) => (new.key, new.value, new.positions, new.position),
        // Room that is not touched.
        None => (q.clone(), q.clone(), empty(&q, [1], DType::I32), 0),
    };
    let written = [key.dtype, value.dtype, positions.dtype].map(dtype_to_storage_type);
    debug_assert!(!writes || key.shape().num_elements() == batch * kv_heads * dim);
    debug_assert!(!writes || value.shape().num_elements() == batch * kv_heads * dim);
    debug_assert!(!writes || positions.shape().num_elements() == k.shape().num_elements() / dim);
    let lengths = || lengths.clone().map(CubeTensor::into_buffer_arg);
    let table = || table.clone().map(CubeTensor::into_buffer_arg);
    debug_assert_eq!(k.shape(), v.shape());
    debug_assert_eq!(k.dtype, v.dtype);
    debug_assert!(heads.is_multiple_of(kv_heads) && group.is_multiple_of(part));
    debug_assert!(units >= words && n > 0);
    // SAFETY: a cube has `part` queries of a KV head and a split of its keys, of which it passes those below its `seen`:
    // `visible` makes that 1 to n of any length, and `first_of` and `held_of` make any range one within the slots. It writes the places of its block and split, and of a new entry the vectors and
    // the position in slot `n − 1`, which is below the capacity; shared memory has a place per unit, word and key of a split. The
    // second kernel has a cube per query head and reads the splits up to `seen`.
    unsafe {
        part_kernel::launch_unchecked(
            &client,
            CubeCount::Static(blocks as u32, splits as u32, 1),
            CubeDim::new_1d(units as u32),
            width,
            q.into_tensor_arg(),
            k.into_tensor_arg(),
            v.into_tensor_arg(),
            key.into_tensor_arg(),
            value.into_tensor_arg(),
            positions.into_tensor_arg(),
            lengths().into(),
            table().into(),
            row.clone().into_tensor_arg(),
            parts.clone().into_tensor_arg(),
            stats.clone().into_tensor_arg(),
            mask.positions.map(CubeTensor::into_buffer_arg).into(),
            1.0 / (dim as f32).sqrt(),
            mask.softcap,
            mask.size,
            mask.first,
            n,
            position,
            capacity,
            steps,
            words,
            writes,
            mask.capped,
            group,
            part,
            words,
            width,
            units,
            unrolls(&client),
            dtypes,
            written,
        );
        join_kernel::launch_unchecked(
            &client,
            CubeCount::Static((batch * heads) as u32, 1, 1),
            CubeDim::new_1d(units as u32),
            width,
            parts.into_tensor_arg(),
            stats.into_tensor_arg(),
            lengths().into(),
            table().into(),
            row.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            splits,
            n,
            steps,
            capacity,
            group,
            part,
            words,
            units,
            [integer, numbers],
        );
    }
    (output, row)
}

/// One cube per (`part` queries of a KV head, `CHUNK` keys). `parts` get the values weighted by the exponentials
/// relative to the part's largest score, `stats` that score and the exponentials' sum, `row` the exponentials. Keys from
/// the head's length on are left alone; compiled without lengths, the kernel has no trace of them.
#[cube(launch_unchecked)]
fn part_kernel<E: Float, I: Int, P: Int, T: Int, K: Float, V: Float, W: Int, N: Size>(
    q: &Tensor<Vector<f32, N>>,
    k: &mut Tensor<Vector<E, N>>,
    v: &mut Tensor<Vector<E, N>>,
    new_key: &Tensor<Vector<K, N>>,
    new_value: &Tensor<Vector<V, N>>,
    new_position: &mut Tensor<W>,
    lengths: ComptimeOption<&[I]>,
    table: ComptimeOption<&[T]>,
    row: &mut Tensor<f32>,
    parts: &mut Tensor<Vector<f32, N>>,
    stats: &mut Tensor<f32>,
    positions: ComptimeOption<&[P]>,
    scale: f32,
    softcap: f32,
    size: usize,
    position: usize,
    n: usize,
    written_at: usize,
    capacity: usize,
    table_steps: usize,
    steps: usize,
    #[comptime] writes: bool,
    #[comptime] capped: bool,
    #[comptime] group: usize,
    #[comptime] part: usize,
    #[comptime] words: usize,
    #[comptime] width: usize,
    #[comptime] units: usize,
    #[comptime] known: bool,
    #[define(E, I, P, T)] _dtypes: [ElemType; 4],
    #[define(K, V, W)] _written: [ElemType; 3],
) {
    let steps = length(steps, words, known);
    let unit = UNIT_POS_X as usize;
    let block = CUBE_POS_X as usize;
    let split = CUBE_POS_Y as usize;
    let splits = CUBE_COUNT_Y as usize;
    let blocks = comptime!(group / part);
    let kv_heads = k.shape(1);
    let batch = block / blocks / kv_heads;
    let head = block / blocks % kv_heads;
    let first = split * CHUNK;
    let ragged = lengths.is_some();
    let ranged = table.is_some();
    let kv = block / blocks;
    let start = first_of(table, kv, capacity);
    let (shared, shared_start) = shared_of(table, kv);
    let seen = held_of(table, kv, table_steps, capacity, visible(lengths, kv, n));
    if comptime!(ragged || ranged) {
        // Of a split that lies beyond, nothing is read or written.
        if first >= seen {
            terminate!();
        }
    }
    let count = min(seen - first, CHUNK);

    let mut queries = Shared::<[Vector<f32, N>]>::new_slice(comptime!(part * words));
    let mut scores = Shared::<[f32]>::new_slice(comptime!(part * CHUNK));
    let mut most = Shared::<[f32]>::new_slice(part);
    let mut gathered = Shared::<[f32]>::new_slice(comptime!(part * units));
    let mut sums = Shared::<[Vector<f32, N>]>::new_slice(comptime!(part * units));

    let mut i = unit;
    while i < comptime!(part * words) {
        queries[i] = q[block * comptime!(part * words) + i] * Vector::new(scale);
        i += units;
    }
    sync_cube();

    // One key per unit.
    let key_step = k.stride(2) / width;
    let mut key_start = 0usize;
    if comptime!(!ranged) {
        key_start = (batch * k.stride(0) + head * k.stride(1)) / width;
    }
    let mut best = Array::<f32>::new(part);
    #[unroll]
    for g in 0..part {
        best[g] = HIDDEN;
    }
    let mut j = unit;
    while j < count {
        let mut slot = first + j;
        if comptime!(ranged) {
            slot = slot_of(first + j, start, shared, shared_start, capacity);
        }
        let at = key_start + slot * key_step;
        let mut products = Array::<Vector<f32, N>>::new(part);
        #[unroll]
        for g in 0..part {
            products[g] = Vector::new(0.0f32);
        }
        let mut newest = false;
        if comptime!(writes) {
            newest = first + j + 1 == seen;
        }
        for w in 0..steps {
            let mut stored = k[at + w];
            if newest {
                // Rounded as it is stored. Cubes with other queries of the head write the same.
                stored = Vector::cast_from(new_key[kv * words + w]);
                k[at + w] = stored;
            }
            let key = Vector::<f32, N>::cast_from(stored);
            #[unroll]
            for g in 0..part {
                products[g] += key * queries[g * words + w];
            }
        }
        let place = kv * n + first + j;
        let seen_by: ComptimeOption<usize> =
            positions.map(|all| in_window::<P>(all[place], size, position, n));
        // There is one query: more than 0 mean that it sees the key.
        let seen_by = seen_by.unwrap_or(n);
        #[unroll]
        for g in 0..part {
            let product = products[g];
            let mut score = 0.0f32;
            #[unroll]
            for lane in 0..width {
                score += product.extract(lane);
            }
            score = cap(score, softcap, capped);
            if seen_by == 0usize {
                score = HIDDEN;
            }
            scores[g * CHUNK + j] = score;
            best[g] = max(best[g], score);
        }
        j += units;
    }
    let place = (block * splits + split) * part;
    let mut row_start = block * part * n + first;
    let mut row_step = n;
    let mut newest_at = kv * capacity + n - 1;
    let mut new_number = written_at;
    let mut wanted = count;
    if comptime!(ranged) {
        wanted = wanted_of(table, kv, count);
        row_start = block % blocks * part * capacity + start + first;
        row_step = capacity;
        newest_at = slot_of(seen - 1, start, shared, shared_start, capacity);
        new_number = at_step(table, kv, table_steps);
    }
    exponentiate(
        &best,
        &mut scores,
        &mut most,
        &mut gathered,
        row,
        row_start,
        stats,
        place,
        row_step,
        count,
        wanted,
        part,
        units,
    );

    // One word per unit, and as many keys at a time as there are units for.
    let slices = comptime!(units / words);
    let word = unit % words;
    let slice = unit / words;
    let value_step = v.stride(2) / width;
    let mut value_start = 0usize;
    if comptime!(!ranged) {
        value_start = (batch * v.stride(0) + head * v.stride(1)) / width;
    }
    let mut weighted = Array::<Vector<f32, N>>::new(part);
    #[unroll]
    for g in 0..part {
        weighted[g] = Vector::new(0.0f32);
    }
    if comptime!(writes) {
        if unit == 0 && first + count == seen {
            new_position[newest_at] = W::cast_from(new_number);
        }
    }
    if slice < slices {
        let mut j = slice;
        while j < count {
            let mut slot = first + j;
            if comptime!(ranged) {
                slot = slot_of(first + j, start, shared, shared_start, capacity);
            }
            let at = value_start + slot * value_step + word;
            let mut stored = v[at];
            if comptime!(writes) {
                if first + j + 1 == seen {
                    stored = Vector::cast_from(new_value[kv * words + word]);
                    v[at] = stored;
                }
            }
            let value = Vector::<f32, N>::cast_from(stored);
            #[unroll]
            for g in 0..part {
                weighted[g] += value * Vector::new(scores[g * CHUNK + j]);
            }
            j += slices;
        }
        #[unroll]
        for g in 0..part {
            sums[(g * slices + slice) * words + word] = weighted[g];
        }
    }
    sync_cube();
    let mut i = unit;
    while i < comptime!(part * words) {
        let g = i / words;
        let mut sum = Vector::<f32, N>::new(0.0f32);
        for s in 0..slices {
            sum += sums[(g * slices + s) * words + i % words];
        }
        parts[place * words + i] = sum;
        i += units;
    }
}
