//! Entries in codes: coding them, moving them, and attention of one token per sequence over them. Words are tensors of 32-bit
//! integers, `[batch, kv_heads, n, words]`.

mod attention;
mod rows;

#[cfg(test)]
mod tests;

use super::PARALLEL_BYTES;
use super::bridge::{elements, flex, float, float_back, inner_dense, integers, tensor, widened};
use super::entries::{self, kept_positions, set_positions, whole};
use super::mask::Mask;
use super::simd::{Level, Vector, dispatch};
use super::token::{Part, Partial, Shape, in_parts};
use super::view::Heads;
use crate::codes::Codes;
use crate::ops;
use crate::ops::coded::CodedEntries;
use crate::ops::kernels;
use attention::{Entries, ExactRows, part_attention};
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::{Int, Tensor, TensorData};
use rayon::prelude::*;
use rows::Format;

/// Words of `[batch, kv_heads, n, words]`.
type Words<'a> = Heads<'a, i32>;

fn words(tensor: Tensor<4, Int>) -> FlexTensor {
    inner_dense(flex(tensor).int())
}

fn words_back(values: Vec<i32>, dims: [usize; 4]) -> Tensor<4, Int> {
    Tensor::from_primitive::<Flex>(FlexTensor::from_data(TensorData::new(values, dims)))
}

/// Mean and scale of each head's channels as slices of `[batch * kv_heads][dim]`.
struct Channels([FlexTensor; 2]);

impl Channels {
    fn of(channels: Option<[&Tensor<4>; 2]>) -> Option<Self> {
        let dense = |tensor: &Tensor<4>| float(tensor.clone()).to_contiguous();
        channels.map(|channels| Self(channels.map(dense)))
    }

    fn slices(&self) -> [&[f32]; 2] {
        let [mean, scale] = &self.0;
        [mean, scale].map(elements::<f32>)
    }
}

pub fn encode(
    vectors: Tensor<4>,
    codes: Codes,
    channels: Option<[&Tensor<4>; 2]>,
) -> Tensor<4, Int> {
    let vectors = widened(float(vectors));
    let vectors = Heads::<f32>::of(&vectors);
    let channels = Channels::of(channels);
    let channels = channels.as_ref().map(Channels::slices);
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

pub fn decode(
    coded: Tensor<4, Int>,
    codes: Codes,
    dim: usize,
    channels: Option<[&Tensor<4>; 2]>,
) -> Tensor<4> {
    let coded = words(coded);
    let [batch, heads, n, _] = coded.layout().shape().dims::<4>();
    let channels = Channels::of(channels);
    let channels = channels.as_ref().map(Channels::slices);
    let coded = Words::of(&coded);
    let format = Format { codes, dim };
    let mut output = vec![0.0; batch * heads * n * dim];
    let head = |(kv, output): (usize, &mut [f32])| {
        let channels = channels.map(|all| all.map(|all| &all[kv * dim..(kv + 1) * dim]));
        let at = [kv / heads, kv % heads];
        dispatch!(Level::best(), fn decode_head(
            coded: Words<'_>, format: Format, at: [usize; 2], channels: Option<[&[f32]; 2]>, output: &mut [f32],
        ));
    };
    match size_of_val(&output[..]) < PARALLEL_BYTES {
        true => output
            .chunks_exact_mut((n * dim).max(1))
            .enumerate()
            .for_each(head),
        false => output
            .par_chunks_exact_mut(n * dim)
            .enumerate()
            .for_each(head),
    }
    float_back(tensor(output, [batch, heads, n, dim]))
}

#[inline(always)]
fn decode_head<V: Vector>(
    coded: Words<'_>,
    format: Format,
    [batch, head]: [usize; 2],
    channels: Option<[&[f32]; 2]>,
    output: &mut [f32],
) {
    for (entry, vector) in output.chunks_exact_mut(format.dim).enumerate() {
        format.decode::<V>(coded.row(batch, head, entry), vector);
        if let Some([mean, scale]) = channels {
            for i in 0..vector.len() {
                vector[i] = vector[i] * scale[i] + mean[i];
            }
        }
    }
}

/// The entries at `slots [batch, kv_heads, count]` in room for `capacity` of them.
pub fn gather(coded: Tensor<4, Int>, slots: &Tensor<3, Int>, capacity: usize) -> Tensor<4, Int> {
    let coded = words(coded);
    let coded = Words::of(&coded);
    let dims = [coded.batch, coded.heads, capacity, coded.dim];
    words_back(entries::gather(&coded, &numbers(slots), capacity), dims)
}

/// Overwrites the entries at `slots [batch, kv_heads, count]` by `entry [batch, kv_heads, count, words]`, in place while the
/// tensor is not shared.
pub fn put(coded: Tensor<4, Int>, slots: &Tensor<3, Int>, entry: Tensor<4, Int>) -> Tensor<4, Int> {
    put_at(coded, &numbers(slots), entry)
}

/// [`put`] in the same slot of all heads.
pub fn write(coded: Tensor<4, Int>, slot: usize, entry: Tensor<4, Int>) -> Tensor<4, Int> {
    let [batch, heads, ..] = coded.dims();
    put_at(coded, &vec![slot as i64; batch * heads], entry)
}

fn put_at(coded: Tensor<4, Int>, slots: &[i64], entry: Tensor<4, Int>) -> Tensor<4, Int> {
    let (coded, entry) = (flex(coded).int(), flex(entry).int());
    Tensor::from_primitive::<Flex>(entries::overwrite::<i32>(coded, slots, entry))
}

/// Positions `[batch, kv_heads, n]` with `position` at `slots [batch, kv_heads, 1]`.
pub fn put_position(
    positions: Tensor<3, Int>,
    slots: &Tensor<3, Int>,
    position: usize,
) -> Tensor<3, Int> {
    let positions = set_positions(flex(positions).int(), &numbers(slots), position);
    Tensor::from_primitive::<Flex>(positions)
}

/// [`put_position`] in the same slot of all heads.
pub fn write_position(positions: Tensor<3, Int>, slot: usize, position: usize) -> Tensor<3, Int> {
    let [batch, heads, _] = positions.dims();
    let slots = vec![slot as i64; batch * heads];
    Tensor::from_primitive::<Flex>(set_positions(flex(positions).int(), &slots, position))
}

/// The positions at `slots [batch, kv_heads, count]` in room for `capacity` of them.
pub fn gather_positions(
    positions: Tensor<3, Int>,
    slots: &Tensor<3, Int>,
    capacity: usize,
) -> Tensor<3, Int> {
    let positions = flex(positions).int().to_contiguous();
    Tensor::from_primitive::<Flex>(kept_positions(&positions, &numbers(slots), capacity))
}

/// Vectors `[batch, kv_heads, n, dim]` with rows of `exact [batch, kv_heads, count, dim]` in `slots [batch * kv_heads * count]`,
/// where these are below n.
pub fn put_rows(vectors: Tensor<4>, slots: &[i64], exact: Tensor<4>) -> Tensor<4> {
    let mut vectors = whole(float(vectors));
    let exact = float(exact).to_contiguous();
    let [batch, heads, n, dim] = vectors.layout().shape().dims::<4>();
    let count = slots.len() / (batch * heads);
    let rows = elements::<f32>(&exact).chunks_exact(dim);
    let all = vectors.storage_mut::<f32>();
    for (index, (&slot, row)) in slots.iter().zip(rows).enumerate() {
        if let Some(slot) = usize::try_from(slot).ok().filter(|&slot| slot < n) {
            let at = (index / count * n + slot) * dim;
            all[at..at + dim].copy_from_slice(row);
        }
    }
    float_back(vectors)
}

/// The numbers of an integer tensor, row-major.
pub fn numbers(tensor: &Tensor<3, Int>) -> Vec<i64> {
    integers(&flex(tensor.clone()).int().to_contiguous()).into_owned()
}

/// Attention of one query per head, `q [batch, heads, 1, dim]`, over the first `entries` entries: the output and the
/// probabilities `[batch, kv_heads, group, entries]`.
pub fn attend(
    q: Tensor<4>,
    coded: &CodedEntries,
    entries: usize,
    mask: &ops::Mask,
) -> (Tensor<4>, Tensor<4>) {
    attend_at(Level::best(), q, coded, entries, mask)
}

fn attend_at(
    level: Level,
    q: Tensor<4>,
    coded: &CodedEntries,
    entries: usize,
    mask: &ops::Mask,
) -> (Tensor<4>, Tensor<4>) {
    let [batch, heads, _, dim] = q.dims();
    let [_, kv_heads, ..] = coded.keys.dims();
    let (keys, values) = (
        words(coded.keys.words.clone()),
        words(coded.values.words.clone()),
    );
    let q = widened(float(q));
    let channels = coded.keys.channels.as_ref();
    let channels = Channels::of(channels.map(|channels| [&channels.mean, &channels.scale]));
    let exact = coded.exact.as_ref().map(|exact| {
        let dense = |all: &Tensor<4>| widened(float(all.clone())).to_contiguous();
        ([dense(&exact.keys), dense(&exact.values)], &exact.slots[..])
    });
    let all = Entries {
        format: Format {
            codes: coded.keys.codes,
            dim,
        },
        keys: Words::of(&keys),
        values: Words::of(&values),
        channels: channels.as_ref().map(Channels::slices),
        exact: exact.as_ref().map(|([keys, values], slots)| ExactRows {
            keys: elements::<f32>(keys),
            values: elements::<f32>(values),
            slots,
            count: slots.len() / (batch * kv_heads),
        }),
    };
    let places = mask.places.as_ref();
    let window = places.and_then(|places| places.window.map(|size| (places, size)));
    let mask = Mask::of(
        kernels::Mask::<Flex> {
            softcap: mask.softcap.map(|cap| cap as f32),
            window: match window {
                None => kernels::Window::None,
                Some((places, size)) => kernels::Window::Latest {
                    positions: flex(places.positions.clone()).int(),
                    size,
                    seen: places.seen,
                },
            },
        },
        1,
    );
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
        float_back(tensor(output, [batch, heads, 1, dim])),
        float_back(tensor(row, [batch, kv_heads, heads / kv_heads, entries])),
    )
}
