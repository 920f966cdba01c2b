//! config.json.

use super::{edit_json, refused, refused_file, rows};
use serde_json::{Value, json};
use std::path::Path;

/// Field, value, what the error says beside both.
const FIELDS: &str = r#"
    num_hidden_layers | 0 | 1 to 1024
    num_hidden_layers | 1025 | 1 to 1024
    num_hidden_layers | "3" | a whole number
    num_hidden_layers | null | missing | a number
    num_attention_heads | 0 | 1 to 1024
    num_attention_heads | -4 | a whole number
    num_attention_heads | 18446744073709551615 | 1 to 1024
    num_key_value_heads | 0 | 1 to 4
    num_key_value_heads | 3 | a divisor of num_attention_heads, 4
    num_key_value_heads | 8 | 1 to 4
    head_dim | 0 | 1 to 1024
    head_dim | 15 | an even number
    head_dim | 2048 | 1 to 1024
    vocab_size | 0 | 1 to 16777216
    vocab_size | 1099511627776 | 1 to 16777216
    hidden_size | 0 | 1 to 1048576
    hidden_size | 66 | a multiple of num_attention_heads, 4
    intermediate_size | 0 | 1 to 4194304
    max_position_embeddings | 0 | 1 to 67108864
    rms_norm_eps | 0 | above 0
    rms_norm_eps | "1e-5" | a number
    rope_theta | 0 | above 0
    rope_theta | -1.5 | above 0
    rope_theta | 10000000000000 | above 0, up to 1000000000000
    rope_scaling factor | 0 | above 0
    rope_scaling factor | null | missing
    rope_scaling low_freq_factor | -1 | above 0
    rope_scaling high_freq_factor | 0.5 | above low_freq_factor, 1
    rope_scaling original_max_position_embeddings | 0 | 1 to
    rope_scaling rope_type | "dynamic" | default, linear, llama3, yarn and longrope
    eos_token_id | [0, 320] | below vocab_size, 320
    architectures | ["OtherForCausalLM"] | LlamaForCausalLM
    sliding_window | 0 | 1 to 67108864
    sliding_window | -1 | a whole number
    layer_types | ["full_attention"] | 3, num_hidden_layers
    layer_types | ["full_attention", "full_attention", "sliding_attention"] | a number, since layer 2 is sliding_attention
    layer_types | ["full_attention", "full_attention", "chunked_attention"] | full_attention and sliding_attention
    rope_scaling partial_rotary_factor | 1.5 | above 0, up to 1
    rope_parameters | {"full_attention": {}, "other": {}} | objects full_attention and sliding_attention
    hidden_act | "gelu" | not supported
    attention_bias | true | not supported
    quantization_config | {"bits": 4} | not supported
    tie_word_embeddings | "yes" | true or false
"#;

#[test]
fn fields() {
    for row in rows(FIELDS) {
        let value: Value = serde_json::from_str(row[1]).unwrap();
        let spoil = |model: &Path| {
            edit_json(&model.join("config.json"), |config| {
                if row[0] == "architectures" {
                    config["model_type"] = json!("other");
                }
                match row[0].split_once(' ') {
                    Some((outer, inner)) => config[outer][inner] = value.clone(),
                    None => config[row[0]] = value.clone(),
                }
            });
        };
        let name = match row[0] {
            "rope_scaling rope_type" => "rope_scaling type",
            "layer_types" if row[2].starts_with("a number") => "sliding_window",
            "architectures" => "architecture",
            other => other,
        };
        let found = match &value {
            Value::String(text) => text.clone(),
            Value::Bool(_) | Value::Number(_) => value.to_string(),
            _ => String::new(),
        };
        let parts = [&["config.json", name, &found], &row[2..]].concat();
        refused(&format!("{} {}", row[0], row[1]), spoil, &parts);
    }
}

#[test]
fn whole_files() {
    let name = "config.json";
    refused_file(name, "{\"a\": ", &["content", "a JSON object"]);
    refused_file(name, "[]", &["content", "a JSON object"]);
    refused_file(name, b"\xff\xfe", &["UTF-8"]);
    let large = vec![b' '; (1 << 20) + 1];
    refused_file(name, large, &["size", "1048577", "1048576"]);
    let missing = |model: &Path| std::fs::remove_file(model.join(name)).unwrap();
    refused("no config", missing, &[name, "No such file"]);
}

#[test]
fn sizes_that_multiply_beyond_reason() {
    let huge = |model: &Path| {
        edit_json(&model.join("config.json"), |config| {
            config["num_hidden_layers"] = json!(1024);
            config["hidden_size"] = json!(1 << 20);
            config["intermediate_size"] = json!(1 << 22);
            config["head_dim"] = json!(16);
        });
    };
    let parts = ["config.json", "number of parameters", "up to 2199023255552"];
    refused("huge model", huge, &parts);
}
