//! Attention of one token per sequence. Keys are split over cubes; a second kernel joins the parts. Each key and value
//! is read once for the queries of its group, or for eight of them at a time.

use super::{HIDDEN, Mask, cap, dense, empty, in_window, length, share, unrolls, width};
use crate::ops::kernels::{self, TokenOps, Window};
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

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
        debug_assert!(entries <= k.shape()[2] && entries <= v.shape()[2]);
        let [k, v] = [k, v].map(|mut all| {
            all.meta.shape[2] = entries;
            all
        });
        attend(q, k, v, None, Mask::of(mask, 1))
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
        let lengths = into_contiguous(lengths);
        attend(q, k, v, Some(lengths), Mask::of(none, 1))
    }
}

/// `q [batch, heads, 1, d]`, `k`, `v [batch, kv_heads, n, d]` → the output like `q` and the probabilities `[batch,
/// kv_heads, group, n]`; of each KV head the first `lengths [batch, kv_heads]` keys if they are given, or those that the
/// mask lets the query see.
fn attend(
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    lengths: Option<CubeTensor>,
    mask: Mask,
) -> (CubeTensor, CubeTensor) {
    let (q, k, v) = (into_contiguous(q), dense(k), dense(v));
    let [batch, heads, _, dim] = q.shape().dims::<4>();
    let [_, kv_heads, n, _] = k.shape().dims::<4>();
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
    let row = empty(&q, [batch, kv_heads, group, n], DType::F32);
    let output = empty(&q, [batch, heads, 1, dim], DType::F32);
    let client = q.client.clone();
    let integer = lengths.as_ref().map_or(DType::I32, |lengths| lengths.dtype);
    let [dtype, integer, place] = [k.dtype, integer, mask.dtype()].map(dtype_to_storage_type);
    let lengths = || lengths.clone().map(CubeTensor::into_buffer_arg);
    debug_assert_eq!(k.shape(), v.shape());
    debug_assert_eq!(k.dtype, v.dtype);
    debug_assert!(heads.is_multiple_of(kv_heads) && group.is_multiple_of(part));
    debug_assert!(units >= words && n > 0);
    // SAFETY: a cube has `part` queries of a KV head and a split of its keys, of which it passes those below its `seen`:
    // `visible` makes that 1 to n of any length. It writes the places of its block and split; shared memory has a place
    // per unit, word and key of a split. The second kernel has a cube per query head and reads the splits up to `seen`.
    unsafe {
        part_kernel::launch_unchecked(
            &client,
            CubeCount::Static(blocks as u32, splits as u32, 1),
            CubeDim::new_1d(units as u32),
            width,
            q.into_tensor_arg(),
            k.into_tensor_arg(),
            v.into_tensor_arg(),
            lengths().into(),
            row.clone().into_tensor_arg(),
            parts.clone().into_tensor_arg(),
            stats.clone().into_tensor_arg(),
            mask.positions.map(CubeTensor::into_buffer_arg).into(),
            1.0 / (dim as f32).sqrt(),
            mask.softcap,
            mask.size,
            mask.first,
            words,
            mask.capped,
            group,
            part,
            words,
            width,
            units,
            unrolls(&client),
            [dtype, integer, place],
        );
        join_kernel::launch_unchecked(
            &client,
            CubeCount::Static((batch * heads) as u32, 1, 1),
            CubeDim::new_1d(units as u32),
            width,
            parts.into_tensor_arg(),
            stats.into_tensor_arg(),
            lengths().into(),
            row.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            splits,
            n,
            group,
            part,
            words,
            units,
            integer,
        );
    }
    (output, row)
}

/// One cube per (`part` queries of a KV head, `CHUNK` keys). `parts` get the values weighted by the exponentials
/// relative to the part's largest score, `stats` that score and the exponentials' sum, `row` the exponentials. Keys from
/// the head's length on are left alone; compiled without lengths, the kernel has no trace of them.
#[cube(launch_unchecked)]
fn part_kernel<E: Float, I: Int, P: Int, N: Size>(
    q: &Tensor<Vector<f32, N>>,
    k: &Tensor<Vector<E, N>>,
    v: &Tensor<Vector<E, N>>,
    lengths: ComptimeOption<&[I]>,
    row: &mut Tensor<f32>,
    parts: &mut Tensor<Vector<f32, N>>,
    stats: &mut Tensor<f32>,
    positions: ComptimeOption<&[P]>,
    scale: f32,
    softcap: f32,
    size: usize,
    position: usize,
    steps: usize,
    #[comptime] capped: bool,
    #[comptime] group: usize,
    #[comptime] part: usize,
    #[comptime] words: usize,
    #[comptime] width: usize,
    #[comptime] units: usize,
    #[comptime] known: bool,
    #[define(E, I, P)] _dtypes: [ElemType; 3],
) {
    let steps = length(steps, words, known);
    let unit = UNIT_POS_X as usize;
    let block = CUBE_POS_X as usize;
    let split = CUBE_POS_Y as usize;
    let splits = CUBE_COUNT_Y as usize;
    let blocks = comptime!(group / part);
    let kv_heads = k.shape(1);
    let n = k.shape(2);
    let batch = block / blocks / kv_heads;
    let head = block / blocks % kv_heads;
    let first = split * CHUNK;
    let ragged = lengths.is_some();
    let seen = visible(lengths, block / blocks, n);
    if comptime!(ragged) {
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
    let key_start = (batch * k.stride(0) + head * k.stride(1)) / width;
    let key_step = k.stride(2) / width;
    let mut best = Array::<f32>::new(part);
    #[unroll]
    for g in 0..part {
        best[g] = HIDDEN;
    }
    let mut j = unit;
    while j < count {
        let at = key_start + (first + j) * key_step;
        let mut products = Array::<Vector<f32, N>>::new(part);
        #[unroll]
        for g in 0..part {
            products[g] = Vector::new(0.0f32);
        }
        for w in 0..steps {
            let key = Vector::<f32, N>::cast_from(k[at + w]);
            #[unroll]
            for g in 0..part {
                products[g] += key * queries[g * words + w];
            }
        }
        let place = block / blocks * n + first + j;
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
    exponentiate(
        &best,
        &mut scores,
        &mut most,
        &mut gathered,
        row,
        block * part * n + first,
        stats,
        place,
        n,
        count,
        part,
        units,
    );

    // One word per unit, and as many keys at a time as there are units for.
    let slices = comptime!(units / words);
    let word = unit % words;
    let slice = unit / words;
    let value_start = (batch * v.stride(0) + head * v.stride(1)) / width;
    let value_step = v.stride(2) / width;
    let mut weighted = Array::<Vector<f32, N>>::new(part);
    #[unroll]
    for g in 0..part {
        weighted[g] = Vector::new(0.0f32);
    }
    if slice < slices {
        let mut j = slice;
        while j < count {
            let at = value_start + (first + j) * value_step + word;
            let value = Vector::<f32, N>::cast_from(v[at]);
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

/// Makes exponentials relative to the largest of a cube's `scores [part][CHUNK]`, of which a unit has seen `best [part]` at the
/// most: of `count` keys, also in rows of `n` keys from `first` of `row` on. `stats` get the largest and the sum from `place` on. All
/// units call it together.
#[cube]
pub(super) fn exponentiate(
    best: &Array<f32>,
    scores: &mut Shared<[f32]>,
    most: &mut Shared<[f32]>,
    gathered: &mut Shared<[f32]>,
    row: &mut Tensor<f32>,
    first: usize,
    stats: &mut Tensor<f32>,
    place: usize,
    n: usize,
    count: usize,
    #[comptime] part: usize,
    #[comptime] units: usize,
) {
    let unit = UNIT_POS_X as usize;
    #[unroll]
    for g in 0..part {
        gathered[g * units + unit] = best[g];
    }
    sync_cube();
    if unit < part {
        let mut largest = f32::new(HIDDEN);
        for u in 0..units {
            largest = max(largest, gathered[unit * units + u]);
        }
        most[unit] = largest;
    }
    sync_cube();
    let mut totals = Array::<f32>::new(part);
    #[unroll]
    for g in 0..part {
        totals[g] = 0.0f32;
    }
    let mut j = unit;
    while j < count {
        #[unroll]
        for g in 0..part {
            let p = (scores[g * CHUNK + j] - most[g]).exp();
            scores[g * CHUNK + j] = p;
            row[first + g * n + j] = p;
            totals[g] += p;
        }
        j += units;
    }
    #[unroll]
    for g in 0..part {
        gathered[g * units + unit] = totals[g];
    }
    sync_cube();
    if unit < part {
        let mut total = 0.0f32;
        for u in 0..units {
            total += gathered[unit * units + u];
        }
        stats[(place + unit) * 2] = most[unit];
        stats[(place + unit) * 2 + 1] = total;
    }
}

/// How many of its `n` keys a head sees, 1 to n.
#[cube]
fn visible<I: Int>(lengths: ComptimeOption<&[I]>, head: usize, n: usize) -> usize {
    let length: ComptimeOption<usize> =
        lengths.map(|all| usize::cast_from(max(all[head], I::cast_from(1u32))));
    min(length.unwrap_or(n), n)
}

/// One cube per query head: puts its splits together, up to the one where its length ends, and scales its row to
/// probabilities.
#[cube(launch_unchecked)]
pub(super) fn join_kernel<I: Int, N: Size>(
    parts: &Tensor<Vector<f32, N>>,
    stats: &Tensor<f32>,
    lengths: ComptimeOption<&[I]>,
    row: &mut Tensor<f32>,
    output: &mut Tensor<Vector<f32, N>>,
    splits: usize,
    n: usize,
    #[comptime] group: usize,
    #[comptime] part: usize,
    #[comptime] words: usize,
    #[comptime] units: usize,
    #[define(I)] _dtype: ElemType,
) {
    let unit = UNIT_POS_X as usize;
    let head = CUBE_POS_X as usize;
    let place = head / part * splits * part + head % part;
    let ragged = lengths.is_some();
    let seen = visible(lengths, head / group, n);
    let splits = (seen + CHUNK - 1) / CHUNK;
    let mut most = f32::new(HIDDEN);
    for s in 0..splits {
        most = max(most, stats[(place + s * part) * 2]);
    }
    let mut total = 0.0f32;
    for s in 0..splits {
        let at = (place + s * part) * 2;
        total += stats[at + 1] * (stats[at] - most).exp();
    }
    let mut w = unit;
    while w < words {
        let mut sum = Vector::<f32, N>::new(0.0f32);
        for s in 0..splits {
            let at = place + s * part;
            let weight = (stats[at * 2] - most).exp() / total;
            sum += parts[at * words + w] * Vector::new(weight);
        }
        output[head * words + w] = sum;
        w += units;
    }
    let mut j = unit;
    while j < seen {
        let weight = (stats[(place + j / CHUNK * part) * 2] - most).exp() / total;
        row[head * n + j] = row[head * n + j] * weight;
        j += units;
    }
    if comptime!(ragged) {
        while j < n {
            row[head * n + j] = 0.0f32;
            j += units;
        }
    }
}
