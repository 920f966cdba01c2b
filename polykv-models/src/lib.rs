//! Model families, weight formats, tokenizers, chat templates and generation on top of [`polykv_core`], and the tasks that
//! compare and calibrate plans.

#![cfg_attr(
    not(test),
    deny(clippy::print_stderr, clippy::print_stdout),
    warn(clippy::expect_used, clippy::unwrap_used, missing_docs)
)]

#[cfg(feature = "calibrate")]
pub mod calibrate;
mod causal_lm;
#[cfg(feature = "chat")]
pub mod chat;
pub mod config;
#[cfg(feature = "chat")]
pub mod conversation;
pub mod decoder;
#[cfg(any(feature = "calibrate", feature = "eval"))]
mod digest;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod doors;
pub mod engine;
#[cfg(feature = "eval")]
pub mod eval;
mod families;
pub mod gemma;
pub mod generate;
pub mod gguf;
pub mod guide;
#[cfg(feature = "hub")]
pub mod hub;
pub mod layers;
pub mod llama;
pub mod load;
mod parts;
pub mod qwen2;
pub mod qwen3;
pub mod qwen3_moe;
pub mod random;
mod repetition;
mod rows;
pub mod sample;
mod stop;
mod stored;
#[cfg(all(test, feature = "flex", any(feature = "eval", feature = "calibrate")))]
mod testing;
#[cfg(any(feature = "eval", feature = "calibrate"))]
mod texts;
pub mod tokenizer;

pub use causal_lm::{Attend, CausalLm, PrefillOptions};
pub use config::ModelConfig;
#[cfg(any(feature = "calibrate", feature = "eval"))]
pub use digest::digest;
pub use generate::{Finish, GenerateOptions, Generation, Generator};
pub use load::{LoadedModel, load};
pub use rows::decode_rows;
