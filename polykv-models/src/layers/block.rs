use super::{Activation, Attention, Mlp, RmsNorm, Rotation, SparseMlp};
use burn::tensor::Tensor;
use polykv_core::Result;
use polykv_core::ops::{self, NormQkv, OutputSwiglu, Weight};

/// The parts of a pre-norm transformer block:
///
/// ```text
/// h = x + attention(input_norm(x))
/// y = h + feed_forward(feed_forward_norm(h))
/// ```
///
/// Some families put a norm after attention and feed-forward network too, before the results are added.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// The norm before attention.
    pub input_norm: &'a RmsNorm,
    /// The projections around attention.
    pub attention: &'a Attention,
    /// The norm after attention.
    pub attention_post_norm: Option<&'a RmsNorm>,
    /// The norm before the feed-forward network.
    pub feed_forward_norm: &'a RmsNorm,
    /// The feed-forward network.
    pub feed_forward: FeedForward<'a>,
    /// The norm after the feed-forward network.
    pub feed_forward_post_norm: Option<&'a RmsNorm>,
}

/// The feed-forward network of a block.
#[derive(Clone, Copy, Debug)]
pub enum FeedForward<'a> {
    /// One network for all tokens.
    Dense(&'a Mlp),
    /// A mixture of experts.
    Sparse(&'a SparseMlp),
}

/// The weights of a block that two operators can run for a token.
struct Fused<'a> {
    qkv: [&'a Weight; 3],
    output: &'a Weight,
    mlp: [&'a Weight; 3],
    table: [&'a Tensor<4>; 2],
}

impl FeedForward<'_> {
    fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        match self {
            Self::Dense(mlp) => Ok(mlp.forward(x)),
            Self::Sparse(experts) => experts.forward(x),
        }
    }
}

impl<'a> Block<'a> {
    /// Llama's block, with one network and without norms after attention and network.
    pub fn pre_norm(
        input_norm: &'a RmsNorm,
        attention: &'a Attention,
        feed_forward_norm: &'a RmsNorm,
        mlp: &'a Mlp,
    ) -> Self {
        Self {
            input_norm,
            attention,
            attention_post_norm: None,
            feed_forward_norm,
            feed_forward: FeedForward::Dense(mlp),
            feed_forward_post_norm: None,
        }
    }

    /// Runs the block: `[batch, tokens, hidden]` → `[batch, tokens, hidden]`. `attend` computes the attention from
    /// rotated queries `[batch, heads, tokens, head_dim]`, rotated keys and values `[batch, kv_heads, tokens,
    /// head_dim]`, and returns the shape of the queries.
    ///
    /// # Errors
    /// The errors of `attend`; a device that cannot be read.
    pub fn forward(
        &self,
        x: Tensor<3>,
        rotation: &Rotation,
        attend: impl FnOnce(Tensor<4>, Tensor<4>, Tensor<4>) -> Result<Tensor<4>>,
    ) -> Result<Tensor<3>> {
        // One token: the same, in two operators.
        if let Some(fused) = self.fused(&x, rotation) {
            let [q, k, v] = self.fused_qkv(x.clone(), &fused);
            return Ok(self.fused_output(x, attend(q, k, v)?, &fused));
        }
        let after = |norm: Option<&RmsNorm>, x| match norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        let normed = self.input_norm.forward(x.clone());
        let [q, k, v] = self.attention.qkv(normed, rotation);
        let attended = self.attention.output(attend(q, k, v)?);
        let h = x + after(self.attention_post_norm, attended);
        let normed = self.feed_forward_norm.forward(h.clone());
        let output = self.feed_forward.forward(normed)?;
        Ok(h + after(self.feed_forward_post_norm, output))
    }

    /// The weights for the fused operators, which know Llama's block only, with or without norms over heads.
    fn fused<'b>(&'b self, x: &Tensor<3>, rotation: &'b Rotation) -> Option<Fused<'b>> {
        let FeedForward::Dense(mlp) = self.feed_forward else {
            return None;
        };
        let post_norms = self.attention_post_norm.or(self.feed_forward_post_norm);
        if post_norms.is_some()
            || self.attention.has_biases()
            || mlp.activation() != Activation::Silu
        {
            return None;
        }
        let [q, k, v, output] = self.attention.weights();
        let mlp = mlp.weights();
        let [gate, up, down] = mlp;
        let table = rotation.of_whole_heads(self.attention.head_dim())?;
        ops::fuses_tokens(x, &[q, k, v, output, gate, up, down]).then_some(Fused {
            qkv: [q, k, v],
            output,
            mlp,
            table,
        })
    }

    /// Norm, QKV and rotary embedding as one operator.
    fn fused_qkv(&self, x: Tensor<3>, fused: &Fused<'_>) -> [Tensor<4>; 3] {
        let norm = self.input_norm.weight.val();
        let head_norms = self
            .attention
            .head_norms()
            .map(|norms| norms.map(|n| n.weight.val()));
        let weights = NormQkv {
            norm: &norm,
            projections: fused.qkv,
            head_norms: head_norms.as_ref().map(|norms| norms.each_ref()),
            eps: self.input_norm.eps,
        };
        let [cos, sin] = fused.table.map(Clone::clone);
        ops::norm_qkv_rope(x, weights, cos, sin)
    }

    /// Output projection, residual, norm, SwiGLU and residual as one operator.
    fn fused_output(&self, x: Tensor<3>, attended: Tensor<4>, fused: &Fused<'_>) -> Tensor<3> {
        let norm = self.feed_forward_norm.weight.val();
        let [gate, up, down] = fused.mlp;
        let weights = OutputSwiglu {
            projection: fused.output,
            norm: &norm,
            gate,
            up,
            down,
            eps: self.feed_forward_norm.eps,
        };
        ops::output_swiglu(x, attended, weights)
    }
}
