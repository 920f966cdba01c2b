//! What differs from layer to layer.

use super::super::checks::check_size;
use super::super::fields::{Fields, shown};
use super::super::{LayerConfig, RopeConfig};
use super::{Family, MISTRAL};
use polykv_core::{Error, Result};

/// The layers: windows, rotary embeddings (`ropes` are those of layers that see every token and of those with a window)
/// and experts.
pub(super) fn read(
    json: &Fields,
    architecture: &str,
    family: Family,
    count: usize,
    [full, sliding]: [RopeConfig; 2],
    context: usize,
) -> Result<Vec<LayerConfig>> {
    let rotated = rotated_layers(json, family, count)?;
    let sparse = sparse_layers(json, family, count)?;
    let local = local_layers(json, family, &rotated)?;
    let window = window(json, architecture, family)?;
    if let (None, Some(layer)) = (window, local.iter().position(|local| *local))
        && json.get("layer_types").is_some()
    {
        let allowed = format!("a number, since layer {layer} is sliding_attention");
        return Err(Error::invalid(
            json.place,
            "sliding_window",
            "missing",
            allowed,
        ));
    }
    // A window that holds the whole context hides nothing.
    let window = window.filter(|window| *window < context);
    let layers = local.into_iter().zip(rotated).zip(sparse);
    let layer = |((local, rotated), sparse): ((bool, bool), bool)| {
        let rope = if local { &sliding } else { &full };
        LayerConfig {
            rope: rotated.then(|| rope.clone()),
            window: window.filter(|_| local),
            sparse,
        }
    };
    Ok(layers.map(layer).collect())
}

/// The window of layers that have one. Null means none; without the field it is what transformers takes.
fn window(json: &Fields, architecture: &str, family: Family) -> Result<Option<usize>> {
    let flagged = matches!(
        family,
        Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe | Family::SmolLm3
    );
    if !json.flag("use_sliding_window")?.unwrap_or(!flagged) {
        return Ok(None);
    }
    let default = match family {
        Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe => Some(4096),
        Family::Gemma2 | Family::Gemma3 => Some(4096),
        Family::Llama if architecture == MISTRAL => Some(4096),
        Family::Llama | Family::Phi3 | Family::SmolLm3 => None,
    };
    match json.map.contains_key("sliding_window") {
        true => json.size("sliding_window"),
        false => Ok(default),
    }
}

/// Which layers have a window, if the model has one.
fn local_layers(json: &Fields, family: Family, rotated: &[bool]) -> Result<Vec<bool>> {
    let count = rotated.len();
    if let Some(kinds) = json.texts("layer_types")? {
        check_count(json, "layer_types", kinds.len(), count)?;
        let local = |kind: &str| match kind {
            "full_attention" => Ok(false),
            "sliding_attention" => Ok(true),
            other => Err(Error::unsupported(
                format!("layer_types {}", shown(other)),
                format!(
                    "{}: allowed are full_attention and sliding_attention",
                    json.place
                ),
            )),
        };
        return kinds.into_iter().map(local).collect();
    }
    // Every so many layers, counted from 1, one sees every token.
    let all_but_every = |period: usize| {
        let local = |layer: usize| !is_last_of(layer, period);
        (0..count).map(local).collect()
    };
    Ok(match family {
        Family::Llama | Family::Phi3 | Family::Qwen3Moe => vec![true; count],
        Family::Qwen2 | Family::Qwen3 => {
            let first = json.size("max_window_layers")?.unwrap_or(28);
            (0..count).map(|layer| layer >= first).collect()
        }
        Family::Gemma2 => all_but_every(2),
        Family::Gemma3 => all_but_every(period(json, "sliding_window_pattern", 6)?),
        Family::SmolLm3 => rotated.iter().map(|rotated| !rotated).collect(),
    })
}

/// Which layers rotate queries and keys.
fn rotated_layers(json: &Fields, family: Family, count: usize) -> Result<Vec<bool>> {
    if family != Family::SmolLm3 {
        return Ok(vec![true; count]);
    }
    // Despite the name, 1 stands for a layer with a rotary embedding.
    if let Some(rotated) = json.sizes("no_rope_layers")? {
        check_count(json, "no_rope_layers", rotated.len(), count)?;
        return Ok(rotated.into_iter().map(|rotated| rotated != 0).collect());
    }
    let period = period(json, "no_rope_layer_interval", 4)?;
    let rotated = |layer: usize| !is_last_of(layer, period);
    Ok((0..count).map(rotated).collect())
}

/// Which layers have experts.
fn sparse_layers(json: &Fields, family: Family, count: usize) -> Result<Vec<bool>> {
    if family != Family::Qwen3Moe {
        return Ok(vec![false; count]);
    }
    let period = period(json, "decoder_sparse_step", 1)?;
    let dense = json.sizes("mlp_only_layers")?.unwrap_or_default();
    let sparse = |layer: usize| is_last_of(layer, period) && !dense.contains(&layer);
    Ok((0..count).map(sparse).collect())
}

fn period(json: &Fields, key: &str, default: usize) -> Result<usize> {
    let found = json.size(key)?.unwrap_or(default);
    check_size(json.place, key, found, 1024)?;
    Ok(found)
}

fn check_count(json: &Fields, field: &str, found: usize, layers: usize) -> Result<()> {
    match found == layers {
        true => Ok(()),
        false => {
            let field = format!("length of {field}");
            let allowed = format!("{layers}, num_hidden_layers");
            Err(Error::invalid(json.place, field, found, allowed))
        }
    }
}

/// Whether a layer is the last of every `period` layers, counted from the first.
fn is_last_of(layer: usize, period: usize) -> bool {
    layer.saturating_add(1).is_multiple_of(period)
}
