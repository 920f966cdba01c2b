//! The tensor operations of the cache, the policies and the models, on any burn device: attention and its statistics,
//! choosing and moving entries, weights in several formats, norms and activations. Operations that matter for speed have
//! kernels for the CPU and for GPUs. The others, and those that kernels are tested against, are plain tensor operations
//! ([`oracle`]).
//!
//! Each operation states the shapes of its arguments and panics on others, as burn's own do. Slots and positions are on a
//! device and are not checked; each operation says what wrong ones give.

mod attend;
mod attention_block;
mod choice;
pub mod coded;
#[cfg(feature = "cube")]
#[allow(clippy::too_many_arguments, reason = "kernels take flat arguments")]
mod cube;
mod entries;
mod evict;
#[cfg(feature = "flex")]
mod flex;
mod fused;
mod heads;
mod hit_note;
#[allow(
    clippy::too_many_arguments,
    clippy::type_complexity,
    clippy::large_enum_variant,
    reason = "the macro of operators takes flat arguments and results"
)]
mod kernels;
mod keys;
mod linear;
mod mask;
pub mod oracle;
mod order;
mod pointwise;
mod pool;
mod protect;
mod ranges;
mod route;
mod step_scores;
mod sums;
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
pub use hit_note::{HitNote, StepHits};
pub use keys::{closest, key_cosines, key_norms, merge_into, spread_into};
pub use linear::{linear, linears};
pub use mask::{Mask, Places};
pub use order::{drop_from_order, extend_order, pool};
pub use pointwise::{geglu, rms_norm, rotate, swiglu};
pub use pool::Pool;
pub use protect::{Protect, Protected};
pub use route::{is_cpu, is_cube};
pub use step_scores::StepScores;
pub use sums::StepSums;
pub use tensor::{bytes, matmul, read_error, unit, unrounded_matmul};
#[cfg(any(feature = "flex", feature = "cube"))]
pub use weight::BlockWeight;
#[cfg(feature = "cube")]
pub use weight::GpuBlocks;
#[cfg(feature = "flex")]
pub use weight::Q8Weight;
pub use weight::{BlockType, Q8_BLOCK, SharedBytes, Weight, q8_scheme};

#[cfg(feature = "cube")]
pub(crate) use attend::attend_new;
pub(crate) use attend::{attend_behind, attends_new};
pub(crate) use choice::{drop_lowest_after, rest};
pub(crate) use entries::{extend, grow, push};
pub(crate) use evict::{Statistics, evict};
pub(crate) use heads::{HeadScores, choose_of_heads};
pub(crate) use ranges::{Head, Slots, Table};
pub(crate) use route::most_tensor_bytes;
pub(crate) use sums::{add_latest, by_visible};
pub(crate) use tensor::{put, take};
