//! The parts that all families share: an embedding, a stack of layers, a norm and a head, run over a cache. A family is its
//! [`Layer`].

use crate::causal_lm::{Attend, CausalLm, PrefillOptions};
use crate::config::ModelConfig;
use crate::layers::{Block, Embedding, Linear, LoadedWeights, RmsNorm, Rope, RopeTable, Rotation};
use crate::repetition;
use burn::module::{Module, ModuleDisplay};
use burn::tensor::{Device, Int, Tensor};
use polykv_core::ops::{Weight, bytes};
use polykv_core::{Error, KvCache, LayerFacts, ModelFacts, Prompt, PromptCache, Result, Storage};
use std::ops::Range;

/// One layer of a family. Its field names spell the checkpoints' tensor names.
pub trait Layer: Module + ModuleDisplay + Send + Sync {
    /// The layer of this index without weights: load into it before use.
    fn new(config: &ModelConfig, index: usize, device: &Device) -> Self;

    /// What embeddings are multiplied by before the first layer; `None` in most families.
    fn embedding_scale(_config: &ModelConfig) -> Option<f32> {
        None
    }

    /// The parts of the layer, which the methods below run.
    fn block(&self) -> Block<'_>;

    /// Ends loading: the matrices take what `loaded` has for them, or the form that the operators read. It must be called
    /// before every other method.
    fn finish_loading(&mut self, loaded: &mut LoadedWeights);

    /// Runs the layer: `[batch, tokens, hidden]` → `[batch, tokens, hidden]`. `attend` computes the attention from
    /// rotated queries `[batch, heads, tokens, head_dim]`, rotated keys and values `[batch, kv_heads, tokens,
    /// head_dim]`, and returns the shape of the queries.
    ///
    /// # Errors
    /// The errors of `attend`; a device that cannot be read.
    fn forward(
        &self,
        x: Tensor<3>,
        rotation: &Rotation,
        attend: impl FnOnce(Tensor<4>, Tensor<4>, Tensor<4>) -> Result<Tensor<4>>,
    ) -> Result<Tensor<3>> {
        self.block().forward(x, rotation, attend)
    }

    /// The weight of the projection after attention, `[hidden, heads * head_dim]`.
    fn output_weight(&self) -> &Weight {
        self.block().attention.o_proj.weight.weight()
    }

    /// The projection after attention: `[batch, heads, tokens, head_dim]` → `[batch, tokens, hidden]`.
    fn attention_output(&self, attended: Tensor<4>) -> Tensor<3> {
        self.block().attention.output(attended)
    }
}

/// The weights of a model. The field names spell the tensor names of Hugging Face checkpoints.
#[derive(Module, Debug)]
pub struct Weights<L: Module> {
    /// Everything but the output head.
    pub model: Stack<L>,
    /// The output head; absent in models that use the embedding as their head.
    pub lm_head: Option<Linear>,
}

/// The embedding, the layers and the last norm.
#[derive(Module, Debug)]
pub struct Stack<L: Module> {
    /// The token embedding.
    pub embed_tokens: Embedding,
    /// The layers, in the order in which they run.
    pub layers: Vec<L>,
    /// The norm after the last layer.
    pub norm: RmsNorm,
}

impl<L: Layer> Weights<L> {
    /// A model without weights: load into it before use.
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        Self {
            model: Stack {
                embed_tokens: Embedding::new(vocab, hidden, device),
                layers: (0..config.layers.len())
                    .map(|index| L::new(config, index, device))
                    .collect(),
                norm: RmsNorm::new(hidden, config.rms_eps, device),
            },
            lm_head: (!config.tie_embeddings).then(|| Linear::new(hidden, vocab, device)),
        }
    }

    /// Ends loading, see [`Matrix::finish_loading`](crate::layers::Matrix::finish_loading).
    fn finish_loading(&mut self, loaded: &mut LoadedWeights) {
        self.model.embed_tokens.weight.finish_loading(loaded);
        for layer in &mut self.model.layers {
            layer.finish_loading(loaded);
        }
        if let Some(head) = &mut self.lm_head {
            head.weight.finish_loading(loaded);
        }
    }
}

/// A model of one family that is ready to run.
#[derive(Debug)]
pub struct Decoder<L: Layer> {
    config: ModelConfig,
    device: Device,
    storage: Storage,
    weights: Weights<L>,
    weight_bytes: u64,
    rope: Rope,
}

impl<L: Layer> Decoder<L> {
    /// A model from weights that have been loaded, and those in `loaded` that are no tensors of burn.
    pub fn new(
        config: ModelConfig,
        mut weights: Weights<L>,
        mut loaded: LoadedWeights,
        storage: Storage,
        device: &Device,
    ) -> Self {
        weights.finish_loading(&mut loaded);
        let rope = Rope::new(&config.layers);
        Self {
            config,
            device: device.clone(),
            storage,
            weights,
            weight_bytes: loaded.bytes(),
            rope,
        }
    }

    /// Layer-major: each layer sees the whole prompt, chunk by chunk, and is trimmed before the next one starts.
    /// Returns the hidden states of each chunk.
    fn run_prompt(
        &self,
        ids: Tensor<2, Int>,
        cache: &mut dyn PromptCache,
        options: &mut PrefillOptions<'_>,
    ) -> Result<Vec<Tensor<3>>> {
        let [_, tokens] = ids.dims();
        let starts = cache.next_positions();
        self.check_length(starts.iter().copied().max().unwrap_or(0), tokens)?;
        cache.set_facts(&CausalLm::facts(self));
        let mut prompt = Prompt::new(cache, tokens)?;
        let mut chunks = Vec::new();
        for first in (0..tokens).step_by(options.chunk.max(1)) {
            let last = tokens.min(first + options.chunk.max(1));
            let part = ids.clone().narrow(1, first, last - first);
            let positions: Vec<usize> = starts.iter().map(|start| start + first).collect();
            chunks.push((
                self.embed(part),
                self.rope_of_rows(&positions, last - first),
            ));
        }
        let mut parts = match prompt.layers_to_repeat() {
            0 => Vec::new(),
            _ => repetition::parts(self, &ids, &starts),
        };
        // A chunk's input is still held while its output is computed.
        let held = chunks.iter().chain(&parts).map(|(x, _)| bytes(x));
        let most = chunks.iter().chain(&parts).map(|(x, _)| bytes(x)).max();
        options.activation_peak_bytes = held.sum::<usize>() + most.unwrap_or(0);
        for (index, layer) in self.weights.model.layers.iter().enumerate() {
            for (x, rope) in &mut chunks {
                let attend = |q, k, v| prompt.attend(index, q, k, v);
                *x = layer.forward(x.clone(), rope.of(index), attend)?;
            }
            if index < prompt.layers_to_repeat() {
                for (x, rope) in &mut parts {
                    let attend = |q, k, v| prompt.repeat(index, q, k, v);
                    *x = layer.forward(x.clone(), rope.of(index), attend)?;
                }
            }
            prompt.end_layer(index)?;
            options.report(index + 1, self.config.layers.len());
        }
        prompt.finish()?;
        Ok(chunks.into_iter().map(|(x, _)| x).collect())
    }

    fn check_length(&self, start: usize, tokens: usize) -> Result<()> {
        if tokens == 0 {
            return Err(Error::invalid("prompt", "length", "0 tokens", "at least 1"));
        }
        let (total, most) = (start + tokens, self.config.max_positions);
        if total > most {
            let allowed = format!("at most {most} tokens, the model's context");
            return Err(Error::invalid(
                "prompt",
                "length",
                format!("{total} tokens"),
                allowed,
            ));
        }
        Ok(())
    }

    fn layer_at(&self, index: usize) -> Result<&L> {
        self.weights.model.layers.get(index).ok_or_else(|| {
            let allowed = format!("0 to {}", self.config.layers.len().saturating_sub(1));
            Error::invalid("model", "layer", index, allowed)
        })
    }
}

impl<L: Layer> CausalLm for Decoder<L> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn storage(&self) -> Storage {
        self.storage
    }

    fn facts(&self) -> ModelFacts {
        let layers = self.weights.model.layers.iter().enumerate();
        let layer = |(index, layer): (usize, &L)| {
            let mut facts = LayerFacts::default();
            facts.rope = Some(self.rope.facts(index));
            facts.output = Some(layer.output_weight().clone());
            facts.window = self.config.layers[index].window;
            facts
        };
        let mut facts = ModelFacts::default();
        facts.scale = self.config.attention_scale;
        facts.softcap = self.config.attention_softcap;
        facts.layers = layers.map(layer).collect();
        facts
    }

    fn bytes_per_token(&self) -> u64 {
        let looked_up = match self.weights.lm_head {
            Some(_) => self.weights.model.embed_tokens.weight.weight().bytes(),
            None => 0,
        };
        let read = (self.weight_bytes - looked_up as u64) as f64;
        // Experts that a token does not choose are not read.
        let (active, all) = (self.config.active_parameters(), self.config.parameters());
        (read * active as f64 / all as f64) as u64
    }

    fn prefill(
        &self,
        ids: Tensor<2, Int>,
        cache: &mut dyn PromptCache,
        options: &mut PrefillOptions<'_>,
    ) -> Result<Tensor<2>> {
        let mut chunks = self.run_prompt(ids, cache, options)?;
        let last = chunks
            .pop()
            .ok_or_else(|| Error::Failed("a prompt without chunks".into()))?;
        let [batch, tokens, _] = last.dims();
        let logits = self.head(last.narrow(1, tokens - 1, 1));
        Ok(logits.reshape([batch, self.config.vocab_size]))
    }

    fn logits(
        &self,
        ids: Tensor<2, Int>,
        cache: &mut dyn PromptCache,
        options: &mut PrefillOptions<'_>,
    ) -> Result<Tensor<3>> {
        let chunks = self.run_prompt(ids, cache, options)?;
        Ok(Tensor::cat(
            chunks.into_iter().map(|x| self.head(x)).collect(),
            1,
        ))
    }

    fn decode(&self, ids: Tensor<2, Int>, cache: &mut KvCache) -> Result<Tensor<2>> {
        let [batch, tokens] = ids.dims();
        if tokens != 1 {
            return Err(Error::invalid("decode", "tokens", tokens, 1));
        }
        let rope = self.rope_of_rows(&cache.next_positions(), 1);
        let mut x = self.embed(ids);
        for (index, layer) in self.weights.model.layers.iter().enumerate() {
            x = layer.forward(x, rope.of(index), |q, k, v| cache.decode(index, q, k, v))?;
        }
        Ok(self.head(x).reshape([batch, self.config.vocab_size]))
    }

    fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let x = self.weights.model.embed_tokens.forward(ids);
        match L::embedding_scale(&self.config) {
            Some(scale) => x.mul_scalar(scale),
            None => x,
        }
    }

    fn rope(&self, positions: Range<usize>) -> RopeTable {
        self.rope.table(positions, &self.device)
    }

    fn rope_of_rows(&self, first: &[usize], tokens: usize) -> RopeTable {
        self.rope.table_of_rows(first, tokens, &self.device)
    }

    fn layer(
        &self,
        index: usize,
        x: Tensor<3>,
        rope: &RopeTable,
        attend: &mut Attend<'_>,
    ) -> Result<Tensor<3>> {
        self.layer_at(index)?.forward(x, rope.of(index), attend)
    }

    fn attention_output(&self, layer: usize, attended: Tensor<4>) -> Result<Tensor<3>> {
        Ok(self.layer_at(layer)?.attention_output(attended))
    }

    fn head(&self, x: Tensor<3>) -> Tensor<3> {
        let x = self.weights.model.norm.forward(x);
        let logits = match &self.weights.lm_head {
            Some(head) => head.forward(x),
            None => self.weights.model.embed_tokens.as_head(x),
        };
        match self.config.logit_softcap {
            Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
            None => logits,
        }
    }
}
