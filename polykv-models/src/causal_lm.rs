//! The interface of a decoder-only model: a prompt, single tokens, and the parts in between.

use crate::config::ModelConfig;
use crate::layers::RopeTable;
use burn::tensor::{Device, Int, Tensor};
use polykv_core::{EntryCost, KvCache, LayerShape, ModelFacts, PromptCache, Result, Storage};
use std::fmt;
use std::ops::Range;

/// A decoder-only language model whose keys and values lie in a [`KvCache`] that the caller owns.
pub trait CausalLm: Send + Sync + fmt::Debug {
    /// The shape of the model.
    fn config(&self) -> &ModelConfig;

    /// The device that holds the weights and runs the model.
    fn device(&self) -> &Device;

    /// The number formats of the weights and of the cache that goes with them.
    fn storage(&self) -> Storage;

    /// What the model states about itself for its cache. A prompt states it by itself; a cache that goes on from a
    /// [`Session`](polykv_core::Session) is told before.
    fn facts(&self) -> ModelFacts;

    /// Bytes of weight matrices that a decode step reads: all but an embedding table of which it looks up single rows, and
    /// experts that a token does not choose.
    fn bytes_per_token(&self) -> u64;

    /// Runs a prompt, `ids [batch, tokens]`. Each row of the batch continues at its own next position in the cache. Each layer
    /// is trimmed by its prefill rule after it has seen the whole prompt. Returns the logits of the last position,
    /// `[batch, vocab]`.
    ///
    /// # Errors
    /// An empty prompt, a prompt that exceeds the model's context, and every error of the cache.
    fn prefill(
        &self,
        ids: Tensor<2, Int>,
        cache: &mut dyn PromptCache,
        options: &mut PrefillOptions<'_>,
    ) -> Result<Tensor<2>>;

    /// Runs a prompt, `ids [batch, tokens]`, and returns the logits of every position, `[batch, tokens, vocab]`. The cache
    /// ends in the same state as after [`CausalLm::prefill`]. The trimming of a layer comes after the prompt, so it changes
    /// none of these logits.
    ///
    /// # Errors
    /// An empty prompt, a prompt that exceeds the model's context, and every error of the cache.
    fn logits(
        &self,
        ids: Tensor<2, Int>,
        cache: &mut dyn PromptCache,
        options: &mut PrefillOptions<'_>,
    ) -> Result<Tensor<3>>;

    /// Runs one token per sequence, `ids [batch, 1]`. Each row of the batch continues at its own next position in the cache.
    /// Returns the logits of the next token, `[batch, vocab]`.
    ///
    /// # Errors
    /// More or fewer than one token per sequence, and every error of the cache.
    fn decode(&self, ids: Tensor<2, Int>, cache: &mut KvCache) -> Result<Tensor<2>>;

    /// The hidden states of tokens before the first layer: `ids [batch, tokens]` → `[batch, tokens, hidden]`. With
    /// [`CausalLm::layer`] and [`CausalLm::head`] a caller can run parts of the model, over any cache or none.
    fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3>;

    /// The cosines and sines of the rotary embedding for a range of positions.
    fn rope(&self, positions: Range<usize>) -> RopeTable;

    /// The cosines and sines of `tokens` consecutive positions in each row of a batch, from position `first[i]` on in row `i`.
    fn rope_of_rows(&self, first: &[usize], tokens: usize) -> RopeTable;

    /// Runs one layer over hidden states `[batch, tokens, hidden]` at the positions of `rope`, and returns the hidden
    /// states after it in the same shape. `attend` computes the attention; see [`Attend`].
    ///
    /// # Errors
    /// An index that is not below the number of layers, and the errors of `attend`.
    fn layer(
        &self,
        index: usize,
        x: Tensor<3>,
        rope: &RopeTable,
        attend: &mut Attend<'_>,
    ) -> Result<Tensor<3>>;

    /// The output projection of one layer's attention: `[batch, heads, tokens, head_dim]` → `[batch, tokens, hidden]`. The
    /// layer adds the result to its residual.
    ///
    /// # Errors
    /// An index that is not below the number of layers.
    fn attention_output(&self, layer: usize, attended: Tensor<4>) -> Result<Tensor<3>>;

    /// The logits of hidden states after the last layer: `[batch, tokens, hidden]` → `[batch, tokens, vocab]`.
    fn head(&self, x: Tensor<3>) -> Tensor<3>;

    /// The shape of one layer's keys and values in a cache for `batch` sequences of this model.
    fn cache_shape(&self, batch: usize) -> LayerShape {
        let config = self.config();
        LayerShape {
            batch,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            dtype: self.storage().cache_on(self.device()),
        }
    }

    /// What a plan's budget needs to know of the model's cache for a batch of `batch` sequences.
    fn cache_cost(&self, batch: usize) -> EntryCost {
        self.cache_shape(batch).cost(&self.config().windows())
    }
}

/// The attention of one layer. It gets rotated queries `[batch, heads, tokens, head_dim]`, rotated keys and values
/// `[batch, kv_heads, tokens, head_dim]`, and returns what the heads attended to, `[batch, heads, tokens, head_dim]`.
pub type Attend<'a> = dyn FnMut(Tensor<4>, Tensor<4>, Tensor<4>) -> Result<Tensor<4>> + 'a;

/// How a prompt is run.
pub struct PrefillOptions<'a> {
    /// Tokens per pass through a layer. A smaller number bounds the memory for activations.
    pub chunk: usize,
    /// Is called after every layer with the number of layers that are done and the number of layers in all.
    pub progress: Option<&'a mut dyn FnMut(usize, usize)>,
    /// Set by the model: the most bytes of hidden states that it held between layers.
    pub activation_peak_bytes: usize,
}

impl PrefillOptions<'_> {
    /// The default of [`PrefillOptions::chunk`].
    pub const CHUNK: usize = 512;

    pub(crate) fn report(&mut self, done: usize, total: usize) {
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
