//! Layer-wise KV-cache compression: a [`Plan`] gives each layer and phase (prefill, decode) its own eviction
//! [`Policy`] and its own budget under a fixed total (PolyKV, arXiv 2606.15157).
//!
//! [`calibrate`] measures what each policy does in each layer and finds a plan. From there on: a [`Budget`] is split over layers by an [`Allocator`], a [`Plan`] holds
//! the result, and a [`KvCache`] of one [`LayerCache`] per layer carries it out while a model runs.
//!
//! Shapes, everywhere: queries `[batch, heads, tokens, head_dim]`, keys and values
//! `[batch, kv_heads, tokens, head_dim]`, scores `[batch, kv_heads, entries]`. Keys and queries are given after
//! rotary embedding. Budgets count entries per KV head: grouped queries share one entry.

pub mod allocate;
mod awake;
pub mod budget;
pub mod cache;
pub mod calibrate;
pub mod device;
pub mod doctor;
pub mod error;
pub mod files;
pub mod machine;
pub mod ops;
pub mod plan;
pub mod policy;
pub mod storage;

pub use allocate::Allocator;
pub use budget::Budget;
pub use cache::{
    CacheEstimate, CacheReport, KvCache, LayerCache, LayerFacts, LayerShape, ModelFacts,
    PromptCache, RopeFacts, SharedPrefill, Spans, Untrimmed,
};
pub use device::DeviceSpec;
pub use error::{Error, Result};
pub use plan::{Plan, Rule};
pub use policy::{Phase, Policy};
pub use storage::Storage;
