//! Entries in codes: coding them, decoding them and moving them.

mod run;
mod token;

use super::entries::compact_all;
use super::{dense, empty, existing, writable};
use crate::codes::Codes;
use crate::ops::kernels::{self, CodeOps, ExactEntries, ExactRows, Place, Relative};
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use run::{code_words, decode_word, encode_run, number_of, per_word};

const UNITS: usize = 64;

/// Mean and scale of channels, contiguous; room that is not read if there are none.
struct Channels {
    mean: CubeTensor,
    scale: CubeTensor,
    relative: bool,
}

impl Channels {
    fn of(relative: Relative<CubeBackend>, like: &CubeTensor) -> Self {
        match relative {
            Relative::No => {
                let none = empty(like, [1], DType::F32);
                Self {
                    mean: none.clone(),
                    scale: none,
                    relative: false,
                }
            }
            Relative::Channels { mean, scale } => Self {
                mean: into_contiguous(mean),
                scale: into_contiguous(scale),
                relative: true,
            },
        }
    }

    fn fits(&self, heads: usize, dim: usize) -> bool {
        let all = [&self.mean, &self.scale];
        !self.relative
            || all
                .iter()
                .all(|all| all.shape().num_elements() == heads * dim)
    }
}

impl CodeOps for CubeBackend {
    fn encode(vectors: CubeTensor, relative: Relative<Self>, codes: Codes) -> CubeTensor {
        let vectors = dense(vectors);
        let [batch, kv_heads, n, dim] = vectors.shape().dims::<4>();
        let words = empty(&vectors, [batch, kv_heads, n, codes.words(dim)], DType::I32);
        let channels = Channels::of(relative, &vectors);
        let client = vectors.client.clone();
        let runs = dim.div_ceil(Codes::RUN);
        let dtype = dtype_to_storage_type(vectors.dtype);
        debug_assert!(channels.fits(batch * kv_heads, dim));
        // SAFETY: units beyond the runs of a head's vectors end; the others read the numbers of one run of a vector, and of the
        // head's channels, and write its words.
        unsafe {
            encode_kernel::launch_unchecked(
                &client,
                CubeCount::Static(
                    (batch * kv_heads) as u32,
                    (n * runs).div_ceil(UNITS) as u32,
                    1,
                ),
                CubeDim::new_1d(UNITS as u32),
                vectors.into_tensor_arg(),
                channels.mean.into_buffer_arg(),
                channels.scale.into_buffer_arg(),
                words.clone().into_tensor_arg(),
                n,
                channels.relative,
                codes,
                dim,
                dtype,
            );
        }
        words
    }

    fn decode(
        words: CubeTensor,
        relative: Relative<Self>,
        exact: ExactRows<Self>,
        codes: Codes,
        dim: usize,
        first: usize,
        count: usize,
    ) -> CubeTensor {
        let words = dense(words);
        let [batch, kv_heads, n, width] = words.shape().dims::<4>();
        let vectors = empty(&words, [batch, kv_heads, count, dim], DType::F32);
        let channels = Channels::of(relative, &words);
        let (rows, slots, exact) = match exact {
            ExactRows::None => (
                empty(&words, [1], DType::F32),
                empty(&words, [1, 1, 1], DType::I32),
                0,
            ),
            ExactRows::Rows { rows, slots } => {
                let each = slots.shape().dims::<3>()[2];
                (into_contiguous(rows), into_contiguous(slots), each)
            }
        };
        let client = words.client.clone();
        let in_codes = code_words(codes, dim);
        let dtypes = [rows.dtype, slots.dtype].map(dtype_to_storage_type);
        debug_assert!(channels.fits(batch * kv_heads, dim));
        debug_assert!(first + count <= n && width == codes.words(dim));
        debug_assert!(exact == 0 || rows.shape().num_elements() == batch * kv_heads * exact * dim);
        // SAFETY: units beyond the words of the codes of a head's vectors end; the others read theirs and the word of their run,
        // `exact` slots of the head and one of as many rows, and write the numbers below `dim` that a word has.
        unsafe {
            decode_kernel::launch_unchecked(
                &client,
                CubeCount::Static(
                    (batch * kv_heads) as u32,
                    (count * in_codes).div_ceil(UNITS) as u32,
                    1,
                ),
                CubeDim::new_1d(UNITS as u32),
                words.into_tensor_arg(),
                channels.mean.into_buffer_arg(),
                channels.scale.into_buffer_arg(),
                rows.into_buffer_arg(),
                slots.into_buffer_arg(),
                vectors.clone().into_tensor_arg(),
                first,
                count,
                exact,
                channels.relative,
                codes,
                dim,
                dtypes,
            );
        }
        vectors
    }

    fn compact_codes(
        keys: CubeTensor,
        values: CubeTensor,
        positions: CubeTensor,
        slots: CubeTensor,
        capacity: usize,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        compact_all(keys, values, positions, slots, capacity)
    }

    fn put_codes(
        keys: CubeTensor,
        values: CubeTensor,
        positions: CubeTensor,
        place: Place<Self>,
        key: CubeTensor,
        value: CubeTensor,
        relative: Relative<Self>,
        codes: Codes,
        position: usize,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let [keys, values, positions] = [keys, values, positions].map(writable);
        let (key, value) = (into_contiguous(key), into_contiguous(value));
        let [batch, kv_heads, _, dim] = key.shape().dims::<4>();
        let channels = Channels::of(relative, &keys);
        let (slots, slot) = match place {
            Place::Same { slot } => (None, slot),
            Place::Each { slots } => (Some(into_contiguous(slots)), 0),
        };
        let client = keys.client.clone();
        let integer = slots.as_ref().map_or(DType::I32, |slots| slots.dtype);
        let dtypes = [key.dtype, value.dtype, positions.dtype, integer];
        let dtypes = dtypes.map(dtype_to_storage_type);
        let runs = dim.div_ceil(Codes::RUN);
        debug_assert!(channels.fits(batch * kv_heads, dim));
        debug_assert_eq!(keys.shape(), values.shape());
        debug_assert_eq!(keys.shape().dims::<4>()[3], codes.words(dim));
        debug_assert_eq!(value.shape().num_elements(), batch * kv_heads * dim);
        // SAFETY: units beyond the runs of a key and a value end; the others write the words of one run of an entry whose slot
        // is cut to the number of entries, through the strides of tensors that nobody else holds, see `writable`.
        unsafe {
            put_kernel::launch_unchecked(
                &client,
                CubeCount::Static(
                    (batch * kv_heads) as u32,
                    (2 * runs).div_ceil(UNITS) as u32,
                    1,
                ),
                CubeDim::new_1d(UNITS as u32),
                keys.clone().into_tensor_arg(),
                values.clone().into_tensor_arg(),
                positions.clone().into_tensor_arg(),
                slots.map(CubeTensor::into_buffer_arg).into(),
                key.into_tensor_arg(),
                value.into_tensor_arg(),
                channels.mean.into_buffer_arg(),
                channels.scale.into_buffer_arg(),
                slot,
                position,
                channels.relative,
                codes,
                dim,
                dtypes,
            );
        }
        (keys, values, positions)
    }

    fn attend_codes(
        q: CubeTensor,
        keys: CubeTensor,
        values: CubeTensor,
        relative: Relative<Self>,
        exact: ExactEntries<Self>,
        codes: Codes,
        entries: usize,
        mask: kernels::Mask<Self>,
    ) -> (CubeTensor, CubeTensor) {
        token::attend(q, [keys, values], relative, exact, codes, entries, mask)
    }

    fn move_exact(slots: CubeTensor, victims: CubeTensor, last: usize) -> CubeTensor {
        let (slots, victims) = (into_contiguous(slots), into_contiguous(victims));
        let moved = empty(&slots, slots.shape(), slots.dtype);
        let client = slots.client.clone();
        let count = slots.shape().num_elements();
        let each = slots.shape().dims::<3>()[2];
        let dtypes = [slots.dtype, victims.dtype].map(dtype_to_storage_type);
        debug_assert_eq!(victims.shape().num_elements() * each, count);
        // SAFETY: units beyond the slots end; the others read their slot and the victim of its head.
        unsafe {
            move_exact_kernel::launch_unchecked(
                &client,
                CubeCount::Static(count.div_ceil(UNITS) as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                slots.into_tensor_arg(),
                victims.into_tensor_arg(),
                moved.clone().into_tensor_arg(),
                last,
                count,
                each,
                dtypes,
            );
        }
        moved
    }
}

/// One unit per run of a vector.
#[cube(launch_unchecked)]
fn encode_kernel<E: Float>(
    vectors: &Tensor<E>,
    mean: &[f32],
    scale: &[f32],
    words: &mut Tensor<u32>,
    n: usize,
    #[comptime] relative: bool,
    #[comptime] codes: Codes,
    #[comptime] dim: usize,
    #[define(E)] _dtype: ElemType,
) {
    let runs = comptime!(dim.div_ceil(Codes::RUN));
    let kv = CUBE_POS_X as usize;
    let i = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if i >= n * runs {
        terminate!();
    }
    let kv_heads = vectors.shape(1);
    let start = kv / kv_heads * vectors.stride(0)
        + kv % kv_heads * vectors.stride(1)
        + i / runs * vectors.stride(2);
    let at = (kv * n + i / runs) * comptime!(codes.words(dim));
    encode_run::<E>(
        vectors,
        start,
        mean,
        scale,
        kv * dim,
        words,
        at,
        i % runs,
        relative,
        codes,
        dim,
    );
}

/// One unit per word of the codes of a vector.
#[cube(launch_unchecked)]
fn decode_kernel<E: Float, I: Int>(
    words: &Tensor<u32>,
    mean: &[f32],
    scale: &[f32],
    rows: &[E],
    slots: &[I],
    vectors: &mut Tensor<f32>,
    first: usize,
    count: usize,
    exact: usize,
    #[comptime] relative: bool,
    #[comptime] codes: Codes,
    #[comptime] dim: usize,
    #[define(E, I)] _dtypes: [ElemType; 2],
) {
    let per = comptime!(per_word(codes));
    let in_vector = comptime!(code_words(codes, dim));
    let kv = CUBE_POS_X as usize;
    let i = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if i >= count * in_vector {
        terminate!();
    }
    let kv_heads = words.shape(1);
    let (place, w) = (i / in_vector, i % in_vector);
    let at = kv / kv_heads * words.stride(0)
        + kv % kv_heads * words.stride(1)
        + (first + place) * words.stride(2);
    let mut row = exact;
    for e in 0..exact {
        if i32::cast_from(slots[kv * exact + e]) == i32::cast_from(first + place) {
            row = e;
        }
    }
    let mut numbers = Array::<f32>::new(per);
    decode_word(words, at, w, &mut numbers, codes, dim);
    #[unroll]
    for c in 0..per {
        let number = number_of(w * per + c, codes, dim);
        if number < dim {
            let mut x = numbers[c];
            if comptime!(relative) {
                x = x * scale[kv * dim + number] + mean[kv * dim + number];
            }
            if row < exact {
                x = f32::cast_from(rows[(kv * exact + row) * dim + number]);
            }
            vectors[(kv * count + place) * dim + number] = x;
        }
    }
}

/// One unit per run of the key and of the value.
#[cube(launch_unchecked)]
fn put_kernel<K: Float, V: Float, I: Int, S: Int>(
    keys: &mut Tensor<u32>,
    values: &mut Tensor<u32>,
    positions: &mut Tensor<I>,
    slots: ComptimeOption<&[S]>,
    key: &Tensor<K>,
    value: &Tensor<V>,
    mean: &[f32],
    scale: &[f32],
    slot: usize,
    position: usize,
    #[comptime] relative: bool,
    #[comptime] codes: Codes,
    #[comptime] dim: usize,
    #[define(K, V, I, S)] _dtypes: [ElemType; 4],
) {
    let runs = comptime!(dim.div_ceil(Codes::RUN));
    let kv = CUBE_POS_X as usize;
    let i = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if i >= comptime!(2 * runs) {
        terminate!();
    }
    let kv_heads = keys.shape(1);
    let (batch, head) = (kv / kv_heads, kv % kv_heads);
    let n = keys.shape(2);
    let of_head: ComptimeOption<usize> = slots.map(|all| existing::<S>(all[kv], n));
    let slot = min(of_head.unwrap_or(slot), n - 1);
    if i < runs {
        let at = batch * keys.stride(0) + head * keys.stride(1) + slot * keys.stride(2);
        encode_run::<K>(
            key,
            kv * dim,
            mean,
            scale,
            kv * dim,
            keys,
            at,
            i,
            relative,
            codes,
            dim,
        );
    } else {
        let at = batch * values.stride(0) + head * values.stride(1) + slot * values.stride(2);
        encode_run::<V>(
            value,
            kv * dim,
            mean,
            scale,
            kv * dim,
            values,
            at,
            i - runs,
            false,
            codes,
            dim,
        );
    }
    if i == 0 {
        let at = batch * positions.stride(0) + head * positions.stride(1);
        let at = at + slot * positions.stride(2);
        positions[at] = I::cast_from(position);
    }
}

/// One unit per slot.
#[cube(launch_unchecked)]
fn move_exact_kernel<I: Int, S: Int>(
    slots: &Tensor<I>,
    victims: &Tensor<S>,
    moved: &mut Tensor<I>,
    last: usize,
    count: usize,
    each: usize,
    #[define(I, S)] _dtypes: [ElemType; 2],
) {
    let i = CUBE_POS_X as usize * UNITS + UNIT_POS_X as usize;
    if i >= count {
        terminate!();
    }
    let slot = i32::cast_from(slots[i]);
    let victim = i32::cast_from(victims[i / each]);
    let mut result = slot;
    if slot == victim {
        result = -1i32;
    } else if slot == i32::cast_from(last) {
        result = victim;
    }
    moved[i] = I::cast_from(result);
}
