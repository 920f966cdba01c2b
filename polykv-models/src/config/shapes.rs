//! Published models as shapes: what benches and memory estimates need, without a file.

use super::{Experts, Family, LayerConfig, ModelConfig, RopeConfig, RopeScaling};

type Constructor = fn() -> ModelConfig;

/// The shapes by name.
pub const SHAPES: &[(&str, Constructor)] = &[
    ("gemma-2-2b", ModelConfig::gemma_2_2b),
    ("gemma-3-270m", ModelConfig::gemma_3_270m),
    ("llama-3.1-8b", ModelConfig::llama_3_1_8b),
    ("llama-3.2-1b", ModelConfig::llama_3_2_1b),
    ("mistral-7b-v0.1", ModelConfig::mistral_7b),
    ("qwen2.5-0.5b", ModelConfig::qwen2_5_0_5b),
    ("qwen3-30b-a3b", ModelConfig::qwen3_30b_a3b),
    ("qwen3-8b", ModelConfig::qwen3_8b),
    ("smollm2-135m", ModelConfig::smollm2_135m),
    ("smollm3-3b", ModelConfig::smollm3_3b),
];

/// Llama 3's scaling of contexts beyond 8,192 tokens.
fn llama3(factor: f64) -> RopeConfig {
    RopeConfig {
        scaling: RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        },
        ..RopeConfig::new(500_000.0, 128)
    }
}

impl ModelConfig {
    /// The shape of a published model, by its name in [`SHAPES`].
    pub fn named(name: &str) -> Option<Self> {
        let (_, shape) = SHAPES.iter().find(|(known, _)| *known == name)?;
        Some(shape())
    }

    /// Gemma 2 2B.
    pub fn gemma_2_2b() -> Self {
        let layer = |layer: usize| LayerConfig {
            window: layer.is_multiple_of(2).then_some(4096),
            ..LayerConfig::plain(1e4, 256)
        };
        Self {
            family: Family::Gemma2,
            vocab_size: 256_000,
            hidden_size: 2304,
            intermediate_size: 9216,
            layers: (0..26).map(layer).collect(),
            experts: None,
            heads: 8,
            kv_heads: 4,
            head_dim: 256,
            max_positions: 8192,
            rms_eps: 1e-6,
            attention_scale: None,
            attention_softcap: Some(50.0),
            logit_softcap: Some(30.0),
            tie_embeddings: true,
            bos_token: Some(2),
            eos_tokens: vec![1],
        }
    }

    /// Gemma 3 270M.
    pub fn gemma_3_270m() -> Self {
        let layer = |layer: usize| match layer.saturating_add(1).is_multiple_of(6) {
            true => LayerConfig::plain(1e6, 256),
            false => LayerConfig {
                window: Some(512),
                ..LayerConfig::plain(1e4, 256)
            },
        };
        Self {
            family: Family::Gemma3,
            vocab_size: 262_144,
            hidden_size: 640,
            intermediate_size: 2048,
            layers: (0..18).map(layer).collect(),
            experts: None,
            heads: 4,
            kv_heads: 1,
            head_dim: 256,
            max_positions: 32_768,
            rms_eps: 1e-6,
            attention_scale: None,
            attention_softcap: None,
            logit_softcap: None,
            tie_embeddings: true,
            bos_token: Some(2),
            eos_tokens: vec![1],
        }
    }

    /// Llama-3.1-8B.
    pub fn llama_3_1_8b() -> Self {
        let layer = LayerConfig {
            rope: Some(llama3(8.0)),
            ..LayerConfig::plain(500_000.0, 128)
        };
        Self {
            family: Family::Llama,
            vocab_size: 128_256,
            hidden_size: 4096,
            intermediate_size: 14_336,
            layers: vec![layer; 32],
            experts: None,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            max_positions: 131_072,
            rms_eps: 1e-5,
            attention_scale: None,
            attention_softcap: None,
            logit_softcap: None,
            tie_embeddings: false,
            bos_token: Some(128_000),
            eos_tokens: vec![128_001, 128_008, 128_009],
        }
    }

    /// Llama-3.2-1B.
    pub fn llama_3_2_1b() -> Self {
        let layer = LayerConfig {
            rope: Some(RopeConfig {
                rotated: 64,
                ..llama3(32.0)
            }),
            ..LayerConfig::plain(500_000.0, 64)
        };
        Self {
            hidden_size: 2048,
            intermediate_size: 8192,
            layers: vec![layer; 16],
            head_dim: 64,
            tie_embeddings: true,
            ..Self::llama_3_1_8b()
        }
    }

    /// Mistral-7B v0.1, the version with a window.
    pub fn mistral_7b() -> Self {
        let layer = LayerConfig {
            window: Some(4096),
            ..LayerConfig::plain(1e4, 128)
        };
        Self {
            vocab_size: 32_000,
            layers: vec![layer; 32],
            max_positions: 32_768,
            bos_token: Some(1),
            eos_tokens: vec![2],
            ..Self::llama_3_1_8b()
        }
    }

    /// Qwen2.5-0.5B.
    pub fn qwen2_5_0_5b() -> Self {
        Self {
            family: Family::Qwen2,
            vocab_size: 151_936,
            hidden_size: 896,
            intermediate_size: 4864,
            layers: vec![LayerConfig::plain(1e6, 64); 24],
            experts: None,
            heads: 14,
            kv_heads: 2,
            head_dim: 64,
            max_positions: 32_768,
            rms_eps: 1e-6,
            attention_scale: None,
            attention_softcap: None,
            logit_softcap: None,
            tie_embeddings: true,
            bos_token: Some(151_643),
            eos_tokens: vec![151_643],
        }
    }

    /// Qwen3-30B-A3B: 128 experts, of which a token takes 8.
    pub fn qwen3_30b_a3b() -> Self {
        let layer = LayerConfig {
            sparse: true,
            ..LayerConfig::plain(1e6, 128)
        };
        Self {
            family: Family::Qwen3Moe,
            hidden_size: 2048,
            intermediate_size: 6144,
            layers: vec![layer; 48],
            experts: Some(Experts {
                count: 128,
                used: 8,
                intermediate_size: 768,
                normalize: true,
            }),
            kv_heads: 4,
            ..Self::qwen3_8b()
        }
    }

    /// Qwen3-8B.
    pub fn qwen3_8b() -> Self {
        Self {
            family: Family::Qwen3,
            vocab_size: 151_936,
            hidden_size: 4096,
            intermediate_size: 12_288,
            layers: vec![LayerConfig::plain(1e6, 128); 36],
            experts: None,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            max_positions: 40_960,
            rms_eps: 1e-6,
            attention_scale: None,
            attention_softcap: None,
            logit_softcap: None,
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
            layers: vec![LayerConfig::plain(100_000.0, 64); 30],
            experts: None,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            max_positions: 8192,
            rms_eps: 1e-5,
            attention_scale: None,
            attention_softcap: None,
            logit_softcap: None,
            tie_embeddings: true,
            bos_token: Some(1),
            eos_tokens: vec![2],
        }
    }

    /// SmolLM3-3B, whose every fourth layer has no rotary embedding.
    pub fn smollm3_3b() -> Self {
        let plain = LayerConfig::plain(5e6, 128);
        let layer = |layer: usize| LayerConfig {
            rope: plain
                .rope
                .clone()
                .filter(|_| !layer.saturating_add(1).is_multiple_of(4)),
            ..plain.clone()
        };
        Self {
            family: Family::SmolLm3,
            vocab_size: 128_256,
            hidden_size: 2048,
            intermediate_size: 11_008,
            layers: (0..36).map(layer).collect(),
            experts: None,
            heads: 16,
            kv_heads: 4,
            head_dim: 128,
            max_positions: 65_536,
            rms_eps: 1e-6,
            attention_scale: None,
            attention_softcap: None,
            logit_softcap: None,
            tie_embeddings: true,
            bos_token: Some(128_000),
            eos_tokens: vec![128_012],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_their_published_sizes() {
        let counts = [
            ("gemma-2-2b", 2_614_341_888),
            ("gemma-3-270m", 268_098_176),
            ("llama-3.1-8b", 8_030_261_248),
            ("llama-3.2-1b", 1_235_814_400),
            ("mistral-7b-v0.1", 7_241_732_096),
            ("qwen2.5-0.5b", 494_032_768),
            ("qwen3-30b-a3b", 30_532_122_624),
            ("qwen3-8b", 8_190_735_360),
            ("smollm2-135m", 134_515_008),
            ("smollm3-3b", 3_075_098_624),
        ];
        assert_eq!(counts.len(), SHAPES.len());
        for (name, parameters) in counts {
            let config = ModelConfig::named(name).unwrap();
            config.validate(name).unwrap();
            assert_eq!(config.parameters(), parameters, "{name}");
        }
        assert_eq!(ModelConfig::named("llama"), None);
        // The published 3.3 billion.
        let active = ModelConfig::qwen3_30b_a3b().active_parameters();
        assert_eq!(active, 3_353_032_704);
    }
}
