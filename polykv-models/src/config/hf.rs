//! config.json of a Hugging Face checkpoint.

use super::{Family, ModelConfig, RopeScaling, check_size};
use polykv_core::{Error, Result};
use serde_json::{Map, Value};

/// A config.json is a few kilobytes; anything far above is not one.
const MAX_CONFIG_BYTES: usize = 1 << 20;

/// Reads the fields with their defaults; the caller validates their ranges.
pub(super) fn read(place: &str, text: &str) -> Result<ModelConfig> {
    if text.len() > MAX_CONFIG_BYTES {
        let found = format!("{} bytes", text.len());
        return Err(Error::invalid(
            place,
            "size",
            found,
            format!("up to {MAX_CONFIG_BYTES}"),
        ));
    }
    let root: Map<String, Value> = serde_json::from_str(text)
        .map_err(|e| Error::invalid(place, "content", e, "a JSON object"))?;
    let json = Fields {
        place,
        prefix: "",
        map: &root,
    };
    let family = family(&json)?;
    refuse_unsupported(&json)?;

    let heads = json.required("num_attention_heads")?;
    let hidden_size = json.required("hidden_size")?;
    let head_dim = match json.size("head_dim")? {
        Some(dim) => dim,
        None => default_head_dim(place, hidden_size, heads)?,
    };
    let (rope_theta, rope_scaling) = rope(&json)?;
    Ok(ModelConfig {
        family,
        vocab_size: json.required("vocab_size")?,
        hidden_size,
        intermediate_size: json.required("intermediate_size")?,
        layers: json.required("num_hidden_layers")?,
        heads,
        kv_heads: json.size("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        max_positions: json.required("max_position_embeddings")?,
        rms_eps: json.number("rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta,
        rope_scaling,
        tie_embeddings: json.flag("tie_word_embeddings")?.unwrap_or(false),
        bos_token: json.token("bos_token_id")?,
        eos_tokens: json.tokens("eos_token_id")?,
    })
}

fn default_head_dim(place: &str, hidden: usize, heads: usize) -> Result<usize> {
    check_size(place, "num_attention_heads", heads, 1024)?;
    if !hidden.is_multiple_of(heads) {
        let allowed = format!("a multiple of num_attention_heads, {heads}, or a head_dim");
        return Err(Error::invalid(place, "hidden_size", hidden, allowed));
    }
    Ok(hidden / heads)
}

fn family(json: &Fields) -> Result<Family> {
    let architectures = json
        .get("architectures")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let named = architectures
        .iter()
        .any(|a| a.as_str() == Some("LlamaForCausalLM"));
    let model_type = json.text("model_type")?;
    if named || model_type == Some("llama") {
        return Ok(Family::Llama);
    }
    let first = architectures.first().and_then(Value::as_str);
    let name = first.or(model_type).unwrap_or("(not named)");
    Err(Error::unsupported(
        format!("architecture {}", shown(name)),
        format!("{}: only LlamaForCausalLM can be loaded", json.place),
    ))
}

fn refuse_unsupported(json: &Fields) -> Result<()> {
    let refuse = |what: String| {
        Err(Error::unsupported(
            what,
            format!("{}: there is no code for it", json.place),
        ))
    };
    for field in ["attention_bias", "mlp_bias"] {
        if json.flag(field)? == Some(true) {
            return refuse(format!("{field} true"));
        }
    }
    match json.text("hidden_act")? {
        None | Some("silu") => {}
        Some(other) => return refuse(format!("hidden_act {}", shown(other))),
    }
    if json.get("quantization_config").is_some() {
        return refuse("a checkpoint with quantization_config".into());
    }
    if let Some(part) = json.number("partial_rotary_factor")?
        && part != 1.0
    {
        return refuse(format!("partial_rotary_factor {part}"));
    }
    Ok(())
}

/// Theta and scaling. Newer files hold both in `rope_parameters`, older ones beside each other.
fn rope(json: &Fields) -> Result<(f64, RopeScaling)> {
    let (map, prefix) = match json.object("rope_parameters")? {
        Some(map) => (Some(map), "rope_parameters "),
        None => (json.object("rope_scaling")?, "rope_scaling "),
    };
    let top_theta = json.number("rope_theta")?;
    let Some(map) = map else {
        return Ok((top_theta.unwrap_or(10_000.0), RopeScaling::None));
    };
    let rope = Fields {
        place: json.place,
        prefix,
        map,
    };
    let theta = rope.number("rope_theta")?.or(top_theta).unwrap_or(10_000.0);
    let kind = match rope.text("rope_type")? {
        Some(kind) => kind,
        None => rope.text("type")?.unwrap_or("default"),
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear {
            factor: rope.required_number("factor")?,
        },
        "llama3" => RopeScaling::Llama3 {
            factor: rope.required_number("factor")?,
            low_freq_factor: rope.required_number("low_freq_factor")?,
            high_freq_factor: rope.required_number("high_freq_factor")?,
            original_max_positions: rope.required("original_max_position_embeddings")?,
        },
        other => {
            let reason = format!("{}: allowed are default, linear and llama3", json.place);
            return Err(Error::unsupported(
                format!("{prefix}type {}", shown(other)),
                reason,
            ));
        }
    };
    Ok((theta, scaling))
}

/// A value from a file, cut so that a hostile one cannot fill the screen.
fn shown(text: &str) -> String {
    let cut: String = text.chars().take(64).collect();
    format!("{cut:?}")
}

/// Typed access to a JSON object; `null` counts as missing.
struct Fields<'a> {
    place: &'a str,
    prefix: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn wrong(&self, key: &str, found: &Value, allowed: &str) -> Error {
        let cut: String = found.to_string().chars().take(64).collect();
        Error::invalid(self.place, format!("{}{key}", self.prefix), cut, allowed)
    }

    fn missing(&self, key: &str) -> Error {
        Error::invalid(
            self.place,
            format!("{}{key}", self.prefix),
            "missing",
            "a number",
        )
    }

    fn typed<T>(
        &self,
        key: &str,
        allowed: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        self.get(key)
            .map(|v| read(v).ok_or_else(|| self.wrong(key, v, allowed)))
            .transpose()
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |v| {
            v.as_u64().and_then(|n| usize::try_from(n).ok())
        })
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.missing(key))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    fn required_number(&self, key: &str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| self.missing(key))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a text", Value::as_str)
    }

    fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        self.typed(key, "an object", Value::as_object)
    }

    fn token(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a token id", token_id)
    }

    fn tokens(&self, key: &str) -> Result<Vec<u32>> {
        let read = |v: &Value| match v.as_array() {
            Some(list) => list.iter().map(token_id).collect(),
            None => token_id(v).map(|id| vec![id]),
        };
        let ids = self.typed(key, "a token id or a list of them", read)?;
        Ok(ids.unwrap_or_default())
    }
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn refusals_name_the_field() {
        let refused = [
            ("attention_bias", "true", "attention_bias"),
            ("mlp_bias", "true", "mlp_bias"),
            ("hidden_act", "\"gelu\"", "gelu"),
            (
                "rope_scaling",
                r#"{"rope_type": "yarn", "factor": 4}"#,
                "yarn",
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
        let long = " ".repeat(MAX_CONFIG_BYTES + 1);
        assert!(ModelConfig::from_hf_json("config.json", &long).is_err());
    }
}
