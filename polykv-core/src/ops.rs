//! Tensor operations under the cache, the policies and the models, on any burn device: attention and what policies ask
//! of it, choosing and moving entries, weights in their formats, norms and activations. Those that matter for speed have
//! kernels for the CPU and for GPUs; the rest, and what kernels are tested against, are plain tensor operations
//! ([`oracle`]).
//!
//! Each operator says which shapes it takes and panics on others, as burn's own do. Slots and positions lie on a device
//! and are not read: wrong ones give a defined result or one that means nothing, as each operator says.

mod attend;
mod attention_block;
mod choice;
#[cfg(feature = "cube")]
#[allow(clippy::too_many_arguments, reason = "kernels take flat arguments")]
mod cube;
mod entries;
#[cfg(feature = "flex")]
mod flex;
mod fused;
mod kernels;
mod keys;
mod linear;
pub mod oracle;
mod order;
mod pointwise;
mod pool;
mod protect;
mod route;
mod tensor;
mod weight;

pub use attend::{
    attend, attend_first, attend_lengths, attend_summed, attention_row, window_attention,
    window_score,
};
pub use attention_block::{AttentionBlock, Observer};
pub use choice::{Nans, choose, drop_lowest, select, top};
pub use entries::{Entries, compact, move_last, replace, write};
pub use fused::{NormQkv, OutputSwiglu, fuses_tokens, norm_qkv_rope, output_swiglu};
pub use keys::{closest, key_cosines, key_norms, merge_into, spread_into};
pub use linear::{linear, linears};
pub use order::{drop_from_order, extend_order, pool};
pub use pointwise::{rms_norm, rotate, swiglu};
pub use pool::Pool;
pub use protect::{Protect, Protected};
pub use route::{is_cpu, is_cube};
pub use tensor::{bytes, matmul, read_error, unit, unrounded_matmul};
#[cfg(feature = "flex")]
pub use weight::Q8Weight;
pub use weight::{Q8_BLOCK, Weight, q8_scheme};

pub(crate) use choice::rest;
pub(crate) use entries::grow;
pub(crate) use tensor::{put, take};
