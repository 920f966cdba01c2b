//! Layer-wise KV-cache compression for large language models on [burn](https://burn.dev): every layer and phase
//! (prefill, decode) has its own eviction policy and its own budget under a fixed total (PolyKV, arXiv 2606.15157).
//!
//! Put a [`KvCache`] under any attention module, or run one of the [`models`]:
//!
//! ```
//! use burn::tensor::{DType, Device, Distribution, Tensor};
//! use polykv::{Budget, KvCache, LayerShape, Phase, Plan};
//!
//! # fn main() -> polykv::Result<()> {
//! // Two layers, 4 query heads over 2 KV heads; TOVA keeps 16 entries per layer in both phases.
//! let phases = [Phase::Prefill, Phase::Decode];
//! let plan = Plan::uniform(2, "tova", Default::default(), Budget::Tokens(16), &phases);
//! let shape = LayerShape { batch: 1, heads: 4, kv_heads: 2, head_dim: 8, dtype: DType::F32 };
//! # #[cfg(feature = "flex")] {
//! let device = Device::flex();
//! let mut cache = KvCache::new(plan, shape, &device)?;
//!
//! let random = |heads, tokens| {
//!     Tensor::<4>::random([1, heads, tokens, 8], Distribution::Default, &device)
//! };
//! cache.begin_prefill(100)?;
//! for layer in 0..2 {
//!     let output = cache.prefill(layer, random(4, 100), random(2, 100), random(2, 100))?;
//!     assert_eq!(output.dims(), [1, 4, 100, 8]);
//!     cache.end_prefill(layer)?;
//! }
//! assert_eq!(cache.report().kept, [16.0, 16.0]);
//! # }
//! # Ok(())
//! # }
//! ```

#![cfg_attr(
    not(test),
    warn(
        clippy::expect_used,
        clippy::print_stderr,
        clippy::print_stdout,
        clippy::unwrap_used
    )
)]

pub use polykv_core::*;
pub use polykv_models as models;
