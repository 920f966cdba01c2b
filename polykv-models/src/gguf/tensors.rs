//! The tensors of a GGUF file under the names and in the layout of Hugging Face checkpoints.

use super::{GgmlType, GgufFile, TensorInfo};
use crate::config::{Family, ModelConfig};
use crate::parts::{Part, parts};
use crate::stored::{Own, OwnBlocks, Stored};
use burn::tensor::{DType, Shape, TensorData};
use polykv_core::{Error, Result};
use std::sync::Arc;

/// Tensors that are part of the config: what the rotary frequencies are divided by.
const ROPE_FACTORS: [&str; 3] = [
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
];

/// The tensors of a GGUF file under the names and in the layout of Hugging Face checkpoints, projections that lie in one
/// tensor apart. Each is read and converted to f32 when its data are asked for.
///
/// # Errors
/// A tensor whose name has no counterpart in the architecture of `config`; a fused one whose shape does not fit.
pub fn tensors(file: &Arc<GgufFile>, config: &ModelConfig) -> Result<Vec<Stored>> {
    let mut tensors = Vec::new();
    let names = file.tensor_names();
    for name in names.filter(|name| !ROPE_FACTORS.contains(name)) {
        let Some(info) = file.tensor(name) else {
            continue;
        };
        let hf_name = hf_name(config.family, name).ok_or_else(|| {
            Error::invalid(
                file.place_of(info),
                format!("tensor {name}"),
                "unknown",
                format!("a tensor of the {} architecture", config.family.name()),
            )
        })?;
        for part in parts(config, hf_name, &info.shape, file.place_of(info))? {
            tensors.push(stored(file, config, name, info, part));
        }
    }
    Ok(tensors)
}

fn stored(
    file: &Arc<GgufFile>,
    config: &ModelConfig,
    name: &str,
    info: &TensorInfo,
    part: Part,
) -> Stored {
    // Only these files reorder the rows of queries and keys; others are rotated in halves by their readers too.
    let reordered = matches!(config.family, Family::Llama | Family::SmolLm3);
    let rotated_heads = match part.name.rsplit('.').nth(1) {
        Some("q_proj") if reordered => Some(config.heads),
        Some("k_proj") if reordered => Some(config.kv_heads),
        _ => None,
    };
    let (source, name, head_dim) = (file.clone(), name.to_string(), config.head_dim);
    let own = match info.ggml_type.block_type() {
        Some(kind) => {
            let (source, name, elements) = (file.clone(), name.clone(), part.elements.clone());
            Own::Blocks(OwnBlocks {
                kind,
                order: rotated_heads.map(|heads| rope_row_order(heads, head_dim)),
                read: Box::new(move |bytes| source.append_part(&name, elements.clone(), bytes)),
            })
        }
        None => Own::Numbers(match info.ggml_type {
            GgmlType::F16 => DType::F16,
            GgmlType::BF16 => DType::BF16,
            _ => DType::F32,
        }),
    };
    let inputs = part.shape.last().copied().unwrap_or(0);
    let shape = Shape::from(part.shape);
    let (declared, elements) = (shape.clone(), part.elements);
    let read = move || {
        let mut values = source.read_f32_part(&name, elements.clone())?;
        if let Some(heads) = rotated_heads {
            values = unpermute_rope_rows(&values, heads, head_dim, inputs)?;
        }
        Ok(TensorData::new(values, shape.clone()))
    };
    Stored::new(part.name, DType::F32, declared, file.place_of(info), read).with_own(own)
}

/// The checkpoint name of a GGUF tensor in files of a family: `blk.3.attn_q.weight` is
/// `model.layers.3.self_attn.q_proj.weight`. The experts of a layer, which are one tensor here, get a name between:
/// `blk.3.ffn_up_exps.weight` is `model.layers.3.mlp.experts.up_proj.weight`.
///
/// `None` for tensors that have no counterpart, such as `rope_freqs.weight`.
#[must_use]
pub fn hf_name(family: Family, gguf_name: &str) -> Option<String> {
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
    let (part, kind) = part.rsplit_once('.')?;
    let gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
    let module = match (part, kind) {
        ("attn_q", "weight" | "bias") => "self_attn.q_proj",
        ("attn_k", "weight" | "bias") => "self_attn.k_proj",
        ("attn_v", "weight" | "bias") => "self_attn.v_proj",
        (_, "bias") => return None,
        ("attn_qkv", "weight") => "self_attn.qkv_proj",
        ("attn_q_norm", "weight") => "self_attn.q_norm",
        ("attn_k_norm", "weight") => "self_attn.k_norm",
        ("attn_output", "weight") => "self_attn.o_proj",
        ("ffn_gate", "weight") => "mlp.gate_proj",
        ("ffn_up", "weight") if family == Family::Phi3 => "mlp.gate_up_proj",
        ("ffn_up", "weight") => "mlp.up_proj",
        ("ffn_down", "weight") => "mlp.down_proj",
        ("ffn_gate_inp", "weight") => "mlp.gate",
        ("ffn_gate_exps", "weight") => "mlp.experts.gate_proj",
        ("ffn_up_exps", "weight") => "mlp.experts.up_proj",
        ("ffn_down_exps", "weight") => "mlp.experts.down_proj",
        ("attn_norm", "weight") => "input_layernorm",
        ("post_attention_norm", "weight") if gemma => "post_attention_layernorm",
        ("ffn_norm", "weight") if gemma => "pre_feedforward_layernorm",
        ("post_ffw_norm", "weight") if gemma => "post_feedforward_layernorm",
        ("ffn_norm", "weight") => "post_attention_layernorm",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{module}.{kind}"))
}

/// Which row of a GGUF query or key weight each row of the checkpoint is; see [`unpermute_rope_rows`].
fn rope_row_order(heads: usize, head_dim: usize) -> Vec<u32> {
    let half = head_dim / 2;
    let of_head = |head: usize| {
        let row = |side: usize, pair: usize| pair.saturating_mul(2).saturating_add(side);
        let rows = (0..2).flat_map(move |side| (0..half).map(move |pair| row(side, pair)));
        rows.map(move |row| head.saturating_mul(head_dim).saturating_add(row) as u32)
    };
    (0..heads).flat_map(of_head).collect()
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
    let rows: Vec<&[f32]> = data.chunks_exact(inner).collect();
    let ordered = rope_row_order(heads, head_dim).into_iter();
    let ordered = ordered.filter_map(|row| rows.get(row as usize));
    Ok(ordered.flat_map(|row| row.iter().copied()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (family, name, wanted) in [
            (
                Family::Llama,
                "token_embd.weight",
                "model.embed_tokens.weight",
            ),
            (
                Family::Llama,
                "blk.12.attn_output.weight",
                "model.layers.12.self_attn.o_proj.weight",
            ),
            (
                Family::Qwen3,
                "blk.7.attn_k_norm.weight",
                "model.layers.7.self_attn.k_norm.weight",
            ),
            (
                Family::Qwen2,
                "blk.7.attn_k.bias",
                "model.layers.7.self_attn.k_proj.bias",
            ),
            (
                Family::Llama,
                "blk.0.ffn_norm.weight",
                "model.layers.0.post_attention_layernorm.weight",
            ),
            (
                Family::Gemma3,
                "blk.0.ffn_norm.weight",
                "model.layers.0.pre_feedforward_layernorm.weight",
            ),
            (
                Family::Phi3,
                "blk.0.ffn_up.weight",
                "model.layers.0.mlp.gate_up_proj.weight",
            ),
        ] {
            assert_eq!(hf_name(family, name).as_deref(), Some(wanted));
        }
        for other in [
            "rope_freqs.weight",
            "blk.x.attn_q.weight",
            "blk.1.attn_q",
            "blk.1.attn_q.scale",
            "blk.1.ffn_up.bias",
            "blk.1.post_ffw_norm.weight",
            "blk.00.attn_q.weight",
            "blk.+0.attn_q.weight",
            "blk.-0.attn_q.weight",
        ] {
            assert_eq!(hf_name(Family::Llama, other), None);
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
        let rows = rope_row_order(2, 4).into_iter();
        let ordered = rows.flat_map(|row| permuted[row as usize * 2..][..2].to_vec());
        assert_eq!(ordered.collect::<Vec<_>>(), checkpoint);
        assert!(unpermute_rope_rows(&permuted, 2, 4, 3).is_err());
        assert!(unpermute_rope_rows(&permuted, usize::MAX, 4, 3).is_err());
    }
}
