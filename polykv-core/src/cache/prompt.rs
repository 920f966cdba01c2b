//! A prompt on its way through a cache.

use crate::facts::ModelFacts;
use crate::{Error, Result};
use burn::tensor::Tensor;
use std::fmt;

/// A cache that a [`Prompt`] runs through: [`KvCache`](super::KvCache) under one plan,
/// [`SharedPrefill`](super::SharedPrefill) under several, [`Untrimmed`](super::Untrimmed) without eviction, and mutable
/// references and boxes of these.
pub trait PromptCache: Drive + fmt::Debug {
    /// How many tokens each row has been given.
    fn seen(&self) -> usize;

    /// The position of each row's next token.
    fn next_positions(&self) -> Vec<usize>;

    /// Tells what some policies need to know of the model; before a prompt.
    fn set_facts(&mut self, facts: &ModelFacts);
}

/// What a prompt asks of a cache. Only this crate can call it: the order of calls is [`Prompt`]'s to keep.
pub trait Drive {
    #[doc(hidden)]
    fn layers(&self) -> usize;

    #[doc(hidden)]
    fn begin(&mut self, tokens: usize) -> Result<()>;

    #[doc(hidden)]
    fn attend(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>>;

    #[doc(hidden)]
    fn end_layer(&mut self, layer: usize) -> Result<()>;

    #[doc(hidden)]
    fn end(&mut self) -> Result<()>;
}

/// A prompt between its announcement and its end.
///
/// Every layer in turn is given all tokens, in one chunk or several, and then cut by its prefill rule: [`Prompt::attend`]
/// for each chunk, [`Prompt::end_layer`], and after the last layer [`Prompt::finish`]. Other orders, more or fewer tokens
/// than announced, and decoding in between are refused.
///
/// A prompt holds its cache (`Prompt<KvCache>`), so that it can be put aside and continued while others run, or borrows it
/// (`Prompt<&mut KvCache>`, from [`KvCache::prompt`](super::KvCache::prompt)). A borrowed cache whose prompt is dropped
/// before its end refuses everything until [`KvCache::clear`](super::KvCache::clear).
#[derive(Debug)]
#[must_use = "a cache whose prompt is not finished refuses everything until it is cleared"]
pub struct Prompt<C: PromptCache> {
    cache: C,
    tokens: usize,
    /// The layer at hand.
    layer: usize,
    /// Tokens that it has been given.
    given: usize,
}

impl<C: PromptCache> Prompt<C> {
    /// Announces a prompt of `tokens` tokens per row.
    ///
    /// # Errors
    /// A prompt without tokens, and what the cache refuses, see [`KvCache::prompt`](super::KvCache::prompt).
    pub fn new(mut cache: C, tokens: usize) -> Result<Self> {
        if tokens == 0 {
            return Err(Error::invalid("prompt", "length", "0 tokens", "at least 1"));
        }
        cache.begin(tokens)?;
        Ok(Self {
            cache,
            tokens,
            layer: 0,
            given: 0,
        })
    }

    /// The cache, for inspection.
    pub fn cache(&self) -> &C {
        &self.cache
    }

    /// Tokens per row that were announced.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The layer that is next, the number of layers when all have been cut.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// Tokens per row that this layer has been given.
    pub fn given(&self) -> usize {
        self.given
    }

    /// Whether every layer has had the whole prompt, so that [`Prompt::finish`] is what is left.
    pub fn is_complete(&self) -> bool {
        self.layer == self.cache.layers()
    }

    /// Attention of the next chunk in the layer at hand; the chunk's keys and values are appended.
    ///
    /// `q [batch, heads, tokens, head_dim]`, `k`, `v [batch, kv_heads, tokens, head_dim]`, rotated for the positions that
    /// follow those given before → `[batch, heads, tokens, head_dim]`. Scores are scaled by 1/√head_dim unless the cache
    /// has a scale of its own.
    ///
    /// # Errors
    /// Another layer than the one at hand, more tokens than announced, shapes that do not match the cache's.
    pub fn attend(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        self.check_layer(layer)?;
        let given = self.given + q.dims()[2];
        if given > self.tokens {
            let allowed = format!("{}, as announced", self.tokens);
            let field = format!("tokens of layer {layer}");
            return Err(Error::order("prompt", field, given, allowed));
        }
        let output = self.cache.attend(layer, q, k, v)?;
        self.given = given;
        Ok(output)
    }

    /// Cuts the layer at hand by its prefill rule once it has been given the whole prompt; the next one follows. Under an
    /// allocator that has to see the layers ([`Online`](crate::allocate::Online)) earlier layers may be cut again.
    ///
    /// # Errors
    /// Another layer than the one at hand, fewer tokens than announced, NaN scores.
    pub fn end_layer(&mut self, layer: usize) -> Result<()> {
        self.check_layer(layer)?;
        if self.given < self.tokens {
            let allowed = format!("{}, as announced", self.tokens);
            let field = format!("tokens of layer {layer}");
            return Err(Error::order("prompt", field, self.given, allowed));
        }
        self.cache.end_layer(layer)?;
        self.layer += 1;
        self.given = 0;
        Ok(())
    }

    /// Ends the prompt and gives the cache back.
    ///
    /// # Errors
    /// Layers that have not had the whole prompt, NaN scores.
    pub fn finish(mut self) -> Result<C> {
        if !self.is_complete() {
            let allowed = format!("after {} layers", self.cache.layers());
            let found = format!("after {}", self.layer);
            return Err(Error::order("prompt", "end", found, allowed));
        }
        self.cache.end()?;
        Ok(self.cache)
    }

    fn check_layer(&self, layer: usize) -> Result<()> {
        if layer == self.layer && !self.is_complete() {
            return Ok(());
        }
        let allowed = match self.is_complete() {
            true => "none: all layers have had the prompt".to_string(),
            false => format!("{}, the one at hand", self.layer),
        };
        Err(Error::order("prompt", "layer", layer, allowed))
    }

    pub(super) fn skip_to(mut self, layer: usize) -> Self {
        self.layer = layer;
        self
    }
}

macro_rules! forward {
    ($pointer:ty) => {
        impl<C: PromptCache + ?Sized> PromptCache for $pointer {
            fn seen(&self) -> usize {
                (**self).seen()
            }

            fn next_positions(&self) -> Vec<usize> {
                (**self).next_positions()
            }

            fn set_facts(&mut self, facts: &ModelFacts) {
                (**self).set_facts(facts);
            }
        }

        impl<C: PromptCache + ?Sized> Drive for $pointer {
            fn layers(&self) -> usize {
                (**self).layers()
            }

            fn begin(&mut self, tokens: usize) -> Result<()> {
                (**self).begin(tokens)
            }

            fn attend(
                &mut self,
                layer: usize,
                q: Tensor<4>,
                k: Tensor<4>,
                v: Tensor<4>,
            ) -> Result<Tensor<4>> {
                (**self).attend(layer, q, k, v)
            }

            fn end_layer(&mut self, layer: usize) -> Result<()> {
                (**self).end_layer(layer)
            }

            fn end(&mut self) -> Result<()> {
                (**self).end()
            }
        }
    };
}

forward!(&mut C);
forward!(Box<C>);
