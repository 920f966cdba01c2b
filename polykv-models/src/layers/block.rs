use super::{Attention, Mlp, RmsNorm, RopeTable};
use burn::tensor::Tensor;
use polykv_core::Result;
use polykv_core::ops::{self, NormQkv, OutputSwiglu, Weight};

/// The parts of a pre-norm transformer block, as Llama and its relatives have it:
///
/// ```text
/// h = x + attention(input_norm(x))
/// y = h + mlp(mlp_norm(h))
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// The norm before attention.
    pub input_norm: &'a RmsNorm,
    /// The projections around attention.
    pub attention: &'a Attention,
    /// The norm before the feed-forward network.
    pub mlp_norm: &'a RmsNorm,
    /// The feed-forward network.
    pub mlp: &'a Mlp,
}

impl Block<'_> {
    /// Runs the block: `[batch, tokens, hidden]` → `[batch, tokens, hidden]`. `attend` computes the attention from
    /// rotated queries `[batch, heads, tokens, head_dim]`, rotated keys and values `[batch, kv_heads, tokens,
    /// head_dim]`, and returns the shape of the queries.
    ///
    /// # Errors
    /// The errors of `attend`.
    pub fn forward(
        &self,
        x: Tensor<3>,
        rope: &RopeTable,
        attend: impl FnOnce(Tensor<4>, Tensor<4>, Tensor<4>) -> Result<Tensor<4>>,
    ) -> Result<Tensor<3>> {
        // One token on a GPU: the same, in two operators.
        if rope.is_shared() && ops::fuses_tokens(&x, &self.weights()) {
            let [q, k, v] = self.fused_qkv(x.clone(), rope);
            return Ok(self.fused_output(x, attend(q, k, v)?));
        }
        let normed = self.input_norm.forward(x.clone());
        let [q, k, v] = self.attention.qkv(normed, rope);
        let h = x + self.attention.output(attend(q, k, v)?);
        Ok(h.clone() + self.mlp.forward(self.mlp_norm.forward(h)))
    }

    /// Norm, QKV and rotary embedding as one operator.
    fn fused_qkv(&self, x: Tensor<3>, rope: &RopeTable) -> [Tensor<4>; 3] {
        let norm = self.input_norm.weight.val();
        let head_norms = self
            .attention
            .head_norms()
            .map(|norms| norms.map(|n| n.weight.val()));
        let [q, k, v, _] = self.attention.weights();
        let weights = NormQkv {
            norm: &norm,
            projections: [q, k, v],
            head_norms: head_norms.as_ref().map(|norms| norms.each_ref()),
            eps: self.input_norm.eps,
        };
        ops::norm_qkv_rope(x, weights, rope.cos.clone(), rope.sin.clone())
    }

    /// Output projection, residual, norm, SwiGLU and residual as one operator.
    fn fused_output(&self, x: Tensor<3>, attended: Tensor<4>) -> Tensor<3> {
        let norm = self.mlp_norm.weight.val();
        let [_, _, _, projection] = self.attention.weights();
        let [gate, up, down] = self.mlp.weights();
        let weights = OutputSwiglu {
            projection,
            norm: &norm,
            gate,
            up,
            down,
            eps: self.mlp_norm.eps,
        };
        ops::output_swiglu(x, attended, weights)
    }

    fn weights(&self) -> [&Weight; 7] {
        let [q, k, v, output] = self.attention.weights();
        let [gate, up, down] = self.mlp.weights();
        [q, k, v, output, gate, up, down]
    }
}
