use crate::codes::Codes;
use crate::plan::{LayerRange, Plan};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// The codes in which a range of layers keeps its entries, as a plan file states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FileCodes {
    /// The layers.
    pub layers: LayerRange,
    /// How they keep keys and values.
    pub codes: Codes,
}

/// The codes of the layers as a file states them.
pub(super) fn of(plan: &Plan) -> Vec<FileCodes> {
    let mut all: Vec<FileCodes> = Vec::new();
    for (layer, own) in plan.layers.iter().enumerate() {
        let Some(codes) = own.kv else { continue };
        match all.last_mut() {
            Some(last) if last.codes == codes && last.layers.last.saturating_add(1) == layer => {
                last.layers.last = layer;
            }
            _ => all.push(FileCodes {
                layers: LayerRange {
                    first: layer,
                    last: layer,
                },
                codes,
            }),
        }
    }
    all
}

/// States the codes of the layers in a plan.
///
/// # Errors
/// Layers beyond the last, and a layer that is named twice.
pub(super) fn build(stated: &[FileCodes], plan: &mut Plan) -> Result<()> {
    let count = plan.layers.len();
    for (index, FileCodes { layers, codes }) in stated.iter().enumerate() {
        let field = format!("kv[{index}].layers");
        if layers.last >= count {
            let allowed = format!("layers 0 to {}", count.saturating_sub(1));
            return Err(Error::plan(field, layers, allowed));
        }
        let own = plan.layers.iter_mut().enumerate();
        for (layer, own) in own.skip(layers.first).take(layers.count()) {
            if own.kv.replace(*codes).is_some() {
                let found = format!("{layers}, which repeats layer {layer}");
                return Err(Error::plan(field, found, "each layer at most once"));
            }
        }
    }
    Ok(())
}
