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

mod blocks;
mod choice;
mod codes;
mod entries;
mod fused;
mod gemm;
mod gemv;
mod hits;
mod keys;
mod merge;
mod order;
mod pointwise;
mod prompt;
mod ranges;
mod step;
mod token;
mod window;

use crate::ops::kernels::{self, Window};
use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Stands for minus infinity, which WGSL has no literal for: e to it is 0 beside any score.
const HIDDEN: f32 = -1e30;

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
fn writable(tensor: CubeTensor) -> CubeTensor {
    match tensor.can_mut() && tensor.is_nonoverlapping() {
        true => tensor,
        false => into_contiguous(tensor.copy()),
    }
}

/// A slot below `n`, which is at least 1; what is no such number, negative ones included, counts as n − 1.
#[cube]
fn existing<I: Int>(slot: I, n: usize) -> usize {
    min(usize::cast_from(slot), n - 1)
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

/// [`kernels::Mask`] as kernels take it.
struct Mask {
    /// 0 where there is none.
    softcap: f32,
    capped: bool,
    /// `[batch, kv_heads, n]`, if there is a window.
    positions: Option<CubeTensor>,
    /// How many tokens a query sees, and the position of the first query.
    size: usize,
    first: usize,
}

impl Mask {
    /// For `tokens` queries.
    fn of(mask: kernels::Mask<CubeBackend>, tokens: usize) -> Self {
        let (positions, size, first) = match mask.window {
            Window::None => (None, 0, 0),
            Window::Latest {
                positions,
                size,
                seen,
            } => (Some(into_contiguous(positions)), size, seen - tokens),
        };
        Self {
            softcap: mask.softcap.unwrap_or(0.0),
            capped: mask.softcap.is_some(),
            positions,
            size,
            first,
        }
    }

    /// The type of the positions.
    fn dtype(&self) -> DType {
        let positions = self.positions.as_ref();
        positions.map_or(DType::I32, |positions| positions.dtype)
    }
}

/// `softcap · tanh(score / softcap)` if `capped`.
#[cube]
fn cap(score: f32, softcap: f32, #[comptime] capped: bool) -> f32 {
    let mut result = score;
    if comptime!(capped) {
        result = (score / softcap).tanh() * softcap;
    }
    result
}

/// How many of `queries`, the first at `first`, still have the position in a window of `size` tokens.
#[cube]
fn in_window<I: Int>(position: I, size: usize, first: usize, queries: usize) -> usize {
    let end = usize::cast_from(position) + size;
    let mut seen_by = 0usize;
    if end > first {
        seen_by = min(end - first, queries);
    }
    seen_by
}

/// The largest number of queries up to `most` that a group divides into: what one cube takes at a time.
fn share(group: usize, most: usize) -> usize {
    (1..=most.min(group))
        .rev()
        .find(|part| group.is_multiple_of(*part))
        .unwrap_or(1)
}
