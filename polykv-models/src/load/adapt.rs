//! Hugging Face checkpoints of families that name or store tensors in their own way.

use crate::config::{Family, ModelConfig};
use crate::parts::parts;
use crate::stored::Stored;
use burn::tensor::{DType, TensorData};
use polykv_core::Result;
use std::sync::Arc;

/// The text model's tensors of a checkpoint, one per projection, whose norms have gains that are factors.
///
/// # Errors
/// A fused tensor whose shape does not fit.
pub(super) fn adapt(config: &ModelConfig, tensors: Vec<Stored>) -> Result<Vec<Stored>> {
    let gemma = matches!(config.family, Family::Gemma2 | Family::Gemma3);
    let mut adapted = Vec::with_capacity(tensors.len());
    for mut tensor in tensors {
        let Some(name) = text_name(&tensor.name) else {
            continue;
        };
        tensor.name = name;
        if gemma && tensor.name.ends_with("norm.weight") {
            tensor = one_more(tensor);
        }
        adapted.extend(apart(config, tensor)?);
    }
    Ok(adapted)
}

/// The name of a tensor in a model for text alone. `None` for what models with images have beside it.
fn text_name(name: &str) -> Option<String> {
    let inner = name.strip_prefix("model.").unwrap_or(name);
    if ["vision_tower.", "multi_modal_projector."]
        .iter()
        .any(|other| inner.starts_with(other))
    {
        return None;
    }
    // `language_model.model.norm.weight` in older checkpoints, `model.language_model.norm.weight` in newer ones.
    Some(match inner.strip_prefix("language_model.") {
        Some(text) if inner.len() < name.len() => format!("model.{text}"),
        Some(text) => text.to_owned(),
        None => name.to_owned(),
    })
}

/// Gemma's checkpoints hold what gains are above one.
fn one_more(tensor: Stored) -> Stored {
    let (name, place) = (tensor.name.clone(), tensor.place().to_owned());
    let shape = tensor.shape.clone();
    let read = move || {
        let data = tensor.data()?.convert_dtype(DType::F32);
        let gains: Vec<f32> = data.iter::<f32>().map(|gain| 1.0 + gain).collect();
        Ok(TensorData::new(gains, tensor.shape.clone()))
    };
    Stored::new(name, DType::F32, shape, &place, read)
}

fn apart(config: &ModelConfig, tensor: Stored) -> Result<Vec<Stored>> {
    let parts = parts(
        config,
        tensor.name.clone(),
        tensor.shape.as_slice(),
        tensor.place(),
    )?;
    if let [_] = parts.as_slice() {
        return Ok(vec![tensor]);
    }
    let whole = Arc::new(tensor);
    Ok(parts
        .into_iter()
        .map(|part| Stored::part(&whole, part))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models_with_images() {
        let name = |name| text_name(name).unwrap();
        for same in ["model.norm.weight", "lm_head.weight"] {
            assert_eq!(name(same), same);
        }
        assert_eq!(
            name("language_model.model.norm.weight"),
            "model.norm.weight"
        );
        assert_eq!(name("language_model.lm_head.weight"), "lm_head.weight");
        assert_eq!(
            name("model.language_model.norm.weight"),
            "model.norm.weight"
        );
        for other in ["vision_tower.a.weight", "model.multi_modal_projector.a"] {
            assert_eq!(text_name(other), None);
        }
    }
}
