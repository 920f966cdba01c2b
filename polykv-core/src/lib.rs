//! Layer-wise KV-cache compression: a [`Plan`] gives each layer and phase (prefill, decode) its own eviction
//! [`Policy`] and its own budget under a fixed total (PolyKV, arXiv 2606.15157).
//!
//! [`calibrate`] measures what each policy does in each layer and finds a plan. From there on: a [`Budget`] is split over
//! layers by an [`Allocator`], a [`Plan`] holds the result, and a [`KvCache`] of one [`LayerCache`] per layer carries it
//! out while a model runs. A [`PlanFile`] is a plan as text; the names in it are looked up in a [`Registry`], which takes
//! policies and allocators from other crates, too.
//!
//! Shapes, everywhere: queries `[batch, heads, tokens, head_dim]`, keys and values
//! `[batch, kv_heads, tokens, head_dim]`, scores `[batch, kv_heads, entries]`. Keys and queries are given after
//! rotary embedding. Budgets count entries per KV head: grouped queries share one entry.

#![warn(missing_docs)]
#![cfg_attr(
    not(test),
    warn(
        clippy::expect_used,
        clippy::print_stderr,
        clippy::print_stdout,
        clippy::unwrap_used
    )
)]

pub mod allocate;
pub mod apportion;
mod awake;
pub mod budget;
pub mod cache;
pub mod calibrate;
pub mod device;
pub mod doctor;
pub mod error;
pub mod facts;
pub mod files;
pub mod machine;
pub mod ops;
pub mod phase;
pub mod plan;
pub mod policy;
mod random;
mod registry;
mod shape;
pub mod storage;
#[cfg(feature = "testing")]
pub mod testing;

pub use allocate::Allocator;
pub use budget::Budget;
pub use cache::{
    CacheEstimate, CacheReport, KvCache, LayerCache, Prompt, PromptCache, SharedPrefill, Spans,
    Untrimmed,
};
pub use device::DeviceSpec;
pub use error::{At, Error, ErrorKind, Result};
pub use facts::{LayerFacts, ModelFacts, RopeFacts};
pub use phase::Phase;
pub use plan::{Plan, PlanFile, Rule};
pub use policy::Policy;
pub use registry::Registry;
pub use shape::LayerShape;
pub use storage::Storage;
