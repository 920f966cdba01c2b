use super::super::RopeScaling;
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
    assert_eq!(classic.rope_theta, 100_000.0);
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
    assert_eq!(config.rope_scaling, expected);
    assert_eq!(config.eos_tokens, [3, 4]);
    assert_eq!(
        (config.kv_heads, config.head_dim, config.rope_theta),
        (9, 32, 10_000.0)
    );
    let legacy = with(&[("rope_scaling", r#"{"type": "linear", "factor": 2.0}"#)]).unwrap();
    assert_eq!(legacy.rope_scaling, RopeScaling::Linear { factor: 2.0 });
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
    assert_eq!(config.rope_scaling, RopeScaling::yarn(4.0, 32768));

    let scaling = |fields: &str| {
        let json =
            format!(r#"{{"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, {fields}}}"#);
        with(&[("rope_parameters", &json)]).unwrap().rope_scaling
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
    assert_eq!(plain.rope_theta, 500_000.0);
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
fn windows_that_hide_nothing() {
    for changes in [
        vec![("sliding_window", "null")],
        vec![("sliding_window", "8192")],
        vec![("sliding_window", "4096"), ("use_sliding_window", "false")],
        vec![
            ("sliding_window", "4096"),
            ("architectures", r#"["Qwen3ForCausalLM"]"#),
        ],
    ] {
        assert_eq!(with(&changes).unwrap().max_positions, 8192, "{changes:?}");
    }
    // YaRN makes the context longer than the window.
    let yarn = r#"{"rope_type": "yarn", "factor": 2.0}"#;
    let error = with(&[("sliding_window", "8192"), ("rope_scaling", yarn)]).unwrap_err();
    assert!(error.to_string().contains("16384 tokens"), "{error}");
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
        ("use_sliding_window", "true", "use_sliding_window"),
        (
            "layer_types",
            r#"["full_attention", "sliding_attention"]"#,
            "sliding_attention",
        ),
        ("sliding_window", "4096", "sliding_window 4096"),
        ("sliding_window", "\"4096\"", "sliding_window"),
        (
            "rope_parameters",
            r#"{"rope_type": "default", "partial_rotary_factor": 0.5}"#,
            "rope_parameters partial_rotary_factor 0.5",
        ),
        (
            "rope_parameters",
            r#"{"full_attention": {"partial_rotary_factor": 0.25}}"#,
            "rope_parameters full_attention partial_rotary_factor 0.25",
        ),
        (
            "rope_parameters",
            r#"{"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}"#,
            "full_attention",
        ),
        (
            "rope_parameters",
            r#"{"sliding_attention": {"rope_theta": 1e4}}"#,
            "sliding_attention",
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
            "longrope",
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
