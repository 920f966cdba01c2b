//! The shape of a model, read from a checkpoint's config.json and checked before anything is allocated.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

use polykv_core::{Error, Result};

mod checks;
mod fields;
mod hf;
mod rope;
mod shapes;

pub(crate) use hf::generation_end_tokens;
pub use rope::RopeScaling;
pub use shapes::SHAPES;

use checks::{MAX_POSITIONS, check_positive, check_size, check_tokens};

const MAX_PARAMETERS: u64 = 1 << 41;

/// The architectures that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// Llama 3.x, SmolLM2 and others of the same architecture.
    Llama,
    /// Qwen3: Llama with an RMS norm over each head of the queries and keys.
    Qwen3,
}

impl Family {
    /// Lower-case name, as used in fingerprints.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen3 => "qwen3",
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
    /// Width of the SwiGLU feed-forward network.
    pub intermediate_size: usize,
    /// The number of transformer blocks.
    pub layers: usize,
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
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are scaled for longer contexts.
    pub rope_scaling: RopeScaling,
    /// True when the output layer reuses the embedding table.
    pub tie_embeddings: bool,
    /// The token that starts a text, if the model has one.
    pub bos_token: Option<u32>,
    /// Tokens that end a generation; may be empty.
    pub eos_tokens: Vec<u32>,
}

impl ModelConfig {
    /// Reads a Hugging Face config.json, with `rope_theta` and `rope_scaling` or the newer `rope_parameters`.
    /// `place` names the file in errors.
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
            ("num_hidden_layers", self.layers, 1024),
            ("num_attention_heads", self.heads, 1024),
            ("num_key_value_heads", self.kv_heads, self.heads),
            ("head_dim", self.head_dim, 1024),
            ("max_position_embeddings", self.max_positions, MAX_POSITIONS),
        ];
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
        check_positive(place, "rope_theta", self.rope_theta, 1e12)?;
        self.rope_scaling.validate(place, self.rope_theta)?;
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
        let hidden = self.hidden_size;
        let attention = mul(hidden, self.head_dim)
            .saturating_mul((self.heads as u64).saturating_add(self.kv_heads as u64))
            .saturating_mul(2);
        let head_norms = match self.family {
            Family::Llama => 0,
            Family::Qwen3 => mul(self.head_dim, 2),
        };
        let feed_forward = mul(hidden, self.intermediate_size).saturating_mul(3);
        let layer = attention
            .saturating_add(head_norms)
            .saturating_add(feed_forward)
            .saturating_add(mul(hidden, 2));
        let tables = if self.tie_embeddings { 1 } else { 2 };
        mul(self.vocab_size, hidden)
            .saturating_mul(tables)
            .saturating_add(layer.saturating_mul(self.layers as u64))
            .saturating_add(hidden as u64)
    }

    /// A short name of the shape, by which a plan file recognises its model: `llama-30x9q3kv64d-576h-49152v`.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        format!(
            "{}-{}x{}q{}kv{}d-{}h-{}v",
            self.family.name(),
            self.layers,
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
mod tests {
    use super::*;

    impl ModelConfig {
        pub(crate) fn example() -> Self {
            Self::smollm2_135m()
        }
    }

    #[test]
    fn counts_and_fingerprint() {
        let config = ModelConfig::example();
        config.validate("test").unwrap();
        assert_eq!(config.parameters(), 134_515_008);
        assert_eq!(config.fingerprint(), "llama-30x9q3kv64d-576h-49152v");
        let untied = ModelConfig {
            tie_embeddings: false,
            ..config
        };
        assert_eq!(untied.parameters(), 134_515_008 + 49152 * 576);
        let qwen3 = ModelConfig {
            family: Family::Qwen3,
            ..ModelConfig::example()
        };
        assert_eq!(qwen3.parameters(), 134_515_008 + 30 * 2 * 64);
        assert_eq!(qwen3.fingerprint(), "qwen3-30x9q3kv64d-576h-49152v");
    }

    #[test]
    fn every_field_is_checked() {
        type Change = fn(&mut ModelConfig);
        let changes: [(&str, Change); 23] = [
            ("vocab_size", |c| c.vocab_size = 0),
            ("vocab_size", |c| c.vocab_size = usize::MAX),
            ("hidden_size", |c| c.hidden_size = 0),
            ("intermediate_size", |c| c.intermediate_size = usize::MAX),
            ("num_hidden_layers", |c| c.layers = 1025),
            ("num_attention_heads", |c| c.heads = 0),
            ("num_key_value_heads", |c| c.kv_heads = 0),
            ("num_key_value_heads", |c| c.kv_heads = 2),
            ("num_key_value_heads", |c| c.kv_heads = 18),
            ("head_dim", |c| c.head_dim = 63),
            ("head_dim", |c| c.head_dim = 2048),
            ("max_position_embeddings", |c| c.max_positions = 0),
            ("rms_norm_eps", |c| c.rms_eps = f64::NAN),
            ("rms_norm_eps", |c| c.rms_eps = 0.0),
            ("rope_theta", |c| c.rope_theta = f64::INFINITY),
            ("rope_theta", |c| c.rope_theta = -1.0),
            ("factor", |c| {
                c.rope_scaling = RopeScaling::Linear { factor: 0.0 }
            }),
            ("high_freq_factor", |c| {
                c.rope_scaling = RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 4.0,
                    high_freq_factor: 4.0,
                    original_max_positions: 8192,
                }
            }),
            ("beta_fast", |c| {
                c.rope_scaling = RopeScaling::Yarn {
                    factor: 4.0,
                    original_max_positions: 4096,
                    beta_fast: 1.0,
                    beta_slow: 1.0,
                    attention_factor: 1.0,
                    truncate: true,
                }
            }),
            ("attention_factor", |c| {
                c.rope_scaling = RopeScaling::Yarn {
                    factor: 4.0,
                    original_max_positions: 4096,
                    beta_fast: 32.0,
                    beta_slow: 1.0,
                    attention_factor: f64::NAN,
                    truncate: true,
                }
            }),
            ("rope_theta", |c| {
                c.rope_theta = 1.0;
                c.rope_scaling = RopeScaling::yarn(4.0, 4096);
            }),
            ("eos_token_id", |c| c.eos_tokens = vec![49152]),
            ("parameters", |c| {
                (c.layers, c.intermediate_size, c.hidden_size) = (1024, 1 << 22, 1 << 20)
            }),
        ];
        for (field, change) in changes {
            let mut config = ModelConfig::example();
            change(&mut config);
            let message = config.validate("config.json").unwrap_err().to_string();
            assert!(
                message.starts_with("config.json: ") && message.contains(field),
                "{message}"
            );
        }
        // Saturates instead of overflowing.
        let mut huge = ModelConfig::example();
        huge.hidden_size = usize::MAX;
        assert_eq!(huge.parameters(), u64::MAX);
    }
}
