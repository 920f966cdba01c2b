//! CubeCL kernels, the same on every CubeCL runtime. Units of a cube exchange numbers through shared memory only:
//! software adapters have no plane operations. Nothing here waits for the device.

#![allow(
    clippy::assign_op_pattern,
    clippy::collapsible_if,
    clippy::duplicate_underscore_argument,
    clippy::manual_div_ceil,
    clippy::manual_is_multiple_of,
    reason = "the language of kernels is a part of Rust, and its macro makes arguments of its own"
)]

mod choice;
mod entries;
mod hits;
mod keys;
mod layers;
mod merge;
mod order;
mod product;
mod prompt;
mod rows;
mod token;
mod window;

use super::Pool;
use super::kernels::{EntryOps, Guard, HeadWeights, KeyOps, KvOps, LayerOps, OutputWeights};
use burn::backend::TensorMetadata;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use entries::Slot;

/// Stands for minus infinity, which WGSL has no literal for: e to it is 0 beside any score.
const HIDDEN: f32 = -1e30;

impl KvOps for CubeBackend {
    fn attend_prompt(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        prompt::attend(into_contiguous(q), dense(k), dense(v))
    }

    fn attend_summed(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (q, k) = (into_contiguous(q), dense(k));
        let (output, log_sums) = prompt::attend(q.clone(), k.clone(), dense(v));
        let sums = prompt::column_sums(q, k, log_sums.clone());
        (output, log_sums, sums)
    }

    fn column_sums(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        prompt::column_sums(into_contiguous(q), dense(k), into_contiguous(log_sums))
    }

    fn attention_hits(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
        first: usize,
        count: usize,
        bits: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (q, log_sums) = (into_contiguous(q), into_contiguous(log_sums));
        hits::hits(q, dense(k), log_sums, first, count, bits)
    }

    fn attend_token(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        entries: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [k, v] = [k, v].map(|mut all| {
            all.meta.shape[2] = entries;
            dense(all)
        });
        token::attend(into_contiguous(q), k, v, None)
    }

    fn attend_lengths(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        lengths: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let lengths = into_contiguous(lengths);
        token::attend(into_contiguous(q), dense(k), dense(v), Some(lengths))
    }

    fn window_score(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        positions: IntTensor<Self>,
        seen: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        window::score(dense(q), dense(k), into_contiguous(positions), seen)
    }
}

impl EntryOps for CubeBackend {
    fn select_top(
        scores: FloatTensor<Self>,
        positions: IntTensor<Self>,
        guard: Guard,
        seen: usize,
        budget: usize,
    ) -> (IntTensor<Self>, FloatTensor<Self>) {
        let (scores, positions) = (into_contiguous(scores), into_contiguous(positions));
        choice::select(scores, positions, &guard, seen, budget)
    }

    fn compact(
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        positions: IntTensor<Self>,
        slots: IntTensor<Self>,
        capacity: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, IntTensor<Self>) {
        let (keys, values) = (dense(keys), dense(values));
        entries::compact(keys, values, positions, into_contiguous(slots), capacity)
    }

    fn lowest(
        scores: FloatTensor<Self>,
        positions: IntTensor<Self>,
        guard: Guard,
    ) -> (IntTensor<Self>, FloatTensor<Self>) {
        choice::lowest(into_contiguous(scores), into_contiguous(positions), &guard)
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
        let (key, value) = (into_contiguous(key), into_contiguous(value));
        let written = [keys, values, positions].map(own);
        let slot = Slot::Of(Box::new(into_contiguous(victim)));
        entries::replace(written, slot, key, value, position)
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
        let (key, value) = (into_contiguous(key), into_contiguous(value));
        let written = [keys, values, positions].map(own);
        entries::replace(written, Slot::Same(slot), key, value, position)
    }

    fn move_last(statistics: FloatTensor<Self>, victim: IntTensor<Self>) -> FloatTensor<Self> {
        entries::move_last(into_contiguous(statistics), into_contiguous(victim))
    }

    fn drop_from_order(
        order: IntTensor<Self>,
        victim: IntTensor<Self>,
        moved: bool,
    ) -> IntTensor<Self> {
        order::drop_from_order(into_contiguous(order), into_contiguous(victim), moved)
    }

    fn extend_order(order: IntTensor<Self>, count: usize) -> IntTensor<Self> {
        order::extend(into_contiguous(order), count)
    }

    fn pool_scores(
        scores: FloatTensor<Self>,
        order: IntTensor<Self>,
        tail: usize,
        width: usize,
        mode: Pool,
    ) -> FloatTensor<Self> {
        let (scores, order) = (into_contiguous(scores), into_contiguous(order));
        order::pool(scores, order, tail, width, mode)
    }
}

impl KeyOps for CubeBackend {
    fn key_norms(keys: FloatTensor<Self>) -> FloatTensor<Self> {
        keys::norms(dense(keys))
    }

    fn key_cosines(
        keys: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        anchor: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (norms, anchor) = (into_contiguous(norms), into_contiguous(anchor));
        keys::cosines(dense(keys), norms, anchor)
    }

    fn closest(
        keys: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        evicted: IntTensor<Self>,
        kept: IntTensor<Self>,
    ) -> (FloatTensor<Self>, IntTensor<Self>) {
        let [norms, evicted, kept] = [norms, evicted, kept].map(into_contiguous);
        keys::closest(dense(keys), norms, evicted, kept)
    }

    fn merge_into(
        vectors: FloatTensor<Self>,
        evicted: IntTensor<Self>,
        kept: IntTensor<Self>,
        places: IntTensor<Self>,
        parts: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let [evicted, kept, places, parts] = [evicted, kept, places, parts].map(into_contiguous);
        merge::merge_into(dense(vectors), evicted, kept, places, parts)
    }

    fn spread_into(
        vectors: FloatTensor<Self>,
        positions: IntTensor<Self>,
        evicted: IntTensor<Self>,
        kept: IntTensor<Self>,
        parts: FloatTensor<Self>,
        window: usize,
    ) -> FloatTensor<Self> {
        let [positions, evicted] = [positions, evicted].map(into_contiguous);
        let [kept, parts] = [kept, parts].map(into_contiguous);
        merge::spread_into(dense(vectors), positions, evicted, kept, parts, window)
    }
}

impl LayerOps for CubeBackend {
    fn multiply(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        product::multiply(lhs, rhs)
    }

    fn multiply_few(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        rows::multiply(into_contiguous(x), dense(weight), None)
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        layers::rms_norm(x, weight, eps)
    }

    fn rotate(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        layers::rotate(x, cos, sin)
    }

    fn silu_mul(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        layers::silu_mul(gate, up)
    }

    fn token_heads(
        x: FloatTensor<Self>,
        weights: HeadWeights<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        eps: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        layers::token_heads(x, weights, cos, sin, eps)
    }

    fn token_output(
        x: FloatTensor<Self>,
        attended: FloatTensor<Self>,
        weights: OutputWeights<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        layers::token_output(x, attended, weights, eps)
    }
}

/// Uninitialised and contiguous, on the device of `like`.
fn empty(like: &CubeTensor, dims: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, dims.into(), dtype)
}

/// Kernels read vectors along the last axis: a tensor that is strided there is copied, other views are read in place.
fn dense(tensor: CubeTensor) -> CubeTensor {
    match tensor.meta.strides().last() {
        Some(1) => tensor,
        _ => into_contiguous(tensor),
    }
}

/// The tensor itself if nobody else holds it, to be written in place; a copy otherwise.
fn own(tensor: CubeTensor) -> CubeTensor {
    match tensor.can_mut() && tensor.is_nonoverlapping() {
        true => tensor,
        false => into_contiguous(tensor.copy()),
    }
}

/// How many elements of the last axis are read at once.
fn width(tensors: &[&CubeTensor]) -> usize {
    let fits = |tensor: &&CubeTensor| {
        let dim = tensor.shape()[tensor.meta.num_dims() - 1];
        let strides = tensor.meta.strides();
        dim.is_multiple_of(4) && strides.iter().rev().skip(1).all(|s| s.is_multiple_of(4))
    };
    match tensors.iter().all(fits) {
        true => 4,
        false => 1,
    }
}

/// Whether loops over the words of a vector have a length that the device's compiler knows, so that it unrolls them and
/// keeps the words in registers. Software adapters, which have no plane operations, take minutes to compile that.
fn unrolls(client: &Client) -> bool {
    !client.properties().features.plane.is_empty()
}

/// A length that the compiler knows if `known`.
#[cube]
fn length(at_run: usize, #[comptime] in_advance: usize, #[comptime] known: bool) -> usize {
    let mut length = at_run;
    if comptime!(known) {
        length = in_advance.runtime();
    }
    length
}

/// The largest number of queries up to `most` that a group divides into: what one cube takes at a time.
fn share(group: usize, most: usize) -> usize {
    (1..=most.min(group))
        .rev()
        .find(|part| group.is_multiple_of(*part))
        .unwrap_or(1)
}
