//! Entries in codes without kernels: coded and decoded on the host.

use super::choice::existing;
use crate::codes::Codes;
use crate::ops::coded::{Channels, Format};
use crate::ops::tensor::put;
use burn::tensor::{DType, Int, IntDType, Tensor, TensorData, s};

/// The words of `vectors [batch, kv_heads, n, head_dim]`.
pub fn encode(vectors: Tensor<4>, codes: Codes, channels: Option<&Channels>) -> Tensor<4, Int> {
    let [batch, kv_heads, n, dim] = vectors.dims();
    let device = vectors.device();
    let vectors = vectors.cast(DType::F32);
    let relative = match channels {
        None => vectors,
        Some(channels) => (vectors - channels.mean.clone()) / channels.scale.clone(),
    };
    let format = Format { codes, dim };
    let numbers: Vec<f32> = relative.try_into_vec_as().unwrap_or_default();
    let mut words = vec![0; batch * kv_heads * n * format.words()];
    for (vector, words) in numbers
        .chunks_exact(dim)
        .zip(words.chunks_exact_mut(format.words()))
    {
        format.encode(vector, None, words);
    }
    let data = TensorData::new(words, [batch, kv_heads, n, format.words()]);
    Tensor::from_data(data, (&device, DType::I32))
}

/// The vectors of `words [batch, kv_heads, n, words]` in f32.
pub fn decode(words: Tensor<4, Int>, format: Format, channels: Option<&Channels>) -> Tensor<4> {
    let [batch, kv_heads, n, width] = words.dims();
    let device = words.device();
    let words: Vec<i32> = words.try_into_vec_as().unwrap_or_default();
    let mut numbers = vec![0.0; batch * kv_heads * n * format.dim];
    for (words, vector) in words
        .chunks_exact(width)
        .zip(numbers.chunks_exact_mut(format.dim))
    {
        format.decode(words, vector);
    }
    let data = TensorData::new(numbers, [batch, kv_heads, n, format.dim]);
    let vectors = Tensor::from_data(data, (&device, DType::F32));
    match channels {
        None => vectors,
        Some(channels) => vectors * channels.scale.clone() + channels.mean.clone(),
    }
}

/// Vectors `[batch, kv_heads, n, head_dim]`, those of slots from `first` on, with `rows [batch, kv_heads, count, head_dim]` in their
/// `slots [batch, kv_heads, count]` where these are among them.
pub fn put_exact(
    vectors: Tensor<4>,
    rows: &Tensor<4>,
    slots: &Tensor<3, Int>,
    first: usize,
) -> Tensor<4> {
    let n = vectors.dims()[2];
    let places = slots.clone().sub_scalar(first as i64);
    let beyond = places.clone().greater_elem(n as i64 - 1);
    let others = places.clone().lower_elem(0).bool_or(beyond);
    // Those of no slot go into room of their own behind the others.
    let [batch, kv_heads, count] = places.dims();
    let behind = Tensor::<1, Int>::arange(n as i64..(n + count) as i64, &places.device())
        .cast(IntDType::from(places.dtype()))
        .reshape([1, 1, count])
        .expand([batch, kv_heads, count]);
    let places = places.mask_where(others, behind);
    let room = rows.clone().cast(DType::F32);
    let all = Tensor::cat(vec![vectors, room.clone()], 2);
    put(all, places, room).slice(s![.., .., 0..n, ..])
}

/// [`compact`](crate::ops::compact) of keys, values and positions, keys and values in words.
pub fn compact(
    keys: Tensor<4, Int>,
    values: Tensor<4, Int>,
    positions: Tensor<3, Int>,
    slots: Tensor<3, Int>,
    capacity: usize,
) -> (Tensor<4, Int>, Tensor<4, Int>, Tensor<3, Int>) {
    let [batch, kv_heads, n, width] = keys.dims();
    let slots = existing(slots, n);
    let count = slots.dims()[2];
    let index = slots.clone().unsqueeze_dim::<4>(3);
    let index = index.expand([batch, kv_heads, count, width]);
    let kept = |all: Tensor<4, Int>| {
        let dims = [batch, kv_heads, capacity, width];
        let room = Tensor::<4, Int>::zeros(dims, (&all.device(), all.dtype()));
        room.slice_assign(s![.., .., 0..count, ..], all.gather(2, index.clone()))
    };
    let room = Tensor::<3, Int>::zeros(
        [batch, kv_heads, capacity],
        (&positions.device(), positions.dtype()),
    );
    let places = room.slice_assign(s![.., .., 0..count], positions.gather(2, slots));
    (kept(keys), kept(values), places)
}

/// Slots of exact vectors `[batch, kv_heads, count]` after the entry in slot `last` of each head has moved into that of `victims
/// [batch, kv_heads, 1]`, whose own entry is gone: −1 then.
pub fn move_exact(slots: Tensor<3, Int>, victims: Tensor<3, Int>, last: usize) -> Tensor<3, Int> {
    let victims = victims.cast(IntDType::from(slots.dtype()));
    let victims = victims.expand(slots.dims());
    let gone = slots.clone().equal(victims.clone());
    let moved = slots
        .clone()
        .equal_elem(last as i64)
        .bool_and(gone.clone().bool_not());
    slots.mask_where(moved, victims).mask_fill(gone, -1)
}
