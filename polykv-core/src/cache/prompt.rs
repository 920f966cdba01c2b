//! A prompt between its announcement and its end.

use crate::awake;
use crate::facts::ModelFacts;
use crate::{Error, Result};
use burn::tensor::Tensor;
use std::fmt;

/// A cache that can be given a [`Prompt`]: [`KvCache`](super::KvCache) under one plan,
/// [`SharedPrefill`](super::SharedPrefill) under several plans, [`Untrimmed`](super::Untrimmed) without eviction, and mutable
/// references and boxes of these. Other crates cannot implement it.
pub trait PromptCache: Drive + fmt::Debug {
    /// How many tokens each row has been given.
    fn seen(&self) -> usize;

    /// The position of each row's next token.
    fn next_positions(&self) -> Vec<usize>;

    /// States what some policies need to know of the model, from the next prompt on.
    fn set_facts(&mut self, facts: &ModelFacts);
}

/// The calls that a [`Prompt`] makes, in an order that it keeps. Only this crate can make them.
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
    fn layers_to_repeat(&self) -> usize;

    #[doc(hidden)]
    fn repeat(
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
/// The layers run one after the other. Call [`Prompt::attend`] for each chunk of a layer's tokens, then
/// [`Prompt::end_layer`], which evicts by the layer's prefill rule, and after the last layer [`Prompt::finish`]. Calls in
/// another order, more or fewer tokens than announced, and decoding before the end are refused.
///
/// A `Prompt<KvCache>` owns its cache, so that a scheduler can put it aside and continue it later. A `Prompt<&mut KvCache>`,
/// from [`KvCache::prompt`](super::KvCache::prompt), borrows it; if it is dropped before its end, the cache refuses
/// everything until [`KvCache::clear`](super::KvCache::clear).
#[derive(Debug)]
#[must_use = "a cache whose prompt is not finished refuses everything until it is cleared"]
pub struct Prompt<C: PromptCache> {
    cache: C,
    tokens: usize,
    /// The layer that is next.
    layer: usize,
    /// Tokens that this layer has been given.
    given: usize,
    /// Tokens of the repetition that this layer has been given.
    repeated: usize,
    /// How many of the first layers want it.
    to_repeat: usize,
}

impl<C: PromptCache> Prompt<C> {
    /// Announces a prompt of `tokens` tokens per row.
    ///
    /// # Errors
    /// A prompt without tokens, and what [`KvCache::prompt`](super::KvCache::prompt) refuses.
    pub fn new(mut cache: C, tokens: usize) -> Result<Self> {
        if tokens == 0 {
            return Err(Error::invalid("prompt", "length", "0 tokens", "at least 1"));
        }
        cache.begin(tokens)?;
        let to_repeat = cache.layers_to_repeat();
        Ok(Self {
            cache,
            tokens,
            layer: 0,
            given: 0,
            repeated: 0,
            to_repeat,
        })
    }

    /// The cache of this prompt, for inspection.
    pub fn cache(&self) -> &C {
        &self.cache
    }

    /// The number of tokens per row that was announced.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The layer that is next; the number of layers when all have ended.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// How many tokens per row the layer [`Prompt::layer`] has been given.
    pub fn given(&self) -> usize {
        self.given
    }

    /// Whether every layer has ended, so that only [`Prompt::finish`] is left to call.
    pub fn is_complete(&self) -> bool {
        self.layer == self.cache.layers()
    }

    /// Appends the keys and values of the next chunk to the layer that is next, and returns the chunk's causal attention.
    ///
    /// `q [batch, heads, tokens, head_dim]`, `k`, `v [batch, kv_heads, tokens, head_dim]`, rotated for the positions that
    /// follow those given before → `[batch, heads, tokens, head_dim]`. Logits are scaled by 1/√head_dim, or by
    /// [`ModelFacts::scale`] if the model stated one.
    ///
    /// # Errors
    /// Another layer than [`Prompt::layer`], more tokens than announced, and shapes that do not match the cache's.
    pub fn attend(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        self.check_layer(layer)?;
        awake::again();
        let given = self.given.saturating_add(q.dims()[2]);
        if given > self.tokens {
            let allowed = format!("{}, as announced", self.tokens);
            let field = format!("tokens of layer {layer}");
            return Err(Error::order("prompt", field, given, allowed));
        }
        let output = self.cache.attend(layer, q, k, v)?;
        self.given = given;
        Ok(output)
    }

    /// Through how many of the first layers the prompt's repetition has to run, see [`Prompt::repeat`]; 0 if no policy asks for
    /// it, as most do not.
    pub fn layers_to_repeat(&self) -> usize {
        self.to_repeat
    }

    /// The attention of a part of the prompt's repetition, for policies that score entries by it
    /// ([`Needs::repetition`](crate::policy::Needs::repetition)). When the layer that is next, below
    /// [`Prompt::layers_to_repeat`], has been given the whole prompt, call this for each part: some of the prompt's tokens run
    /// through the layers once more, at the positions that follow the prompt. They see all entries, and of each other those of
    /// their own part; nothing of them stays. Every part begins at the same position.
    ///
    /// Shapes and scale are those of [`Prompt::attend`].
    ///
    /// # Errors
    /// Another layer than [`Prompt::layer`] or one that nothing has to be repeated in, fewer tokens of the prompt than announced,
    /// and shapes that do not match the cache's.
    pub fn repeat(
        &mut self,
        layer: usize,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Result<Tensor<4>> {
        self.check_layer(layer)?;
        self.check_given(layer)?;
        if layer >= self.to_repeat {
            let allowed = match self.to_repeat {
                0 => "none, as no policy asks for it".into(),
                most => format!("layers below {most}"),
            };
            return Err(Error::order(
                "prompt",
                "repetition",
                format!("layer {layer}"),
                allowed,
            ));
        }
        let tokens = q.dims()[2];
        let output = self.cache.repeat(layer, q, k, v)?;
        self.repeated = self.repeated.saturating_add(tokens);
        Ok(output)
    }

    /// Ends a layer that has been given the whole prompt: evicts by its prefill rule and goes on to the next layer. Under an
    /// allocator that splits by what the layers do ([`Online`](crate::allocate::Online)), earlier layers may evict again.
    ///
    /// # Errors
    /// Another layer than [`Prompt::layer`], fewer tokens than announced, a repetition that is missing, and NaN scores.
    pub fn end_layer(&mut self, layer: usize) -> Result<()> {
        self.check_layer(layer)?;
        self.check_given(layer)?;
        if layer < self.to_repeat && self.repeated == 0 {
            let field = format!("repeated tokens of layer {layer}");
            let allowed =
                "at least 1, which a policy asks for: Prompt::repeat before the layer ends";
            return Err(Error::order("prompt", field, 0, allowed));
        }
        self.cache.end_layer(layer)?;
        self.layer = layer.saturating_add(1);
        (self.given, self.repeated) = (0, 0);
        Ok(())
    }

    /// Ends the prompt and gives the cache back.
    ///
    /// # Errors
    /// Layers that have not ended, and NaN scores.
    pub fn finish(mut self) -> Result<C> {
        if !self.is_complete() {
            let allowed = format!("after {} layers", self.cache.layers());
            let found = format!("after {}", self.layer);
            return Err(Error::order("prompt", "end", found, allowed));
        }
        self.cache.end()?;
        Ok(self.cache)
    }

    fn check_given(&self, layer: usize) -> Result<()> {
        match self.given < self.tokens {
            true => {
                let allowed = format!("{}, as announced", self.tokens);
                let field = format!("tokens of layer {layer}");
                Err(Error::order("prompt", field, self.given, allowed))
            }
            false => Ok(()),
        }
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

            fn layers_to_repeat(&self) -> usize {
                (**self).layers_to_repeat()
            }

            fn repeat(
                &mut self,
                layer: usize,
                q: Tensor<4>,
                k: Tensor<4>,
                v: Tensor<4>,
            ) -> Result<Tensor<4>> {
                (**self).repeat(layer, q, k, v)
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
