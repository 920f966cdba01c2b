//! Published models as shapes: what benches and memory estimates need, without a file.

use super::{Family, ModelConfig, RopeScaling};

type Constructor = fn() -> ModelConfig;

/// The shapes by name.
pub const SHAPES: &[(&str, Constructor)] = &[
    ("llama-3.1-8b", ModelConfig::llama_3_1_8b),
    ("qwen3-8b", ModelConfig::qwen3_8b),
    ("smollm2-135m", ModelConfig::smollm2_135m),
];

impl ModelConfig {
    /// The shape of a published model, by its name in [`SHAPES`].
    pub fn named(name: &str) -> Option<Self> {
        let (_, shape) = SHAPES.iter().find(|(known, _)| *known == name)?;
        Some(shape())
    }

    /// Llama-3.1-8B.
    pub fn llama_3_1_8b() -> Self {
        Self {
            family: Family::Llama,
            vocab_size: 128_256,
            hidden_size: 4096,
            intermediate_size: 14_336,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            max_positions: 131_072,
            rms_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_positions: 8192,
            },
            tie_embeddings: false,
            bos_token: Some(128_000),
            eos_tokens: vec![128_001, 128_008, 128_009],
        }
    }

    /// Qwen3-8B.
    pub fn qwen3_8b() -> Self {
        Self {
            family: Family::Qwen3,
            vocab_size: 151_936,
            hidden_size: 4096,
            intermediate_size: 12_288,
            layers: 36,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            max_positions: 40_960,
            rms_eps: 1e-6,
            rope_theta: 1e6,
            rope_scaling: RopeScaling::None,
            tie_embeddings: false,
            bos_token: Some(151_643),
            eos_tokens: vec![151_645],
        }
    }

    /// SmolLM2-135M.
    pub fn smollm2_135m() -> Self {
        Self {
            family: Family::Llama,
            vocab_size: 49_152,
            hidden_size: 576,
            intermediate_size: 1536,
            layers: 30,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            max_positions: 8192,
            rms_eps: 1e-5,
            rope_theta: 100_000.0,
            rope_scaling: RopeScaling::None,
            tie_embeddings: true,
            bos_token: Some(1),
            eos_tokens: vec![2],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_their_published_sizes() {
        let counts = [
            ("llama-3.1-8b", 8_030_261_248),
            ("qwen3-8b", 8_190_735_360),
            ("smollm2-135m", 134_515_008),
        ];
        assert_eq!(counts.len(), SHAPES.len());
        for (name, parameters) in counts {
            let config = ModelConfig::named(name).unwrap();
            config.validate(name).unwrap();
            assert_eq!(config.parameters(), parameters, "{name}");
        }
        assert_eq!(ModelConfig::named("llama"), None);
    }
}
