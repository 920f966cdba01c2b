//! Gemma 2 (arXiv 2408.00118) and the text models of Gemma 3 (arXiv 2503.19786): four norms per layer, GeGLU, scaled
//! embeddings. Gemma 3 has norms over the heads of queries and keys, where Gemma 2 has soft-caps.
//!
//! Gains of norms are one more than the checkpoints of transformers say; loading adds it. GGUF files hold the sum.

use crate::config::{Family, ModelConfig};
use crate::decoder::{Decoder, Layer};
use crate::layers::{Activation, Attention, Block, FeedForward, LoadedWeights, Mlp, RmsNorm};
use burn::module::Module;
use burn::tensor::Device;

/// A Gemma 2 or Gemma 3 model.
pub type Gemma = Decoder<GemmaLayer>;

/// One layer. Its field names spell the checkpoints' tensor names.
#[derive(Module, Debug)]
pub struct GemmaLayer {
    /// The norm before attention.
    pub input_layernorm: RmsNorm,
    /// The projections around attention.
    pub self_attn: Attention,
    /// The norm after attention.
    pub post_attention_layernorm: RmsNorm,
    /// The norm before the feed-forward network.
    pub pre_feedforward_layernorm: RmsNorm,
    /// The feed-forward network.
    pub mlp: Mlp,
    /// The norm after the feed-forward network.
    pub post_feedforward_layernorm: RmsNorm,
}

impl Layer for GemmaLayer {
    fn new(config: &ModelConfig, _: usize, device: &Device) -> Self {
        let norm = || RmsNorm::new(config.hidden_size, config.rms_eps, device);
        let attention = Attention::new(config, device);
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Self {
            input_layernorm: norm(),
            self_attn: match config.family {
                Family::Gemma3 => attention.with_head_norms(config, device),
                _ => attention,
            },
            post_attention_layernorm: norm(),
            pre_feedforward_layernorm: norm(),
            mlp: Mlp::new(hidden, inner, Activation::GeluTanh, device),
            post_feedforward_layernorm: norm(),
        }
    }

    /// √hidden, in f32 as activations are. Transformers rounds it to the type that it runs a model in.
    fn embedding_scale(config: &ModelConfig) -> Option<f32> {
        Some((config.hidden_size as f64).sqrt() as f32)
    }

    fn block(&self) -> Block<'_> {
        Block {
            input_norm: &self.input_layernorm,
            attention: &self.self_attn,
            attention_post_norm: Some(&self.post_attention_layernorm),
            feed_forward_norm: &self.pre_feedforward_layernorm,
            feed_forward: FeedForward::Dense(&self.mlp),
            feed_forward_post_norm: Some(&self.post_feedforward_layernorm),
        }
    }

    fn finish_loading(&mut self, loaded: &mut LoadedWeights) {
        self.self_attn.finish_loading(loaded);
        self.mlp.finish_loading(loaded);
    }
}
