//! CPU kernels in plain Rust for the Flex backend. Each is written once over a [`simd::Level`] and compiled for
//! AVX-512, AVX2 and without either; the best that the processor has is chosen at run time.
//!
//! The operators of a file are implemented at its top: tensors become slices there, and results tensors.

mod blocks;
pub(super) mod bridge;
mod choice;
pub(super) mod coded;
mod columns;
mod entries;
pub(super) mod fused;
mod gemv;
mod hits;
mod keys;
mod lanes;
mod mask;
mod merge;
mod order;
mod pointwise;
mod prefill;
#[cfg(target_arch = "x86_64")]
mod prefill_tiles;
mod shared;
mod simd;
mod tiles;
pub mod token;
mod view;
pub(super) mod weights;
mod widen;
mod window;

#[cfg(test)]
mod tests;

/// Below this many bytes of work a second thread costs more than it saves.
const PARALLEL_BYTES: usize = 64 << 10;

/// Elements that are worth handing to another thread where each is computed by itself.
const CHUNK: usize = 16_384;
