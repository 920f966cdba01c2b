//! The Llama family: Llama 3.x, SmolLM2, Mistral and others of the same architecture. Their layers may have a window.
//!
//! Two more families have the same layer. Phi-3 and Phi-4 rotate part of a head only, and their checkpoints hold queries,
//! keys and values in one tensor, gate and up projection in another; loading cuts them apart. SmolLM3 has layers whose
//! queries and keys are not rotated at all.

use crate::config::ModelConfig;
use crate::decoder::{Decoder, Layer};
use crate::layers::{Activation, Attention, Block, LoadedWeights, Mlp, RmsNorm};
use burn::module::Module;
use burn::tensor::Device;

/// A Llama model.
pub type Llama = Decoder<LlamaLayer>;

/// One Llama layer. Its field names spell the tensor names of checkpoints.
#[derive(Module, Debug)]
pub struct LlamaLayer {
    /// The norm before attention.
    pub input_layernorm: RmsNorm,
    /// The projections around attention.
    pub self_attn: Attention,
    /// The norm after attention, before the feed-forward network.
    pub post_attention_layernorm: RmsNorm,
    /// The feed-forward network.
    pub mlp: Mlp,
}

impl Layer for LlamaLayer {
    fn new(config: &ModelConfig, _: usize, device: &Device) -> Self {
        let norm = || RmsNorm::new(config.hidden_size, config.rms_eps, device);
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Self {
            input_layernorm: norm(),
            self_attn: Attention::new(config, device),
            post_attention_layernorm: norm(),
            mlp: Mlp::new(hidden, inner, Activation::Silu, device),
        }
    }

    fn block(&self) -> Block<'_> {
        Block::pre_norm(
            &self.input_layernorm,
            &self.self_attn,
            &self.post_attention_layernorm,
            &self.mlp,
        )
    }

    fn finish_loading(&mut self, loaded: &mut LoadedWeights) {
        self.self_attn.finish_loading(loaded);
        self.mlp.finish_loading(loaded);
    }
}
