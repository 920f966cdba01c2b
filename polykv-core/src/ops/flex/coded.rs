//! Entries in codes: coding them, moving them, and attention of one token per sequence over them. Words are tensors of 32-bit
//! integers, `[batch, kv_heads, n, words]`.

mod attention;
mod rows;

#[cfg(test)]
mod tests;

use super::PARALLEL_BYTES;
use super::bridge::{elements, inner_dense, integer_tensor, integers, tensor, widened};
use super::entries::{self, kept_positions, overwrite, set_positions};
use super::mask::Mask;
use super::simd::{Level, Vector, dispatch};
use super::token::{Part, Partial, Shape, in_parts};
use super::view::Heads;
use crate::codes::Codes;
use crate::ops::coded::Format;
use crate::ops::kernels::{self, CodeOps, ExactEntries, ExactRows, Place, Relative};
use attention::{Entries, Exact, part_attention};
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::TensorData;
use rayon::prelude::*;
use rows::DecodeLanes;

/// Words of `[batch, kv_heads, n, words]`.
type Words<'a> = Heads<'a, i32>;

fn words_back(values: Vec<i32>, dims: [usize; 4]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, dims))
}

/// Mean and scale of each head's channels as slices of `[batch * kv_heads][dim]`.
struct Channels([FlexTensor; 2]);

impl Channels {
    fn of(relative: Relative<Flex>) -> Option<Self> {
        match relative {
            Relative::No => None,
            Relative::Channels { mean, scale } => {
                Some(Self([mean, scale].map(|all| all.to_contiguous())))
            }
        }
    }

    fn slices(&self) -> [&[f32]; 2] {
        let [mean, scale] = &self.0;
        [mean, scale].map(elements::<f32>)
    }
}

impl CodeOps for Flex {
    fn encode(vectors: FlexTensor, relative: Relative<Self>, codes: Codes) -> FlexTensor {
        encode(vectors, Channels::of(relative).as_ref(), codes)
    }

    fn decode(
        words: FlexTensor,
        relative: Relative<Self>,
        exact: ExactRows<Self>,
        codes: Codes,
        dim: usize,
        first: usize,
        count: usize,
    ) -> FlexTensor {
        let words = inner_dense(words);
        let words = Words::of(&words);
        let [batch, heads] = [words.batch, words.heads];
        let channels = Channels::of(relative);
        let channels = channels.as_ref().map(Channels::slices);
        let format = Format { codes, dim };
        let mut output = vec![0.0; batch * heads * count * dim];
        let head = |(kv, output): (usize, &mut [f32])| {
            let channels = channels.map(|all| all.map(|all| &all[kv * dim..(kv + 1) * dim]));
            let at = [kv / heads, kv % heads, first];
            dispatch!(Level::best(), fn decode_head(
                words: Words<'_>, format: Format, at: [usize; 3], channels: Option<[&[f32]; 2]>, output: &mut [f32],
            ));
        };
        match size_of_val(&output[..]) < PARALLEL_BYTES {
            true => output
                .chunks_exact_mut((count * dim).max(1))
                .enumerate()
                .for_each(head),
            false => output
                .par_chunks_exact_mut(count * dim)
                .enumerate()
                .for_each(head),
        }
        if let ExactRows::Rows { rows, slots } = exact {
            put_rows(&mut output, rows, slots, [first, count, dim]);
        }
        tensor(output, [batch, heads, count, dim])
    }

    fn compact_codes(
        keys: FlexTensor,
        values: FlexTensor,
        positions: FlexTensor,
        slots: FlexTensor,
        capacity: usize,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (slots, positions) = (slots.to_contiguous(), positions.to_contiguous());
        let slots = integers(&slots);
        let gather = |words: FlexTensor| {
            let words = inner_dense(words);
            let words = Words::of(&words);
            let dims = [words.batch, words.heads, capacity, words.dim];
            words_back(entries::gather(&words, &slots, capacity), dims)
        };
        let (keys, values) = (gather(keys), gather(values));
        (keys, values, kept_positions(&positions, &slots, capacity))
    }

    fn put_codes(
        keys: FlexTensor,
        values: FlexTensor,
        positions: FlexTensor,
        place: Place<Self>,
        key: FlexTensor,
        value: FlexTensor,
        relative: Relative<Self>,
        codes: Codes,
        position: usize,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let slots = match place {
            Place::Each { slots } => integers(&slots.to_contiguous()).into_owned(),
            Place::Same { slot } => {
                let [batch, heads, _] = positions.layout().shape().dims::<3>();
                vec![slot as i64; batch * heads]
            }
        };
        let channels = Channels::of(relative);
        let key = encode(key, channels.as_ref(), codes);
        let value = encode(value, None, codes);
        (
            overwrite::<i32>(keys, &slots, key),
            overwrite::<i32>(values, &slots, value),
            set_positions(positions, &slots, position),
        )
    }

    fn attend_codes(
        q: FlexTensor,
        keys: FlexTensor,
        values: FlexTensor,
        relative: Relative<Self>,
        exact: ExactEntries<Self>,
        codes: Codes,
        entries: usize,
        mask: kernels::Mask<Self>,
    ) -> (FlexTensor, FlexTensor) {
        let coded = Coded {
            keys: inner_dense(keys),
            values: inner_dense(values),
            channels: Channels::of(relative),
            exact: OwnedExact::of(exact),
            codes,
        };
        attend_at(Level::best(), q, &coded, entries, mask)
    }

    fn move_exact(slots: FlexTensor, victims: FlexTensor, last: usize) -> FlexTensor {
        let (slots, victims) = (slots.to_contiguous(), victims.to_contiguous());
        let dims = slots.layout().shape().dims::<3>();
        let (mut moved, victims) = (integers(&slots).into_owned(), integers(&victims));
        for (slots, &victim) in moved.chunks_exact_mut(dims[2]).zip(&*victims) {
            for slot in slots {
                *slot = match *slot {
                    slot if slot == victim => -1,
                    slot if slot == last as i64 => victim,
                    slot => slot,
                };
            }
        }
        integer_tensor(moved, dims, slots.dtype())
    }
}

fn encode(vectors: FlexTensor, channels: Option<&Channels>, codes: Codes) -> FlexTensor {
    let vectors = widened(vectors);
    let vectors = Heads::<f32>::of(&vectors);
    let channels = channels.map(Channels::slices);
    let format = Format {
        codes,
        dim: vectors.dim,
    };
    let (n, width) = (vectors.tokens, format.words());
    let mut output = vec![0; vectors.batch * vectors.heads * n * width];
    let row = |(index, words): (usize, &mut [i32])| {
        let (kv, token) = (index / n, index % n);
        let at = kv * format.dim;
        let channels = channels.map(|all| all.map(|all| &all[at..at + format.dim]));
        let vector = vectors.row(kv / vectors.heads, kv % vectors.heads, token);
        format.encode(vector, channels, words);
    };
    match size_of_val(&output[..]) < PARALLEL_BYTES {
        true => output.chunks_exact_mut(width).enumerate().for_each(row),
        false => output.par_chunks_exact_mut(width).enumerate().for_each(row),
    }
    words_back(output, [vectors.batch, vectors.heads, n, width])
}

/// The vectors of one head from place `first` on.
#[inline(always)]
fn decode_head<V: Vector>(
    words: Words<'_>,
    format: Format,
    [batch, head, first]: [usize; 3],
    channels: Option<[&[f32]; 2]>,
    output: &mut [f32],
) {
    for (entry, vector) in output.chunks_exact_mut(format.dim).enumerate() {
        format.decode_lanes::<V>(words.row(batch, head, first + entry), vector);
        if let Some([mean, scale]) = channels {
            for i in 0..vector.len() {
                vector[i] = vector[i] * scale[i] + mean[i];
            }
        }
    }
}

/// Puts `rows [batch, kv_heads, m, dim]` into vectors `[batch * kv_heads][count][dim]`, the first of which is that of slot `first`,
/// where their `slots [batch, kv_heads, m]` are among them.
fn put_rows(
    vectors: &mut [f32],
    rows: FlexTensor,
    slots: FlexTensor,
    [first, count, dim]: [usize; 3],
) {
    let (rows, slots) = (widened(rows).to_contiguous(), slots.to_contiguous());
    let of_head = slots.layout().shape().dims::<3>()[2];
    let slots = integers(&slots);
    let rows = elements::<f32>(&rows).chunks_exact(dim);
    for (index, (&slot, row)) in slots.iter().zip(rows).enumerate() {
        let place = usize::try_from(slot).ok();
        let place = place.and_then(|slot| slot.checked_sub(first));
        if let Some(place) = place.filter(|&place| place < count) {
            let at = (index / of_head * count + place) * dim;
            vectors[at..at + dim].copy_from_slice(row);
        }
    }
}

/// What attention reads, with inner axes that are dense.
struct Coded {
    keys: FlexTensor,
    values: FlexTensor,
    channels: Option<Channels>,
    exact: Option<OwnedExact>,
    codes: Codes,
}

/// [`ExactEntries`] in f32, and their slots.
struct OwnedExact {
    keys: FlexTensor,
    values: FlexTensor,
    slots: Vec<i64>,
}

impl OwnedExact {
    fn of(exact: ExactEntries<Flex>) -> Option<Self> {
        let dense = |all: FlexTensor| widened(all).to_contiguous();
        match exact {
            ExactEntries::None => None,
            ExactEntries::Rows {
                keys,
                values,
                slots,
            } => Some(Self {
                keys: dense(keys),
                values: dense(values),
                slots: integers(&slots.to_contiguous()).into_owned(),
            }),
        }
    }
}

fn attend_at(
    level: Level,
    q: FlexTensor,
    coded: &Coded,
    entries: usize,
    mask: kernels::Mask<Flex>,
) -> (FlexTensor, FlexTensor) {
    let q = inner_dense(q);
    let [batch, heads, _, dim] = q.layout().shape().dims::<4>();
    let [_, kv_heads, ..] = coded.keys.layout().shape().dims::<4>();
    let all = Entries {
        format: Format {
            codes: coded.codes,
            dim,
        },
        keys: Words::of(&coded.keys),
        values: Words::of(&coded.values),
        channels: coded.channels.as_ref().map(Channels::slices),
        exact: coded.exact.as_ref().map(|exact| Exact {
            keys: elements::<f32>(&exact.keys),
            values: elements::<f32>(&exact.values),
            slots: &exact.slots,
            count: exact.slots.len() / (batch * kv_heads),
        }),
    };
    let mask = Mask::of(mask, 1);
    let shape = Shape {
        batch,
        heads,
        kv_heads,
        tokens: entries,
        dim,
        // Decoding is work as well.
        bytes: dim * size_of::<f32>(),
    };
    let (q, mask) = (Heads::of(&q), &mask);
    let (output, row) = in_parts(shape, None, |at| {
        let q = &q;
        dispatch!(level, fn part_attention(
            at: Part, q: &Heads<'_>, all: Entries<'_>, mask: &Mask,
        ) -> Partial)
    });
    (
        tensor(output, [batch, heads, 1, dim]),
        tensor(row, [batch, kv_heads, heads / kv_heads, entries]),
    )
}
