//! Layer-wise KV-cache compression: a [`Plan`] gives each layer its own eviction [`Policy`] and its own budget in each phase,
//! prefill and decode, under a fixed total (PolyKV, arXiv 2606.15157).
//!
//! A [`KvCache`] carries out a plan while a model runs; it has one [`LayerCache`] per layer. The total of a plan is a
//! [`Budget`], which is split over the layers by their shares or by an [`Allocator`]. A [`PlanFile`] is a plan as text, whose
//! names are looked up in a [`Registry`]; policies and allocators of other crates can join it. The module [`calibrate`] finds
//! plans from measurements of a model.
//!
//! Shapes are the same everywhere: queries `[batch, heads, tokens, head_dim]`, keys and values
//! `[batch, kv_heads, tokens, head_dim]`, scores `[batch, kv_heads, entries]`. Keys and queries are given after rotary
//! embedding. An entry is the key and the value of a token in one layer and KV head, and budgets count entries per KV head:
//! the query heads of a group share them (GQA).

#![warn(missing_docs)]
#![cfg_attr(
    not(test),
    deny(clippy::print_stderr, clippy::print_stdout),
    warn(clippy::expect_used, clippy::unwrap_used)
)]

pub mod allocate;
pub mod apportion;
mod awake;
pub mod budget;
pub mod cache;
pub mod calibrate;
mod codes;
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
pub use budget::{Budget, EntryCost};
pub use cache::{
    CacheEstimate, CacheReport, Holdings, KvCache, LayerCache, Prompt, PromptCache, Session,
    SessionInfo, SharedPrefill, Spans, Untrimmed,
};
pub use codes::Codes;
pub use device::DeviceSpec;
pub use error::{At, Error, ErrorKind, Result};
pub use facts::{LayerFacts, ModelFacts, RopeFacts};
pub use phase::Phase;
pub use plan::{Plan, PlanFile, Rule};
pub use policy::Policy;
pub use registry::Registry;
pub use shape::LayerShape;
pub use storage::Storage;
