//! The Llama family: Llama 3.x, SmolLM2 and others of the same architecture.

use crate::config::ModelConfig;
use crate::decoder::{Decoder, Layer};
use crate::layers::{Attention, Block, Mlp, RmsNorm, RopeTable};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use polykv_core::Result;
use polykv_core::ops::Weight;

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
    fn new(config: &ModelConfig, device: &Device) -> Self {
        let norm = || RmsNorm::new(config.hidden_size, config.rms_eps, device);
        Self {
            input_layernorm: norm(),
            self_attn: Attention::new(config, device),
            post_attention_layernorm: norm(),
            mlp: Mlp::new(config.hidden_size, config.intermediate_size, device),
        }
    }

    fn forward(
        &self,
        x: Tensor<3>,
        rope: &RopeTable,
        attend: impl FnOnce(Tensor<4>, Tensor<4>, Tensor<4>) -> Result<Tensor<4>>,
    ) -> Result<Tensor<3>> {
        let block = Block {
            input_norm: &self.input_layernorm,
            attention: &self.self_attn,
            mlp_norm: &self.post_attention_layernorm,
            mlp: &self.mlp,
        };
        block.forward(x, rope, attend)
    }

    fn finish_loading(&mut self) {
        self.self_attn.finish_loading();
        self.mlp.finish_loading();
    }

    fn output_weight(&self) -> &Weight {
        self.self_attn.o_proj.weight.weight()
    }

    fn attention_output(&self, attended: Tensor<4>) -> Tensor<3> {
        self.self_attn.output(attended)
    }
}
