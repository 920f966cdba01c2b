//! The shape of a model, read from a checkpoint's config.json and checked before anything is allocated.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

use polykv_core::{Error, Result};

mod checks;
mod fields;
mod hf;
mod layer;
mod rope;
mod shapes;

pub(crate) use checks::check_layers;
pub(crate) use hf::generation_end_tokens;
pub use layer::{Experts, LayerConfig};
pub use rope::{RopeConfig, RopeScaling};
pub use shapes::SHAPES;

use checks::{MAX_POSITIONS, check_positive, check_size, check_tokens};

const MAX_PARAMETERS: u64 = 1 << 41;

/// The architectures that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// Llama 3.x, SmolLM2, Mistral and others of the same architecture.
    Llama,
    /// Qwen2 and Qwen2.5: Llama with biases at queries, keys and values.
    Qwen2,
    /// Qwen3: Llama with an RMS norm over each head of the queries and keys.
    Qwen3,
    /// Qwen3-MoE: Qwen3 with a mixture of experts (MoE) as feed-forward network.
    Qwen3Moe,
    /// Gemma 2: norms after attention and feed-forward network too, GeGLU, soft-caps, every other layer with a window.
    Gemma2,
    /// Gemma 3, text: Gemma 2 with norms over heads in place of soft-caps, and a rotary embedding of its own in layers
    /// with a window.
    Gemma3,
    /// Phi-3 and Phi-4: Llama whose checkpoints hold several projections in one tensor, and rotate part of a head.
    Phi3,
    /// SmolLM3: Llama with layers that have no rotary embedding.
    SmolLm3,
}

impl Family {
    /// Lower-case name, as used in fingerprints. It is llama.cpp's name of the architecture too.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Qwen3Moe => "qwen3moe",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
            Self::Phi3 => "phi3",
            Self::SmolLm3 => "smollm3",
        }
    }

    /// All of them.
    pub(crate) const ALL: [Self; 8] = [
        Self::Llama,
        Self::Qwen2,
        Self::Qwen3,
        Self::Qwen3Moe,
        Self::Gemma2,
        Self::Gemma3,
        Self::Phi3,
        Self::SmolLm3,
    ];

    /// The weights of one layer beside those of its projections, its feed-forward network and two norms, as sizes that are
    /// added: biases, norms over heads, norms after attention and feed-forward network.
    fn extra_weights(self, config: &ModelConfig) -> Vec<usize> {
        let ModelConfig {
            hidden_size,
            heads,
            kv_heads,
            head_dim,
            ..
        } = *config;
        match self {
            Self::Llama | Self::Phi3 | Self::SmolLm3 => vec![],
            Self::Qwen2 => [heads, kv_heads, kv_heads]
                .map(|heads| heads.saturating_mul(head_dim))
                .into(),
            Self::Qwen3 | Self::Qwen3Moe => vec![head_dim; 2],
            Self::Gemma2 => vec![hidden_size; 2],
            Self::Gemma3 => vec![head_dim, head_dim, hidden_size, hidden_size],
        }
    }
}

/// The shape of a decoder-only model: everything that the shapes of its weights and its arithmetic depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The architecture.
    pub family: Family,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward network.
    pub intermediate_size: usize,
    /// What each transformer block is like, from the first to the last.
    pub layers: Vec<LayerConfig>,
    /// The experts of layers that have some.
    pub experts: Option<Experts>,
    /// Query heads per layer.
    pub heads: usize,
    /// Key and value heads per layer (grouped-query attention, GQA); a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of a head; even, because the rotary embedding turns pairs of elements.
    pub head_dim: usize,
    /// The longest context, in tokens.
    pub max_positions: usize,
    /// Epsilon of the RMS norms, added to the mean square.
    pub rms_eps: f64,
    /// The factor of the products of queries and keys before the softmax; `None` means 1/√head_dim.
    pub attention_scale: Option<f64>,
    /// The soft-cap `c` of attention logits: the softmax takes `c · tanh(logit / c)`; `None` in most models.
    pub attention_softcap: Option<f64>,
    /// The soft-cap of the logits of the next token; `None` in most models.
    pub logit_softcap: Option<f64>,
    /// True when the output layer reuses the embedding table.
    pub tie_embeddings: bool,
    /// The token that starts a text, if the model has one.
    pub bos_token: Option<u32>,
    /// Tokens that end a generation; may be empty.
    pub eos_tokens: Vec<u32>,
}

impl ModelConfig {
    /// Reads a Hugging Face config.json, as transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`) writes
    /// it. `place` names the file in errors.
    ///
    /// # Errors
    /// Malformed JSON, values out of range (see [`Self::validate`]), and architectures or options that this crate does
    /// not implement.
    pub fn from_hf_json(place: &str, text: &str) -> Result<Self> {
        let config = hf::read(place, text)?;
        config.validate(place)?;
        Ok(config)
    }

    /// Checks every field and the products that sizes are computed from; `place` names the source in errors.
    ///
    /// # Errors
    /// The first field that is out of range, with the value found and the values allowed.
    pub fn validate(&self, place: &str) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("num_attention_heads", self.heads, 1024),
            ("num_key_value_heads", self.kv_heads, self.heads),
            ("head_dim", self.head_dim, 1024),
            ("max_position_embeddings", self.max_positions, MAX_POSITIONS),
        ];
        check_layers(place, self.layers.len())?;
        for (field, found, most) in sizes {
            check_size(place, field, found, most)?;
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let allowed = format!("a divisor of num_attention_heads, {}", self.heads);
            return Err(Error::invalid(
                place,
                "num_key_value_heads",
                self.kv_heads,
                allowed,
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::invalid(
                place,
                "head_dim",
                self.head_dim,
                "an even number",
            ));
        }
        check_positive(place, "rms_norm_eps", self.rms_eps, 1.0)?;
        for (field, number) in [
            ("attention scale", self.attention_scale),
            ("attn_logit_softcapping", self.attention_softcap),
            ("final_logit_softcapping", self.logit_softcap),
        ] {
            number.map_or(Ok(()), |number| check_positive(place, field, number, 1e6))?;
        }
        self.layers
            .iter()
            .try_for_each(|layer| layer.validate(place, self))?;
        self.experts
            .iter()
            .try_for_each(|experts| experts.validate(place))?;
        check_tokens(place, self.bos_token.as_slice(), self.vocab_size)?;
        check_tokens(place, &self.eos_tokens, self.vocab_size)?;
        // The bounds above keep this count far below 2^64, so the comparison is exact.
        if self.parameters() > MAX_PARAMETERS {
            let allowed = format!("up to {MAX_PARAMETERS}");
            return Err(Error::invalid(
                place,
                "number of parameters",
                self.parameters(),
                allowed,
            ));
        }
        Ok(())
    }

    /// Number of weights; a tied output layer counts once. Saturates on a config that was not validated.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let mul = |a: usize, b: usize| (a as u64).saturating_mul(b as u64);
        let add = |a: u64, b: u64| a.saturating_add(b);
        let hidden = self.hidden_size;
        let heads = (self.heads as u64).saturating_add(self.kv_heads as u64);
        let attention = mul(hidden, self.head_dim)
            .saturating_mul(heads)
            .saturating_mul(2);
        let extra = self.family.extra_weights(self);
        let extra = extra.into_iter().map(|size| size as u64).fold(0, add);
        let network = |width: usize| mul(hidden, width).saturating_mul(3);
        let sparse = self.experts.as_ref().map_or(0, |experts| {
            let each = network(experts.intermediate_size).saturating_add(hidden as u64);
            each.saturating_mul(experts.count as u64)
        });
        let layer = |layer: &LayerConfig| {
            let feed_forward = match layer.sparse {
                true => sparse,
                false => network(self.intermediate_size),
            };
            [attention, extra, feed_forward, mul(hidden, 2)]
                .into_iter()
                .fold(0, add)
        };
        let tables = if self.tie_embeddings { 1 } else { 2 };
        let tables = mul(self.vocab_size, hidden).saturating_mul(tables);
        self.layers
            .iter()
            .map(layer)
            .fold(add(tables, hidden as u64), add)
    }

    /// Number of weights that one token goes through: all but the experts that it does not choose.
    #[must_use]
    pub fn active_parameters(&self) -> u64 {
        let idle = self.experts.as_ref().map_or(0, |experts| {
            let each = (self.hidden_size as u64).saturating_mul(experts.intermediate_size as u64);
            let idle = experts.count.saturating_sub(experts.used) as u64;
            each.saturating_mul(3).saturating_mul(idle)
        });
        let sparse = self.layers.iter().filter(|layer| layer.sparse).count();
        self.parameters()
            .saturating_sub(idle.saturating_mul(sparse as u64))
    }

    /// How many tokens a query of each layer attends to, itself included; `None` where that is all of them.
    #[must_use]
    pub fn windows(&self) -> Vec<Option<usize>> {
        self.layers.iter().map(|layer| layer.window).collect()
    }

    /// A short name of the shape, by which a plan file recognises its model: `llama-30x9q3kv64d-576h-49152v`.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        format!(
            "{}-{}x{}q{}kv{}d-{}h-{}v",
            self.family.name(),
            self.layers.len(),
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.hidden_size,
            self.vocab_size
        )
    }
}

/// Each of the ids once, in the order of their first mention.
pub(crate) fn once_each(ids: Vec<u32>) -> Vec<u32> {
    let mut unique = Vec::new();
    for id in ids {
        if !unique.contains(&id) {
            unique.push(id);
        }
    }
    unique
}

#[cfg(test)]
mod tests;
