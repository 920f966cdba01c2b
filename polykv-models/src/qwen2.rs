//! The Qwen2 and Qwen2.5 family: Llama's block with biases at queries, keys and values.

use crate::config::ModelConfig;
use crate::decoder::{Decoder, Layer};
use crate::layers::{Activation, Attention, Block, LoadedWeights, Mlp, RmsNorm};
use burn::module::Module;
use burn::tensor::Device;

/// A Qwen2 model.
pub type Qwen2 = Decoder<Qwen2Layer>;

/// One layer. Its field names spell the checkpoints' tensor names.
#[derive(Module, Debug)]
pub struct Qwen2Layer {
    /// The norm before attention.
    pub input_layernorm: RmsNorm,
    /// The projections around attention.
    pub self_attn: Attention,
    /// The norm after attention, before the feed-forward network.
    pub post_attention_layernorm: RmsNorm,
    /// The feed-forward network.
    pub mlp: Mlp,
}

impl Layer for Qwen2Layer {
    fn new(config: &ModelConfig, _: usize, device: &Device) -> Self {
        let norm = || RmsNorm::new(config.hidden_size, config.rms_eps, device);
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Self {
            input_layernorm: norm(),
            self_attn: Attention::new(config, device).with_qkv_biases(config, device),
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
