use super::super::{LayerConfig, RopeConfig, RopeScaling};
use super::*;
use serde_json::Map;

const CLASSIC: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": false,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576,
    "intermediate_size": 1536, "max_position_embeddings": 8192, "mlp_bias": false,
    "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 100000,
    "tie_word_embeddings": true, "vocab_size": 49152 }"#;

fn with(changes: &[(&str, &str)]) -> Result<ModelConfig> {
    let mut json: Map<String, Value> = serde_json::from_str(CLASSIC).unwrap();
    for (key, value) in changes {
        if value.is_empty() {
            json.remove(*key);
        } else {
            json.insert((*key).into(), serde_json::from_str(value).unwrap());
        }
    }
    ModelConfig::from_hf_json("config.json", &serde_json::to_string(&json).unwrap())
}

#[test]
fn classic_and_new_form_agree() {
    let classic = with(&[]).unwrap();
    assert_eq!((classic.head_dim, classic.kv_heads), (64, 3));
    assert_eq!(classic.eos_tokens, [2]);
    assert_eq!(classic.layers, vec![LayerConfig::plain(100_000.0, 64); 30]);
    let theta = r#"{"rope_type": "default", "rope_theta": 100000.0}"#;
    let new = with(&[("rope_theta", ""), ("rope_parameters", theta)]).unwrap();
    assert_eq!(classic, new);
}

#[test]
fn scaling_defaults_and_lists() {
    let llama3 = r#"{"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"}"#;
    let config = with(&[
        ("rope_scaling", llama3),
        ("eos_token_id", "[3, 4]"),
        ("num_key_value_heads", ""),
        ("head_dim", "32"),
        ("rope_theta", ""),
    ])
    .unwrap();
    let expected = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    };
    assert_eq!(config.rope().scaling, expected);
    assert_eq!(config.eos_tokens, [3, 4]);
    assert_eq!(
        (config.kv_heads, config.head_dim, config.rope().theta),
        (9, 32, 10_000.0)
    );
    let legacy = with(&[("rope_scaling", r#"{"type": "linear", "factor": 2.0}"#)]).unwrap();
    assert_eq!(legacy.rope().scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn qwen3_and_yarn() {
    let yarn = r#"{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}"#;
    let qwen3 = [
        ("architectures", r#"["Qwen3ForCausalLM"]"#),
        ("model_type", "\"qwen3\""),
        ("use_sliding_window", "false"),
        ("rope_theta", "1000000"),
        ("rope_scaling", yarn),
    ];
    let config = with(&qwen3).unwrap();
    // Qwen3's own default, whatever the hidden size.
    assert_eq!((config.family, config.head_dim), (Family::Qwen3, 128));
    assert_eq!(config.rope().scaling, RopeScaling::yarn(4.0, 32768));

    let scaling = |fields: &str| {
        let json =
            format!(r#"{{"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, {fields}}}"#);
        let config = with(&[("rope_parameters", &json)]).unwrap();
        config.rope().scaling.clone()
    };
    let attention = |fields: &str| match scaling(fields) {
        RopeScaling::Yarn {
            attention_factor, ..
        } => attention_factor,
        other => panic!("{other:?}"),
    };
    // Without an original context, the model's own is meant.
    assert_eq!(scaling(r#""type": "yarn""#), RopeScaling::yarn(4.0, 8192));
    assert_eq!(attention(r#""attention_factor": 1.25"#), 1.25);
    assert_eq!(attention(r#""mscale": 1.0, "mscale_all_dim": 1.0"#), 1.0);
    assert_eq!(attention(r#""mscale": 2.0"#), 0.1 * 4f64.ln() + 1.0);
}

#[test]
fn parameters_of_full_attention_are_those_of_every_layer() {
    let llama3 = r#"{"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}"#;
    let plain = with(&[("rope_theta", ""), ("rope_parameters", llama3)]).unwrap();
    assert_eq!(plain.rope().theta, 500_000.0);
    let nested = format!(r#"{{"full_attention": {llama3}}}"#);
    let nested = with(&[("rope_theta", ""), ("rope_parameters", &nested)]).unwrap();
    assert_eq!(nested, plain);
    // The same said twice is one thing, two things said are none.
    let both = [("rope_parameters", llama3), ("rope_scaling", llama3)];
    assert_eq!(with(&both).unwrap(), plain);
    let linear = r#"{"rope_type": "linear", "factor": 2.0}"#;
    let two = [("rope_parameters", llama3), ("rope_scaling", linear)];
    let message = with(&two).unwrap_err().to_string();
    assert!(message.contains("rope_scaling is not what rope_parameters say"));
}

#[test]
fn yarn_stretches_a_context_that_stayed() {
    let context = |positions: &str, yarn: &str| {
        let yarn = format!(r#"{{"rope_type": "yarn", {yarn}}}"#);
        let changes = [
            ("max_position_embeddings", positions),
            ("rope_scaling", &yarn),
        ];
        with(&changes).unwrap().max_positions
    };
    let original = r#""factor": 4.0, "original_max_position_embeddings": 32768"#;
    assert_eq!(context("40960", original), 131_072);
    assert_eq!(context("131072", original), 131_072);
    assert_eq!(context("262144", original), 262_144);
    assert_eq!(context("8192", r#""factor": 2.5"#), 20_480);
    assert_eq!(context("8192", r#""factor": 0.5"#), 8192);
}

#[test]
fn windows_of_llamas() {
    let windows = |changes: &[(&str, &str)]| {
        let config = with(&[changes, &[("num_hidden_layers", "3")]].concat()).unwrap();
        config.windows()
    };
    let mistral = ("architectures", r#"["MistralForCausalLM"]"#);
    let kinds = r#"["sliding_attention", "full_attention", "sliding_attention"]"#;
    let qwen3 = ("architectures", r#"["Qwen3ForCausalLM"]"#);
    let (all, none) = ([Some(4096); 3], [None; 3]);
    let window = ("sliding_window", "4096");
    for (changes, wanted) in [
        (vec![window], all),
        (vec![mistral], all),
        (vec![mistral, ("sliding_window", "null")], none),
        (
            vec![mistral, window, ("layer_types", kinds)],
            [Some(4096), None, Some(4096)],
        ),
        // A window that holds the context hides nothing.
        (vec![("sliding_window", "8192")], none),
        (vec![window, ("use_sliding_window", "false")], none),
        (vec![qwen3, window], none),
        (
            vec![
                qwen3,
                ("use_sliding_window", "true"),
                ("max_window_layers", "1"),
            ],
            [None, Some(4096), Some(4096)],
        ),
    ] {
        assert_eq!(windows(&changes), wanted, "{changes:?}");
    }
    // YaRN makes the context longer than the window.
    let yarn = r#"{"rope_type": "yarn", "factor": 2.0}"#;
    let stretched = windows(&[("sliding_window", "8192"), ("rope_scaling", yarn)]);
    assert_eq!(stretched, [Some(8192); 3]);
}

/// Gemma 3 as transformers 4 and 5 write it, and as part of a model with images, which leaves out what is usual.
#[test]
fn gemma3_in_every_form() {
    let common = [
        ("architectures", r#"["Gemma3ForCausalLM"]"#),
        ("head_dim", ""),
        ("num_attention_heads", "8"),
        ("num_key_value_heads", "4"),
        ("num_hidden_layers", "7"),
        ("max_position_embeddings", "131072"),
        ("vocab_size", "262208"),
        ("sliding_window", "1024"),
        ("rms_norm_eps", "1e-6"),
        ("rope_theta", ""),
        ("hidden_act", "\"unused\""),
    ];
    let linear = r#"{"rope_type": "linear", "factor": 8.0}"#;
    let old = with(&[&common[..], &[("rope_scaling", linear)]].concat()).unwrap();
    let global = RopeConfig {
        scaling: RopeScaling::Linear { factor: 8.0 },
        ..RopeConfig::new(1e6, 256)
    };
    for (index, layer) in old.layers.iter().enumerate() {
        let (rope, window) = match index {
            5 => (global.clone(), None),
            _ => (RopeConfig::new(1e4, 256), Some(1024)),
        };
        assert_eq!((layer.rope.as_ref(), layer.window), (Some(&rope), window));
    }
    assert_eq!((old.attention_scale, old.logit_softcap), (None, None));
    assert!(old.tie_embeddings);

    let kinds: Vec<&str> = old
        .windows()
        .iter()
        .map(|window| match window {
            Some(_) => "sliding_attention",
            None => "full_attention",
        })
        .collect();
    let kinds = serde_json::to_string(&kinds).unwrap();
    let parameters = r#"{
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}"#;
    let new = [
        ("layer_types", kinds.as_str()),
        ("rope_parameters", parameters),
    ];
    assert_eq!(with(&[&common[..], &new].concat()).unwrap(), old);

    let nested = format!(
        r#"{{"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
        "bos_token_id": 1, "eos_token_id": 2, "text_config": {{"model_type": "gemma3_text", "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 7, "rope_scaling": {linear}, "sliding_window": 1024}},
        "vision_config": {{}}}}"#
    );
    let nested = ModelConfig::from_hf_json("config.json", &nested).unwrap();
    assert_eq!(
        nested,
        ModelConfig {
            tie_embeddings: nested.tie_embeddings,
            ..old
        }
    );
}

#[test]
fn gemma2_has_soft_caps_unless_they_are_null() {
    let gemma2 = ("architectures", r#"["Gemma2ForCausalLM"]"#);
    let config = with(&[gemma2, ("num_hidden_layers", "3")]).unwrap();
    assert_eq!(config.windows(), [Some(4096), None, Some(4096)]);
    assert_eq!(
        (config.attention_softcap, config.logit_softcap),
        (Some(50.0), Some(30.0))
    );
    let config = with(&[gemma2, ("attn_logit_softcapping", "null")]).unwrap();
    assert_eq!(config.attention_softcap, None);
    let scaled = with(&[gemma2, ("query_pre_attn_scalar", "144")]).unwrap();
    assert_eq!(scaled.attention_scale, Some(1.0 / 12.0));
}

#[test]
fn phi3_takes_the_factors_of_its_context() {
    let factors = r#"{"type": "longrope", "short_factor": [1, 2], "long_factor": [3, 4]}"#;
    let phi3 = [
        ("architectures", r#"["Phi3ForCausalLM"]"#),
        ("head_dim", "8"),
        ("partial_rotary_factor", "0.5"),
        ("rope_scaling", factors),
        ("max_position_embeddings", "131072"),
    ];
    let rope = |changes: &[(&str, &str)]| {
        let config = with(&[&phi3[..], changes].concat()).unwrap();
        config.rope().clone()
    };
    let found = rope(&[]);
    assert_eq!((found.rotated, found.theta), (4, 100_000.0));
    // √(1 + ln 32 / ln 4096)
    let longrope = |divisors: [f64; 2], attention_factor| RopeScaling::LongRope {
        divisors: divisors.into(),
        attention_factor,
    };
    let published = (1.0 + 32f64.ln() / 4096f64.ln()).sqrt();
    assert_eq!(found.scaling, longrope([3.0, 4.0], published));
    let original = ("original_max_position_embeddings", "131072");
    assert_eq!(rope(&[original]).scaling, longrope([1.0, 2.0], 1.0));
    // As transformers 5 has it: all in one object.
    let all = r#"{"rope_type": "longrope", "short_factor": [1, 2], "long_factor": [3, 4], "rope_theta": 1e5,
        "partial_rotary_factor": 0.5, "original_max_position_embeddings": 4096}"#;
    let changes = [
        ("rope_scaling", ""),
        ("partial_rotary_factor", ""),
        ("rope_parameters", all),
    ];
    assert_eq!(rope(&changes), found);
}

#[test]
fn smollm3_leaves_out_rotary_embeddings_and_qwen3_moe_experts() {
    let smollm3 = ("architectures", r#"["SmolLM3ForCausalLM"]"#);
    let rotated = |changes: &[(&str, &str)]| -> Vec<bool> {
        let layers = ("num_hidden_layers", "5");
        let config = with(&[&[smollm3, layers], changes].concat()).unwrap();
        config
            .layers
            .iter()
            .map(|layer| layer.rope.is_some())
            .collect()
    };
    assert_eq!(rotated(&[]), [true, true, true, false, true]);
    let listed = rotated(&[("no_rope_layers", "[0, 1, 1, 1, 0]")]);
    assert_eq!(listed, [false, true, true, true, false]);

    let moe = [
        ("architectures", r#"["Qwen3MoeForCausalLM"]"#),
        ("num_hidden_layers", "4"),
        ("num_experts", "4"),
        ("num_experts_per_tok", "2"),
        ("decoder_sparse_step", "2"),
        ("mlp_only_layers", "[1]"),
    ];
    let config = with(&moe).unwrap();
    let sparse: Vec<bool> = config.layers.iter().map(|layer| layer.sparse).collect();
    assert_eq!(sparse, [false, false, false, true]);
    let experts = config.experts.unwrap();
    assert_eq!(
        (experts.count, experts.used, experts.normalize),
        (4, 2, false)
    );
}

#[test]
fn end_tokens_of_a_generation_config() {
    let read = |text: &str| generation_end_tokens("generation_config.json", text, 320);
    assert_eq!(read(r#"{"eos_token_id": [0, 319]}"#).unwrap(), [0, 319]);
    assert_eq!(read(r#"{"eos_token_id": 3}"#).unwrap(), [3]);
    assert!(read(r#"{"do_sample": true}"#).unwrap().is_empty());
    for text in [
        "",
        "[]",
        r#"{"eos_token_id": 320}"#,
        r#"{"eos_token_id": "a"}"#,
    ] {
        let message = read(text).unwrap_err().to_string();
        assert!(message.starts_with("generation_config.json: "), "{message}");
    }
}

#[test]
fn refusals_name_the_field() {
    let refused = [
        ("attention_bias", "true", "attention_bias"),
        ("mlp_bias", "true", "mlp_bias"),
        ("use_bidirectional_attention", "true", "bidirectional"),
        (
            "layer_types",
            r#"["full_attention", "full_attention"]"#,
            "length of layer_types",
        ),
        ("sliding_window", "\"4096\"", "sliding_window"),
        ("sliding_window", "0", "sliding_window"),
        (
            "rope_parameters",
            r#"{"rope_type": "default", "partial_rotary_factor": 1.5}"#,
            "rope_parameters partial_rotary_factor is 1.5",
        ),
        (
            "rope_parameters",
            r#"{"full_attention": {"partial_rotary_factor": 0.05}}"#,
            "rotated elements of a head is 3",
        ),
        (
            "rope_parameters",
            r#"{"full_attention": {"rope_theta": 1e6}, "chunked_attention": {"rope_theta": 1e4}}"#,
            "chunked_attention",
        ),
        (
            "rope_scaling",
            r#"{"type": "yarn", "factor": 1e5, "original_max_position_embeddings": 8192}"#,
            "max_position_embeddings",
        ),
        ("hidden_act", "\"gelu\"", "gelu"),
        (
            "rope_scaling",
            r#"{"rope_type": "longrope", "factor": 4}"#,
            "short_factor",
        ),
        ("rope_scaling", r#"{"type": "linear"}"#, "factor"),
        ("quantization_config", "{}", "quantization_config"),
        ("num_attention_heads", "0", "num_attention_heads"),
        ("num_attention_heads", "7", "hidden_size"),
        ("vocab_size", "-5", "vocab_size"),
        ("vocab_size", "1e30", "vocab_size"),
        ("hidden_size", "", "hidden_size"),
        ("eos_token_id", "[2, \"x\"]", "eos_token_id"),
        ("rms_norm_eps", "\"small\"", "rms_norm_eps"),
    ];
    for (key, value, named) in refused {
        let message = with(&[(key, value)]).unwrap_err().to_string();
        assert!(
            message.contains(named) && message.contains("config.json"),
            "{message}"
        );
        assert_eq!(message.lines().count(), 1);
    }
    let other = [
        ("architectures", "[\"MambaForCausalLM\"]"),
        ("model_type", "\"mamba\""),
    ];
    assert!(
        with(&other)
            .unwrap_err()
            .to_string()
            .contains("MambaForCausalLM")
    );
    for text in ["", "[]", "{", "{\"a\": 1e999}", "null"] {
        assert!(ModelConfig::from_hf_json("config.json", text).is_err());
    }
}
