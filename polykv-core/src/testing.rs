//! A test harness for policies and caches: a naive cache in f64 on the host, and checks that must hold for every policy.
//!
//! The author of a policy calls [`check`] in a test. A policy that has an [`Oracle`], its definition in f64, is also compared
//! with the naive cache, output by output and entry by entry.
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::Device;
//! use polykv_core::policy::Policies;
//!
//! // policies.register::<OwnPolicy>()? adds one from another crate.
//! let policies = Policies::default();
//! polykv_core::testing::check(&policies, "knorm", &Device::flex()).unwrap();
//! # }
//! ```

mod check;
mod compare;
mod inputs;
#[cfg(feature = "cube")]
mod launches;
mod maths;
mod reference;

pub use check::{check, check_policy, variants};
pub use compare::{Case, Difference, compare, kept};
pub use inputs::{
    DIM, GROUP, HEADS, HIDDEN, Inputs, KV_HEADS, Token, Windows, cache, facts, output_weight, rope,
    shape, tensor, tokens,
};
#[cfg(feature = "cube")]
pub use launches::{launches, without_device};
pub use maths::{dot, max_difference, mean, norm, pooled, softmax, staged};
pub use reference::{Entry, Head, Oracle, Reference};
