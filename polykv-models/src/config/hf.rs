//! config.json of a Hugging Face checkpoint.

mod layers;
mod rope;

use super::checks::{check_layers, check_size, check_tokens};
use super::fields::{Fields, shown};
use super::{Experts, Family, ModelConfig};
use polykv_core::{Error, Result};
use rope::{RopeDefaults, RopeSizes};
use serde_json::{Map, Value};

/// Entry in `architectures`, `model_type`, family. Models with images too hold the text model's config in an object
/// `text_config`.
const FAMILIES: [(&str, &str, Family); 10] = [
    ("LlamaForCausalLM", "llama", Family::Llama),
    (MISTRAL, "mistral", Family::Llama),
    ("Qwen2ForCausalLM", "qwen2", Family::Qwen2),
    ("Qwen3ForCausalLM", "qwen3", Family::Qwen3),
    ("Qwen3MoeForCausalLM", "qwen3_moe", Family::Qwen3Moe),
    ("Gemma2ForCausalLM", "gemma2", Family::Gemma2),
    ("Gemma3ForCausalLM", "gemma3_text", Family::Gemma3),
    ("Gemma3ForConditionalGeneration", "gemma3", Family::Gemma3),
    ("Phi3ForCausalLM", "phi3", Family::Phi3),
    ("SmolLM3ForCausalLM", "smollm3", Family::SmolLm3),
];

/// A Llama, whose config means a window where it says nothing.
const MISTRAL: &str = "MistralForCausalLM";

/// Reads the fields with their defaults; the caller validates their ranges.
pub(super) fn read(place: &str, text: &str) -> Result<ModelConfig> {
    let root = object(place, text)?;
    let json = Fields {
        place,
        prefix: "",
        map: &root,
    };
    let (architecture, family) = architecture(&json)?;
    let text = text_config(&json)?;
    let json = Fields {
        map: text.as_ref().unwrap_or(&root),
        ..json
    };
    refuse_unsupported(&json, family)?;

    let gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
    let default = |gemma_has: usize| gemma.then_some(gemma_has);
    let size = |key: &str, default: Option<usize>| match (json.size(key)?, default) {
        (None, Some(default)) => Ok(default),
        (found, _) => found.ok_or_else(|| json.missing(key)),
    };
    let heads = size("num_attention_heads", default(8))?;
    let hidden_size = json.required("hidden_size")?;
    let head_dim = match (json.size("head_dim")?, family) {
        (Some(dim), _) => dim,
        (None, Family::Qwen3) => 128,
        (None, Family::Gemma2 | Family::Gemma3) => 256,
        (None, _) => default_head_dim(place, hidden_size, heads)?,
    };
    let count = json.required("num_hidden_layers")?;
    check_layers(place, count)?;
    let context = match family {
        Family::Gemma2 => size("max_position_embeddings", Some(8192))?,
        Family::Gemma3 => size("max_position_embeddings", Some(131_072))?,
        _ => json.required("max_position_embeddings")?,
    };
    let original = json.size("original_max_position_embeddings")?;
    let sizes = RopeSizes {
        head_dim,
        max_positions: context,
        original: match family {
            Family::Phi3 => original.or(Some(4096)),
            _ => original,
        },
    };
    let ropes = rope::read(&json, rope_defaults(family), sizes)?;
    let max_positions = ropes[0].scaling.context(context);
    let layers = layers::read(&json, architecture, family, count, ropes, max_positions)?;
    let softcap = |key: &str, gemma2: f64| -> Result<Option<f64>> {
        let stated = json.map.contains_key(key);
        let default = (family == Family::Gemma2 && !stated).then_some(gemma2);
        Ok(json.number(key)?.filter(|_| gemma).or(default))
    };
    Ok(ModelConfig {
        family,
        vocab_size: size("vocab_size", (family == Family::Gemma3).then_some(262_208))?,
        hidden_size,
        intermediate_size: json.required("intermediate_size")?,
        layers,
        experts: experts(&json, family)?,
        heads,
        kv_heads: json
            .size("num_key_value_heads")?
            .or(default(4))
            .unwrap_or(heads),
        head_dim,
        max_positions,
        rms_eps: json.number("rms_norm_eps")?.unwrap_or(1e-6),
        attention_scale: match gemma {
            true => query_scale(&json, head_dim)?,
            false => None,
        },
        attention_softcap: softcap("attn_logit_softcapping", 50.0)?,
        logit_softcap: softcap("final_logit_softcapping", 30.0)?,
        tie_embeddings: json
            .flag("tie_word_embeddings")?
            .unwrap_or(gemma || family == Family::SmolLm3),
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

/// The config of the text model in that of a model with images too. What it does not say of tokens and embeddings, the
/// outer object says.
fn text_config(json: &Fields) -> Result<Option<Map<String, Value>>> {
    let Some(text) = json.object("text_config")? else {
        return Ok(None);
    };
    let mut text = text.clone();
    for key in [
        "bos_token_id",
        "eos_token_id",
        "tie_word_embeddings",
        "quantization_config",
    ] {
        if let (false, Some(value)) = (text.contains_key(key), json.get(key)) {
            text.insert(key.into(), value.clone());
        }
    }
    Ok(Some(text))
}

fn default_head_dim(place: &str, hidden: usize, heads: usize) -> Result<usize> {
    check_size(place, "num_attention_heads", heads, 1024)?;
    if !hidden.is_multiple_of(heads) {
        let allowed = format!("a multiple of num_attention_heads, {heads}, or a head_dim");
        return Err(Error::invalid(place, "hidden_size", hidden, allowed));
    }
    Ok(hidden.checked_div(heads).unwrap_or(0))
}

fn rope_defaults(family: Family) -> RopeDefaults {
    let theta = match family {
        Family::Gemma3 => 1e6,
        Family::SmolLm3 => 2e6,
        _ => 1e4,
    };
    RopeDefaults {
        theta,
        local_theta: (family == Family::Gemma3).then_some(1e4),
    }
}

/// Gemma's factor before the softmax; `None` if it is the usual one.
fn query_scale(json: &Fields, head_dim: usize) -> Result<Option<f64>> {
    let scalar = json.number("query_pre_attn_scalar")?.unwrap_or(256.0);
    Ok((scalar != head_dim as f64).then(|| 1.0 / scalar.sqrt()))
}

fn experts(json: &Fields, family: Family) -> Result<Option<Experts>> {
    if family != Family::Qwen3Moe {
        return Ok(None);
    }
    Ok(Some(Experts {
        count: json.size("num_experts")?.unwrap_or(128),
        used: json.size("num_experts_per_tok")?.unwrap_or(8),
        intermediate_size: json.size("moe_intermediate_size")?.unwrap_or(768),
        normalize: json.flag("norm_topk_prob")?.unwrap_or(false),
    }))
}

/// A known architecture decides; `model_type` stands in for it.
fn architecture(json: &Fields) -> Result<(&'static str, Family)> {
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
    if let Some((name, _, family)) = found {
        return Ok((*name, *family));
    }
    let first = architectures.first().and_then(Value::as_str);
    let name = first.or(model_type).unwrap_or("(not named)");
    let known = FAMILIES.map(|(name, ..)| name).join(", ");
    Err(Error::unsupported(
        format!("architecture {}", shown(name)),
        format!("{}: only {known} can be loaded", json.place),
    ))
}

fn refuse_unsupported(json: &Fields, family: Family) -> Result<()> {
    let refuse = |what: String| {
        Err(Error::unsupported(
            what,
            format!("{}: there is no code for it", json.place),
        ))
    };
    for field in ["attention_bias", "mlp_bias", "use_bidirectional_attention"] {
        if json.flag(field)? == Some(true) {
            return refuse(format!("{field} true"));
        }
    }
    let (field, activation) = match family {
        Family::Gemma2 | Family::Gemma3 => ("hidden_activation", "gelu_pytorch_tanh"),
        _ => ("hidden_act", "silu"),
    };
    match json.text(field)? {
        Some(other) if other != activation => refuse(format!("{field} {}", shown(other)))?,
        _ => {}
    }
    if json.get("quantization_config").is_some() {
        return refuse("a checkpoint with quantization_config".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
