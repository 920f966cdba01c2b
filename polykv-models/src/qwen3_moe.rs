//! The Qwen3-MoE family: Qwen3's block whose feed-forward network is a mixture of experts, in all layers or in some.

use crate::config::ModelConfig;
use crate::decoder::{Decoder, Layer};
use crate::layers::{
    Activation, Attention, Block, FeedForward, LoadedWeights, Mlp, RmsNorm, SparseMlp,
};
use burn::module::Module;
use burn::tensor::Device;

/// A Qwen3-MoE model.
pub type Qwen3Moe = Decoder<Qwen3MoeLayer>;

/// One layer. Its field names spell the checkpoints' tensor names.
#[derive(Module, Debug)]
pub struct Qwen3MoeLayer {
    /// The norm before attention.
    pub input_layernorm: RmsNorm,
    /// The projections around attention.
    pub self_attn: Attention,
    /// The norm after attention, before the feed-forward network.
    pub post_attention_layernorm: RmsNorm,
    /// The feed-forward network.
    pub mlp: DenseOrSparse,
}

/// The feed-forward network of a layer with or without experts.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "one per layer of a model")]
pub enum DenseOrSparse {
    /// One network for all tokens.
    Dense(Mlp),
    /// A mixture of experts.
    Sparse(SparseMlp),
}

impl Layer for Qwen3MoeLayer {
    fn new(config: &ModelConfig, index: usize, device: &Device) -> Self {
        let norm = || RmsNorm::new(config.hidden_size, config.rms_eps, device);
        Self {
            input_layernorm: norm(),
            self_attn: Attention::new(config, device).with_head_norms(config, device),
            post_attention_layernorm: norm(),
            mlp: DenseOrSparse::new(config, index, device),
        }
    }

    fn block(&self) -> Block<'_> {
        Block {
            input_norm: &self.input_layernorm,
            attention: &self.self_attn,
            attention_post_norm: None,
            feed_forward_norm: &self.post_attention_layernorm,
            feed_forward: match &self.mlp {
                DenseOrSparse::Dense(mlp) => FeedForward::Dense(mlp),
                DenseOrSparse::Sparse(experts) => FeedForward::Sparse(experts),
            },
            feed_forward_post_norm: None,
        }
    }

    fn finish_loading(&mut self, loaded: &mut LoadedWeights) {
        self.self_attn.finish_loading(loaded);
        match &mut self.mlp {
            DenseOrSparse::Dense(mlp) => mlp.finish_loading(loaded),
            DenseOrSparse::Sparse(experts) => experts.finish_loading(loaded),
        }
    }
}

impl DenseOrSparse {
    fn new(config: &ModelConfig, index: usize, device: &Device) -> Self {
        let hidden = config.hidden_size;
        match (&config.experts, config.layers[index].sparse) {
            (Some(experts), true) => Self::Sparse(SparseMlp::new(hidden, experts, device)),
            _ => {
                let inner = config.intermediate_size;
                Self::Dense(Mlp::new(hidden, inner, Activation::Silu, device))
            }
        }
    }
}
