use super::*;

impl ModelConfig {
    pub(crate) fn example() -> Self {
        Self::smollm2_135m()
    }

    /// The rotary embedding of the first layer.
    pub(crate) fn rope(&self) -> &RopeConfig {
        self.layers[0].rope.as_ref().unwrap()
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
    fn rope(config: &mut ModelConfig) -> &mut RopeConfig {
        config.layers[1].rope.as_mut().unwrap()
    }
    let changes: [(&str, Change); 33] = [
        ("vocab_size", |c| c.vocab_size = 0),
        ("vocab_size", |c| c.vocab_size = usize::MAX),
        ("hidden_size", |c| c.hidden_size = 0),
        ("intermediate_size", |c| c.intermediate_size = usize::MAX),
        ("num_hidden_layers", |c| c.layers.clear()),
        ("num_hidden_layers", |c| {
            c.layers.resize(1025, c.layers[0].clone());
        }),
        ("num_attention_heads", |c| c.heads = 0),
        ("num_key_value_heads", |c| c.kv_heads = 0),
        ("num_key_value_heads", |c| c.kv_heads = 2),
        ("num_key_value_heads", |c| c.kv_heads = 18),
        ("head_dim", |c| c.head_dim = 63),
        ("head_dim", |c| c.head_dim = 2048),
        ("max_position_embeddings", |c| c.max_positions = 0),
        ("rms_norm_eps", |c| c.rms_eps = f64::NAN),
        ("rms_norm_eps", |c| c.rms_eps = 0.0),
        ("rope_theta", |c| rope(c).theta = f64::INFINITY),
        ("rope_theta", |c| rope(c).theta = -1.0),
        ("rotated elements", |c| rope(c).rotated = 0),
        ("rotated elements", |c| rope(c).rotated = 33),
        ("rotated elements", |c| rope(c).rotated = 66),
        ("sliding_window", |c| c.layers[2].window = Some(0)),
        ("attention scale", |c| c.attention_scale = Some(0.0)),
        ("attn_logit_softcapping", |c| {
            c.attention_softcap = Some(f64::NAN)
        }),
        ("num_experts", |c| c.layers[0].sparse = true),
        ("num_experts_per_tok", |c| {
            c.experts = Some(Experts {
                count: 4,
                used: 5,
                intermediate_size: 8,
                normalize: true,
            })
        }),
        ("factor", |c| {
            rope(c).scaling = RopeScaling::Linear { factor: 0.0 }
        }),
        ("high_freq_factor", |c| {
            rope(c).scaling = RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 4.0,
                high_freq_factor: 4.0,
                original_max_positions: 8192,
            }
        }),
        ("beta_fast", |c| {
            rope(c).scaling = RopeScaling::Yarn {
                factor: 4.0,
                original_max_positions: 4096,
                beta_fast: 1.0,
                beta_slow: 1.0,
                attention_factor: 1.0,
                truncate: true,
            }
        }),
        ("attention_factor", |c| {
            rope(c).scaling = RopeScaling::Yarn {
                factor: 4.0,
                original_max_positions: 4096,
                beta_fast: 32.0,
                beta_slow: 1.0,
                attention_factor: f64::NAN,
                truncate: true,
            }
        }),
        ("rope factors", |c| {
            rope(c).scaling = RopeScaling::LongRope {
                divisors: vec![1.0; 31],
                attention_factor: 1.0,
            }
        }),
        ("rope_theta", |c| {
            rope(c).theta = 1.0;
            rope(c).scaling = RopeScaling::yarn(4.0, 4096);
        }),
        ("eos_token_id", |c| c.eos_tokens = vec![49152]),
        ("parameters", |c| {
            c.layers.resize(1024, c.layers[0].clone());
            (c.intermediate_size, c.hidden_size) = (1 << 22, 1 << 20)
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
