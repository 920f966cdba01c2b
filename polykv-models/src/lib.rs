//! Model families, weight formats and generation on top of [`polykv_core`].

#![cfg_attr(
    not(test),
    warn(
        clippy::expect_used,
        clippy::print_stderr,
        clippy::print_stdout,
        clippy::unwrap_used
    )
)]

#[cfg(feature = "calibrate")]
pub mod calibrate;
#[cfg(feature = "chat")]
pub mod chat;
pub mod config;
pub mod decoder;
#[cfg(any(feature = "calibrate", feature = "eval"))]
mod digest;
#[cfg(feature = "eval")]
pub mod eval;
pub mod generate;
#[cfg(feature = "hub")]
pub mod hub;
pub mod layers;
pub mod llama;
pub mod load;
pub mod qwen3;
pub mod random;
#[cfg(any(feature = "eval", feature = "calibrate"))]
mod rows;
pub mod sample;
mod stop;
#[cfg(all(test, feature = "flex", any(feature = "eval", feature = "calibrate")))]
mod testing;
#[cfg(any(feature = "eval", feature = "calibrate"))]
mod texts;
pub mod tokenizer;

pub use config::ModelConfig;
#[cfg(any(feature = "calibrate", feature = "eval"))]
pub use digest::digest;
pub use generate::{Finish, GenerateOptions, Generation, Generator};
pub use load::{LoadedModel, load};

use burn::tensor::{Device, Int, Tensor};
use layers::RopeTable;
use polykv_core::{KvCache, LayerShape, PromptCache, Result, Storage};
use std::fmt;
use std::ops::Range;

/// A decoder that keeps its keys and values in a [`KvCache`].
pub trait CausalLm: Send + Sync + fmt::Debug {
    fn config(&self) -> &ModelConfig;

    fn device(&self) -> &Device;

    /// How the weights are stored, and the cache is to be.
    fn storage(&self) -> Storage;

    /// Runs a prompt, `ids [batch, tokens]`, after whatever the cache has seen; every layer is trimmed by its prefill
    /// rule. Returns the logits of the last position, `[batch, vocab]`.
    ///
    /// # Errors
    /// An empty prompt, one beyond the model's context, and what the cache refuses.
    fn prefill(
        &self,
        ids: Tensor<2, Int>,
        cache: &mut dyn PromptCache,
        options: &mut PrefillOptions<'_>,
    ) -> Result<Tensor<2>>;

    /// As [`CausalLm::prefill`], with the logits of every position, `[batch, tokens, vocab]`. Trimming a layer after
    /// the prompt changes none of them.
    ///
    /// # Errors
    /// As [`CausalLm::prefill`].
    fn logits(
        &self,
        ids: Tensor<2, Int>,
        cache: &mut dyn PromptCache,
        options: &mut PrefillOptions<'_>,
    ) -> Result<Tensor<3>>;

    /// Runs one token per sequence, `ids [batch, 1]`, and returns its logits, `[batch, vocab]`.
    ///
    /// # Errors
    /// What the cache refuses.
    fn decode(&self, ids: Tensor<2, Int>, cache: &mut KvCache) -> Result<Tensor<2>>;

    /// The hidden states of tokens before the first layer: `ids [batch, tokens]` → `[batch, tokens, hidden]`. With
    /// [`CausalLm::layer`] and [`CausalLm::head`] a caller can run parts of the model, over any cache or none.
    fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3>;

    /// The rotary embedding of consecutive positions.
    fn rope(&self, positions: Range<usize>) -> RopeTable;

    /// One layer over hidden states `[batch, tokens, hidden]` at the positions of `rope`; the attention itself is the
    /// caller's.
    ///
    /// # Errors
    /// A layer that is not there, and those of `attend`.
    fn layer(
        &self,
        index: usize,
        x: Tensor<3>,
        rope: &RopeTable,
        attend: &mut Attend<'_>,
    ) -> Result<Tensor<3>>;

    /// What attention `[batch, heads, tokens, head_dim]` adds to the hidden states in a layer, `[batch, tokens, hidden]`.
    ///
    /// # Errors
    /// A layer that is not there.
    fn attention_output(&self, layer: usize, attended: Tensor<4>) -> Result<Tensor<3>>;

    /// The logits of hidden states after the last layer: `[batch, tokens, hidden]` → `[batch, tokens, vocab]`.
    fn head(&self, x: Tensor<3>) -> Tensor<3>;

    /// What the cache must be made for.
    fn cache_shape(&self, batch: usize) -> LayerShape {
        let config = self.config();
        LayerShape {
            batch,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            dtype: self.storage().cache(),
        }
    }
}

/// Attention of a layer: rotated queries, rotated keys and values, `[batch, heads or kv_heads, tokens, head_dim]` each, →
/// `[batch, heads, tokens, head_dim]`.
pub type Attend<'a> = dyn FnMut(Tensor<4>, Tensor<4>, Tensor<4>) -> Result<Tensor<4>> + 'a;

/// How a prompt is run.
pub struct PrefillOptions<'a> {
    /// Tokens per pass through a layer; bounds the memory for activations.
    pub chunk: usize,
    /// Called after every layer with the layers done and the layers in all.
    pub progress: Option<&'a mut dyn FnMut(usize, usize)>,
    /// Filled in by the model: the most bytes of hidden states that were held between layers.
    pub activation_peak_bytes: usize,
}

impl PrefillOptions<'_> {
    /// Tokens per pass unless said otherwise.
    pub const CHUNK: usize = 512;

    fn report(&mut self, done: usize, total: usize) {
        if let Some(progress) = self.progress.as_mut() {
            progress(done, total);
        }
    }
}

impl Default for PrefillOptions<'_> {
    fn default() -> Self {
        Self {
            chunk: Self::CHUNK,
            progress: None,
            activation_peak_bytes: 0,
        }
    }
}
