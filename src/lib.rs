//! Layer-wise KV-cache compression for large language models on [burn](https://burn.dev): every layer and phase
//! (prefill, decode) has its own eviction policy and its own budget under a fixed total (PolyKV, arXiv 2606.15157).
//!
//! Put a [`KvCache`] under any attention module, or run one of the [`models`]:
//!
//! ```
//! use polykv::burn::tensor::{DType, Device, Distribution, Tensor};
//! use polykv::policy::Tova;
//! use polykv::{Budget, KvCache, LayerShape, Phase, Plan};
//! use std::sync::Arc;
//!
//! # fn main() -> polykv::Result<()> {
//! // Two layers, 4 query heads over 2 KV heads; TOVA keeps 16 entries per layer in both phases.
//! let plan = Plan::uniform(2, Arc::new(Tova::default()), Budget::Tokens(16), &Phase::BOTH);
//! let shape = LayerShape { batch: 1, heads: 4, kv_heads: 2, head_dim: 8, dtype: DType::F32 };
//! # #[cfg(feature = "flex")] {
//! let device = Device::flex();
//! let mut cache = KvCache::new(plan, shape, &device)?;
//!
//! let random = |heads, tokens| {
//!     Tensor::<4>::random([1, heads, tokens, 8], Distribution::Default, &device)
//! };
//! let mut prompt = cache.prompt(100)?;
//! for layer in 0..2 {
//!     let output = prompt.attend(layer, random(4, 100), random(2, 100), random(2, 100))?;
//!     assert_eq!(output.dims(), [1, 4, 100, 8]);
//!     prompt.end_layer(layer)?;
//! }
//! prompt.finish()?;
//! cache.decode(0, random(4, 1), random(2, 1), random(2, 1))?;
//! assert_eq!(cache.report()?.kept, [16.0, 16.0]);
//! # }
//! # Ok(())
//! # }
//! ```
//!
//! Plans usually come from a [`PlanFile`], whose names are looked up in a [`Registry`]; policies of your own join it by
//! [`Registry::register`]. Results of `polykv calibrate` are such files.

#![cfg_attr(
    not(test),
    deny(clippy::print_stderr, clippy::print_stdout),
    warn(clippy::expect_used, clippy::unwrap_used, missing_docs)
)]

/// The version of burn that this crate is built with; its tensors are those of every signature here.
pub use burn;
#[cfg(feature = "testing")]
pub use polykv_core::testing;
pub use polykv_core::{
    Allocator, At, Budget, CacheEstimate, CacheReport, Codes, DeviceSpec, EntryCost, Error,
    ErrorKind, Holdings, KvCache, LayerCache, LayerFacts, LayerShape, ModelFacts, Phase, Plan,
    PlanFile, Policy, Prompt, PromptCache, Registry, Result, RopeFacts, Rule, Session, SessionInfo,
    SharedPrefill, Spans, Storage, Untrimmed,
};
/// For whoever writes plans, policies or allocators, and the tensor operations that these need.
pub use polykv_core::{allocate, device, machine, ops, plan, policy};
pub use polykv_models as models;
