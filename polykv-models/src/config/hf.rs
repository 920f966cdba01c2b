//! config.json of a Hugging Face checkpoint.

use super::checks::{check_size, check_tokens};
use super::fields::{Fields, shown};
use super::{Family, ModelConfig, rope};
use polykv_core::{Error, Result};
use serde_json::{Map, Value};

/// Reads the fields with their defaults; the caller validates their ranges.
pub(super) fn read(place: &str, text: &str) -> Result<ModelConfig> {
    let root = object(place, text)?;
    let json = Fields {
        place,
        prefix: "",
        map: &root,
    };
    let family = family(&json)?;
    refuse_unsupported(&json)?;

    let heads = json.required("num_attention_heads")?;
    let hidden_size = json.required("hidden_size")?;
    let head_dim = match (json.size("head_dim")?, family) {
        (Some(dim), _) => dim,
        (None, Family::Llama) => default_head_dim(place, hidden_size, heads)?,
        (None, Family::Qwen3) => 128,
    };
    let max_positions = json.required("max_position_embeddings")?;
    let (rope_theta, rope_scaling) = rope::read(&json, max_positions)?;
    let max_positions = rope_scaling.context(max_positions);
    refuse_window(&json, family, max_positions)?;
    Ok(ModelConfig {
        family,
        vocab_size: json.required("vocab_size")?,
        hidden_size,
        intermediate_size: json.required("intermediate_size")?,
        layers: json.required("num_hidden_layers")?,
        heads,
        kv_heads: json.size("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        max_positions,
        rms_eps: json.number("rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta,
        rope_scaling,
        tie_embeddings: json.flag("tie_word_embeddings")?.unwrap_or(false),
        bos_token: json.token("bos_token_id")?,
        eos_tokens: json.tokens("eos_token_id")?,
    })
}

/// The end tokens of a generation_config.json, which often names more of them than config.json.
///
/// # Errors
/// Malformed JSON; ids that are none, or beyond the vocabulary.
pub(crate) fn generation_end_tokens(
    place: &str,
    text: &str,
    vocab_size: usize,
) -> Result<Vec<u32>> {
    let root = object(place, text)?;
    let json = Fields {
        place,
        prefix: "",
        map: &root,
    };
    let ids = json.tokens("eos_token_id")?;
    check_tokens(place, &ids, vocab_size)?;
    Ok(ids)
}

fn object(place: &str, text: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(text).map_err(|e| Error::invalid(place, "content", e, "a JSON object"))
}

fn default_head_dim(place: &str, hidden: usize, heads: usize) -> Result<usize> {
    check_size(place, "num_attention_heads", heads, 1024)?;
    if !hidden.is_multiple_of(heads) {
        let allowed = format!("a multiple of num_attention_heads, {heads}, or a head_dim");
        return Err(Error::invalid(place, "hidden_size", hidden, allowed));
    }
    Ok(hidden.checked_div(heads).unwrap_or(0))
}

/// Entry in `architectures`, `model_type`, family.
const FAMILIES: [(&str, &str, Family); 2] = [
    ("LlamaForCausalLM", "llama", Family::Llama),
    ("Qwen3ForCausalLM", "qwen3", Family::Qwen3),
];

/// A known architecture decides; `model_type` stands in for it.
fn family(json: &Fields) -> Result<Family> {
    let architectures = json
        .get("architectures")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let model_type = json.text("model_type")?;
    let named = |name: &str| architectures.iter().any(|a| a.as_str() == Some(name));
    let found = FAMILIES
        .iter()
        .find(|(name, ..)| named(name))
        .or_else(|| FAMILIES.iter().find(|f| model_type == Some(f.1)));
    if let Some((.., family)) = found {
        return Ok(*family);
    }
    let first = architectures.first().and_then(Value::as_str);
    let name = first.or(model_type).unwrap_or("(not named)");
    let known = FAMILIES.map(|(name, ..)| name).join(" and ");
    Err(Error::unsupported(
        format!("architecture {}", shown(name)),
        format!("{}: only {known} can be loaded", json.place),
    ))
}

fn refuse_unsupported(json: &Fields) -> Result<()> {
    let refuse = |what: String| {
        Err(Error::unsupported(
            what,
            format!("{}: there is no code for it", json.place),
        ))
    };
    for field in ["attention_bias", "mlp_bias", "use_sliding_window"] {
        if json.flag(field)? == Some(true) {
            return refuse(format!("{field} true"));
        }
    }
    let full = |kind: &Value| kind.as_str() == Some("full_attention");
    if let Some(kinds) = json.get("layer_types").and_then(Value::as_array)
        && let Some(other) = kinds.iter().find(|kind| !full(kind))
    {
        return refuse(format!("layer_types {}", shown(&other.to_string())));
    }
    match json.text("hidden_act")? {
        None | Some("silu") => {}
        Some(other) => return refuse(format!("hidden_act {}", shown(other))),
    }
    if json.get("quantization_config").is_some() {
        return refuse("a checkpoint with quantization_config".into());
    }
    if let Some(part) = json.number(rope::PARTIAL)?
        && part != 1.0
    {
        return refuse(format!("{} {part}", rope::PARTIAL));
    }
    Ok(())
}

/// A window that the context does not fit into would hide tokens from the layers. Qwen3 uses its window only if a flag
/// says so, and that flag is refused.
fn refuse_window(json: &Fields, family: Family, context: usize) -> Result<()> {
    let used = json.flag("use_sliding_window")?;
    let used = used.unwrap_or(family != Family::Qwen3);
    match json.size("sliding_window")? {
        Some(window) if used && window < context => Err(Error::unsupported(
            format!("sliding_window {window}"),
            format!(
                "{}: allowed are null, at least the context of {context} tokens, or use_sliding_window false",
                json.place
            ),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
