use crate::plan::{LayerRange, Plan};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How a range of layers divides its budgets over the KV heads, as a plan file states it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FileHeads {
    /// The layers.
    pub layers: LayerRange,
    /// A part for each KV head, relative to those of the layer's other heads.
    pub parts: Vec<f64>,
}

/// The divisions of the layers as a file states them.
pub(super) fn of(plan: &Plan) -> Vec<FileHeads> {
    let mut all: Vec<FileHeads> = Vec::new();
    for (layer, own) in plan.layers.iter().enumerate() {
        let Some(parts) = &own.heads else { continue };
        match all.last_mut() {
            Some(last)
                if last.parts.as_slice() == &**parts
                    && last.layers.last.saturating_add(1) == layer =>
            {
                last.layers.last = layer;
            }
            _ => all.push(FileHeads {
                layers: LayerRange {
                    first: layer,
                    last: layer,
                },
                parts: parts.to_vec(),
            }),
        }
    }
    all
}

/// States the divisions of the layers in a plan.
///
/// # Errors
/// Layers beyond the last, and a layer that is named twice.
pub(super) fn build(stated: &[FileHeads], plan: &mut Plan) -> Result<()> {
    let count = plan.layers.len();
    for (index, FileHeads { layers, parts }) in stated.iter().enumerate() {
        let field = format!("heads[{index}].layers");
        if layers.last >= count {
            let allowed = format!("layers 0 to {}", count.saturating_sub(1));
            return Err(Error::plan(field, layers, allowed));
        }
        let own = plan.layers.iter_mut().enumerate();
        for (layer, own) in own.skip(layers.first).take(layers.count()) {
            if own.heads.replace(parts.as_slice().into()).is_some() {
                let found = format!("{layers}, which repeats layer {layer}");
                return Err(Error::plan(field, found, "each layer at most once"));
            }
        }
    }
    Ok(())
}
