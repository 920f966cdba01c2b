//! Tensors in which checkpoints hold several projections, and the projections in them.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

use crate::config::{Experts, ModelConfig};
use polykv_core::{Error, Result};
use std::ops::Range;

/// A tensor that is some consecutive elements of another one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    pub name: String,
    pub shape: Vec<usize>,
    pub elements: Range<usize>,
}

/// The tensors in the tensor `name` of a checkpoint: itself, or
/// - queries, keys and values one below the other in `qkv_proj`, gate and up projection in `gate_up_proj` (Phi-3);
/// - one projection of all experts in `experts.gate_proj` and its like, as GGUF files have them.
///
/// # Errors
/// A shape that does not hold them. `place` names the file.
pub(crate) fn parts(
    config: &ModelConfig,
    name: String,
    shape: &[usize],
    place: &str,
) -> Result<Vec<Part>> {
    let split = name
        .strip_suffix(".weight")
        .and_then(|name| name.rsplit_once('.'));
    let (queries, keys) = (
        config.heads.saturating_mul(config.head_dim),
        config.kv_heads.saturating_mul(config.head_dim),
    );
    let inner = config.intermediate_size;
    let rows = match split {
        Some((module, "qkv_proj")) => below(
            module,
            [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)],
        ),
        Some((module, "gate_up_proj")) => below(module, [("gate_proj", inner), ("up_proj", inner)]),
        Some((module, projection)) if module.ends_with(".experts") => {
            return experts(
                config.experts.as_ref(),
                (module, projection),
                shape,
                &name,
                place,
            );
        }
        _ => {
            return Ok(vec![Part {
                name,
                shape: shape.to_vec(),
                elements: 0..shape.iter().copied().fold(1, usize::saturating_mul),
            }]);
        }
    };
    let total = rows.iter().map(|(_, rows)| *rows);
    let total = total.fold(0, usize::saturating_add);
    let columns = match *shape {
        [found, columns] if found == total => columns,
        _ => {
            let field = format!("shape of tensor {name}");
            let allowed = format!("{total} rows");
            return Err(Error::invalid(place, field, format!("{shape:?}"), allowed));
        }
    };
    let mut start = 0_usize;
    let part = |(name, rows): (String, usize)| {
        let elements = start..start.saturating_add(rows.saturating_mul(columns));
        start = elements.end;
        Part {
            name,
            shape: vec![rows, columns],
            elements,
        }
    };
    Ok(rows.into_iter().map(part).collect())
}

fn below<const N: usize>(module: &str, parts: [(&str, usize); N]) -> Vec<(String, usize)> {
    let part = |(part, rows)| (format!("{module}.{part}.weight"), rows);
    parts.map(part).into()
}

/// `[experts, out, in]` as one tensor per expert.
fn experts(
    experts: Option<&Experts>,
    (module, projection): (&str, &str),
    shape: &[usize],
    name: &str,
    place: &str,
) -> Result<Vec<Part>> {
    let count = experts.map_or(0, |experts| experts.count);
    let [outputs, inputs] = match *shape {
        [found, outputs, inputs] if found == count => [outputs, inputs],
        _ => {
            let field = format!("shape of tensor {name}");
            let allowed = format!("[{count}, ..]: the projections of {count} experts");
            return Err(Error::invalid(place, field, format!("{shape:?}"), allowed));
        }
    };
    let size = outputs.saturating_mul(inputs);
    let part = |expert: usize| Part {
        name: format!("{module}.{expert}.{projection}.weight"),
        shape: vec![outputs, inputs],
        elements: expert.saturating_mul(size)..expert.saturating_add(1).saturating_mul(size),
    };
    Ok((0..count).map(part).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fused_projections_lie_below_each_other() {
        let config = ModelConfig::example();
        let parts = |name: &str, shape: &[usize]| parts(&config, name.into(), shape, "x");
        let found = parts("model.layers.3.self_attn.qkv_proj.weight", &[960, 576]).unwrap();
        let names: Vec<&str> = found.iter().map(|part| part.name.as_str()).collect();
        let name = |part: &str| format!("model.layers.3.self_attn.{part}.weight");
        assert_eq!(names, [name("q_proj"), name("k_proj"), name("v_proj")]);
        assert_eq!(found[1].shape, [192, 576]);
        assert_eq!(found[1].elements, 576 * 576..768 * 576);
        assert_eq!(found[2].elements.end, 960 * 576);
        let error = parts("a.mlp.gate_up_proj.weight", &[3071, 576]).unwrap_err();
        assert!(error.to_string().contains("3072 rows"), "{error}");
        assert!(parts("a.mlp.experts.up_proj.weight", &[4, 8, 16]).is_err());
        let whole = parts("model.norm.weight", &[576]).unwrap();
        assert_eq!((whole.len(), whole[0].elements.clone()), (1, 0..576));
    }

    #[test]
    fn each_expert_has_a_tensor() {
        let config = ModelConfig {
            experts: Some(Experts {
                count: 4,
                used: 2,
                intermediate_size: 8,
                normalize: true,
            }),
            ..ModelConfig::example()
        };
        let name = "a.mlp.experts.up_proj.weight".to_owned();
        let found = parts(&config, name, &[4, 8, 16], "x").unwrap();
        assert_eq!(found.len(), 4);
        assert_eq!(found[2].name, "a.mlp.experts.2.up_proj.weight");
        assert_eq!(
            (found[2].shape.as_slice(), found[2].elements.clone()),
            (&[8, 16][..], 256..384)
        );
    }
}
