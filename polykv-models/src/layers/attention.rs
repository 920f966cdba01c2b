use super::{Linear, RmsNorm, RopeTable};
use crate::config::ModelConfig;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use polykv_core::Result;

/// Projections and rotary embedding around attention. The attention itself, over whatever the cache kept, is the
/// caller's.
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
    head_dim: usize,
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
            head_dim,
        }
    }

    /// With norms over the heads of queries and keys.
    pub fn with_head_norms(mut self, config: &ModelConfig, device: &Device) -> Self {
        let norm = || Some(RmsNorm::new(config.head_dim, config.rms_eps, device));
        (self.q_norm, self.k_norm) = (norm(), norm());
        self
    }

    /// `[batch, tokens, hidden]` → `[batch, tokens, hidden]`; `attend` gets rotated queries, rotated keys and values,
    /// `[batch, heads, tokens, head_dim]` each.
    ///
    /// # Errors
    /// Those of `attend`.
    pub fn forward(
        &self,
        x: Tensor<3>,
        rope: &RopeTable,
        attend: impl FnOnce(Tensor<4>, Tensor<4>, Tensor<4>) -> Result<Tensor<4>>,
    ) -> Result<Tensor<3>> {
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj];
        let [q, k, v] = Linear::forward_all(projections, x).map(|x| self.heads(x));
        let q = rope.rotate(normed(&self.q_norm, q).swap_dims(1, 2));
        let k = rope.rotate(normed(&self.k_norm, k).swap_dims(1, 2));
        Ok(self.output(attend(q, k, v.swap_dims(1, 2))?))
    }

    /// The projection of what the heads attended to: `[batch, heads, tokens, head_dim]` → `[batch, tokens, hidden]`.
    pub fn output(&self, attended: Tensor<4>) -> Tensor<3> {
        let [batch, heads, tokens, head_dim] = attended.dims();
        let joined = attended
            .swap_dims(1, 2)
            .reshape([batch, tokens, heads * head_dim]);
        self.o_proj.forward(joined)
    }

    /// `[batch, tokens, heads * head_dim]` → `[batch, tokens, heads, head_dim]`
    fn heads(&self, x: Tensor<3>) -> Tensor<4> {
        let [batch, tokens, width] = x.dims();
        x.reshape([batch, tokens, width / self.head_dim, self.head_dim])
    }
}

fn normed(norm: &Option<RmsNorm>, heads: Tensor<4>) -> Tensor<4> {
    match norm {
        Some(norm) => norm.forward(heads),
        None => heads,
    }
}
