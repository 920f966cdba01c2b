use super::{Linear, LoadedWeights, RmsNorm, Rotation, linear};
use crate::config::ModelConfig;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use polykv_core::ops::Weight;

/// The projections around attention. The attention itself, over the entries that the cache kept, is computed by the
/// caller.
#[derive(Module, Debug)]
pub struct Attention {
    /// The query projection, `[heads * head_dim, hidden]`.
    pub q_proj: Linear,
    /// The key projection, `[kv_heads * head_dim, hidden]`.
    pub k_proj: Linear,
    /// The value projection, `[kv_heads * head_dim, hidden]`.
    pub v_proj: Linear,
    /// The output projection, `[hidden, heads * head_dim]`.
    pub o_proj: Linear,
    /// The RMS norm over each head of the queries, before the rotary embedding; absent in most families.
    pub q_norm: Option<RmsNorm>,
    /// The RMS norm over each head of the keys, before the rotary embedding; absent in most families.
    pub k_norm: Option<RmsNorm>,
    head_dim: usize,
}

impl Attention {
    /// Projections without values, to load a checkpoint into, and without head norms.
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        let (hidden, head_dim) = (config.hidden_size, config.head_dim);
        let queries = config.heads * head_dim;
        let keys = config.kv_heads * head_dim;
        Self {
            q_proj: Linear::new(hidden, queries, device),
            k_proj: Linear::new(hidden, keys, device),
            v_proj: Linear::new(hidden, keys, device),
            o_proj: Linear::new(queries, hidden, device),
            q_norm: None,
            k_norm: None,
            head_dim,
        }
    }

    /// Adds biases to queries, keys and values.
    #[must_use]
    pub fn with_qkv_biases(self, config: &ModelConfig, device: &Device) -> Self {
        let biased = |heads| Linear::with_bias(config.hidden_size, heads * config.head_dim, device);
        Self {
            q_proj: biased(config.heads),
            k_proj: biased(config.kv_heads),
            v_proj: biased(config.kv_heads),
            ..self
        }
    }

    /// Adds RMS norms over the heads of queries and keys.
    #[must_use]
    pub fn with_head_norms(mut self, config: &ModelConfig, device: &Device) -> Self {
        let norm = || Some(RmsNorm::new(config.head_dim, config.rms_eps, device));
        (self.q_norm, self.k_norm) = (norm(), norm());
        self
    }

    /// The rotated queries `[batch, heads, tokens, head_dim]`, the rotated keys and the values `[batch, kv_heads,
    /// tokens, head_dim]` of `x [batch, tokens, hidden]`.
    pub fn qkv(&self, x: Tensor<3>, rotation: &Rotation) -> [Tensor<4>; 3] {
        let head_dim = self.head_dim;
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj];
        let [q, k, v] = linear::forward_all(x, projections).map(|x| {
            let [batch, tokens, wide] = x.dims();
            x.reshape([batch, tokens, wide / head_dim, head_dim])
        });
        let (q, k) = match self.head_norms() {
            Some([of_q, of_k]) => (of_q.forward(q), of_k.forward(k)),
            None => (q, k),
        };
        let rotated = |x: Tensor<4>| rotation.rotate(x.swap_dims(1, 2));
        [rotated(q), rotated(k), v.swap_dims(1, 2)]
    }

    /// The output projection of the attention: `[batch, heads, tokens, head_dim]` → `[batch, tokens, hidden]`.
    pub fn output(&self, attended: Tensor<4>) -> Tensor<3> {
        let [batch, heads, tokens, dim] = attended.dims();
        let joined = attended
            .swap_dims(1, 2)
            .reshape([batch, tokens, heads * dim]);
        self.o_proj.forward(joined)
    }

    /// The norms over the heads of queries and of keys.
    pub(super) fn head_norms(&self) -> Option<[&RmsNorm; 2]> {
        Some([self.q_norm.as_ref()?, self.k_norm.as_ref()?])
    }

    /// Width of a head.
    pub(super) fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Whether a projection has a bias.
    pub(super) fn has_biases(&self) -> bool {
        [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj]
            .iter()
            .any(|linear| linear.bias.is_some())
    }

    /// The projections to queries, keys and values, and the output projection.
    pub(super) fn weights(&self) -> [&Weight; 4] {
        [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj]
            .map(|linear| linear.weight.weight())
    }

    /// Ends the loading of all projections; see [`Matrix::finish_loading`](super::Matrix::finish_loading).
    pub fn finish_loading(&mut self, loaded: &mut LoadedWeights) {
        let keys = [&mut self.k_proj, &mut self.v_proj];
        for linear in [&mut self.q_proj, &mut self.o_proj].into_iter().chain(keys) {
            linear.weight.finish_loading(loaded);
        }
    }
}
