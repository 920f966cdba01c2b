//! The tensors of a GGUF file under the names and in the layout of Hugging Face checkpoints.

use super::GgufFile;
use crate::config::{Family, ModelConfig};
use crate::stored::Stored;
use burn::tensor::{DType, Shape, TensorData};
use polykv_core::{Error, Result};
use std::sync::Arc;

/// The tensors of a GGUF file under the names and in the layout of Hugging Face checkpoints. Each is read and converted
/// to f32 when its data are asked for.
///
/// # Errors
/// A tensor whose name has no counterpart in the architecture of `config`.
pub fn tensors(file: &Arc<GgufFile>, config: &ModelConfig) -> Result<Vec<Stored>> {
    let mut tensors = Vec::new();
    // rope_freqs is part of the config: the divisors of the rotary frequencies.
    for name in file
        .tensor_names()
        .filter(|name| *name != "rope_freqs.weight")
    {
        let Some(info) = file.tensor(name) else {
            continue;
        };
        let hf_name = hf_name(name).ok_or_else(|| {
            Error::invalid(
                file.place_of(info),
                format!("tensor {name}"),
                "unknown",
                format!("a tensor of the {} architecture", config.family.name()),
            )
        })?;
        // Only llama files reorder the rows: qwen3 is rotated in halves by their readers too.
        let rotated_heads = match (config.family, hf_name.rsplit('.').nth(1)) {
            (Family::Llama, Some("q_proj")) => Some(config.heads),
            (Family::Llama, Some("k_proj")) => Some(config.kv_heads),
            _ => None,
        };
        let (source, name, head_dim) = (file.clone(), name.to_string(), config.head_dim);
        let shape = Shape::from(info.shape.clone());
        let inputs = info.shape.last().copied().unwrap_or(0);
        let declared = shape.clone();
        let read = move || {
            let mut values = source.read_f32(&name)?;
            if let Some(heads) = rotated_heads {
                values = unpermute_rope_rows(&values, heads, head_dim, inputs)?;
            }
            Ok(TensorData::new(values, shape.clone()))
        };
        let stored = Stored::new(hf_name, DType::F32, declared, file.place_of(info), read);
        tensors.push(stored);
    }
    Ok(tensors)
}

/// The checkpoint name of a GGUF tensor: `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`.
///
/// `None` for tensors that have no counterpart, such as `rope_freqs.weight`.
#[must_use]
pub fn hf_name(gguf_name: &str) -> Option<String> {
    match gguf_name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let (layer, part) = gguf_name.strip_prefix("blk.")?.split_once('.')?;
    // `00` and `+0` would be second names of layer 0.
    let number: u32 = layer.parse().ok()?;
    if number.to_string() != layer {
        return None;
    }
    let module = match part.strip_suffix(".weight")? {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{module}.weight"))
}

/// Puts the rows of a GGUF query or key weight, shape `[heads * head_dim, inner]`, into checkpoint order.
/// GGUF llama files order them for interleaved rotation, `[heads, head_dim / 2, 2, inner]`; checkpoints rotate halves,
/// `[heads, 2, head_dim / 2, inner]`.
///
/// # Errors
/// A length that is not `heads * head_dim * inner`, and an odd `head_dim`.
pub fn unpermute_rope_rows(
    data: &[f32],
    heads: usize,
    head_dim: usize,
    inner: usize,
) -> Result<Vec<f32>> {
    let expected = heads
        .checked_mul(head_dim)
        .and_then(|rows| rows.checked_mul(inner));
    if expected != Some(data.len()) || data.is_empty() || !head_dim.is_multiple_of(2) {
        let allowed = format!("{heads} heads of an even size {head_dim}, rows of {inner}");
        return Err(Error::invalid(
            "query or key weight",
            "length",
            data.len(),
            allowed,
        ));
    }
    let mut out = Vec::with_capacity(data.len());
    for head in data.chunks_exact(head_dim.saturating_mul(inner)) {
        for side in 0..2 {
            let rows = head.chunks_exact(inner).skip(side).step_by(2);
            rows.for_each(|row| out.extend_from_slice(row));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let name = |n| hf_name(n).unwrap();
        assert_eq!(name("token_embd.weight"), "model.embed_tokens.weight");
        assert_eq!(
            name("blk.12.attn_output.weight"),
            "model.layers.12.self_attn.o_proj.weight"
        );
        assert_eq!(
            name("blk.7.attn_k_norm.weight"),
            "model.layers.7.self_attn.k_norm.weight"
        );
        assert_eq!(
            name("blk.0.ffn_norm.weight"),
            "model.layers.0.post_attention_layernorm.weight"
        );
        for other in [
            "rope_freqs.weight",
            "blk.x.attn_q.weight",
            "blk.1.attn_q",
            "blk.00.attn_q.weight",
            "blk.+0.attn_q.weight",
            "blk.-0.attn_q.weight",
        ] {
            assert_eq!(hf_name(other), None);
        }
    }

    #[test]
    fn rows_return_to_checkpoint_order() {
        // Two heads of four rows of two numbers; checkpoint row r holds r and -r.
        let checkpoint: Vec<f32> = (0..8).flat_map(|r| [r as f32, -(r as f32)]).collect();
        let permuted: Vec<f32> = [0, 2, 1, 3, 4, 6, 5, 7]
            .into_iter()
            .flat_map(|r: usize| checkpoint[r * 2..r * 2 + 2].to_vec())
            .collect();
        assert_eq!(unpermute_rope_rows(&permuted, 2, 4, 2).unwrap(), checkpoint);
        assert!(unpermute_rope_rows(&permuted, 2, 4, 3).is_err());
        assert!(unpermute_rope_rows(&permuted, usize::MAX, 4, 3).is_err());
    }
}
