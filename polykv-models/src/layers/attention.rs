use super::{Linear, RmsNorm};
use crate::config::ModelConfig;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use polykv_core::ops::{self, BeforeAttention};

/// Projections around attention. The attention itself, over whatever the cache kept, is the caller's.
#[derive(Module, Debug)]
pub struct Attention {
    pub q_proj: Linear,
    pub k_proj: Linear,
    pub v_proj: Linear,
    pub o_proj: Linear,
    /// Over each head of the queries, before they are rotated; absent in most families.
    pub q_norm: Option<RmsNorm>,
    /// The same for the keys.
    pub k_norm: Option<RmsNorm>,
}

impl Attention {
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
        }
    }

    /// With norms over the heads of queries and keys.
    pub fn with_head_norms(mut self, config: &ModelConfig, device: &Device) -> Self {
        let norm = || Some(RmsNorm::new(config.head_dim, config.rms_eps, device));
        (self.q_norm, self.k_norm) = (norm(), norm());
        self
    }

    /// With the norm before it, as operators take them.
    pub fn weights(&self, norm: &RmsNorm) -> BeforeAttention {
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj];
        let head_norms = match (&self.q_norm, &self.k_norm) {
            (Some(q), Some(k)) => Some([q, k].map(|norm| norm.weight.val())),
            _ => None,
        };
        BeforeAttention {
            norm: norm.weight.val(),
            projections: projections.map(|linear| linear.weight.val()),
            head_norms,
            eps: norm.eps,
        }
    }

    /// The projection of what the heads attended to: `[batch, heads, tokens, head_dim]` → `[batch, tokens, hidden]`.
    pub fn output(&self, attended: Tensor<4>) -> Tensor<3> {
        ops::project(attended, self.o_proj.weight.val())
    }
}
