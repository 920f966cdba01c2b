//! Generation beyond the model's context: keys that are kept move to consecutive positions.

use crate::config::{ModelConfig, RopeScaling};
use polykv_core::{Error, KvCache, Result};

/// Checks that keys of the model can be moved to other positions.
///
/// # Errors
/// A model whose frequencies depend on how long the context is.
pub(crate) fn check_packs(config: &ModelConfig) -> Result<()> {
    let layers = config.layers.iter();
    let mut scalings = layers.filter_map(|layer| layer.rope.as_ref().map(|rope| &rope.scaling));
    match scalings.any(|scaling| matches!(scaling, RopeScaling::LongRope { .. })) {
        false => Ok(()),
        true => Err(Error::unsupported(
            "generating beyond the model's context",
            "its rotary frequencies (longrope) depend on the length",
        )),
    }
}

/// Moves keys to consecutive positions if `tokens` more would not fit the context; whether any moved.
pub(crate) fn make_room(cache: &mut KvCache, tokens: usize, context: usize) -> Result<bool> {
    let latest = |cache: &KvCache| cache.next_positions().into_iter().max().unwrap_or(0);
    let next = latest(cache);
    if next == 0 || next.saturating_add(tokens) <= context {
        return Ok(false);
    }
    cache.pack()?;
    Ok(latest(cache) < next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn frequencies_that_depend_on_the_length_are_refused() {
        let check = |name: &str| {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
            let text = std::fs::read_to_string(folder.join(name).join("config.json")).unwrap();
            check_packs(&ModelConfig::from_hf_json(name, &text).unwrap())
        };
        check("tiny-llama31").unwrap();
        let error = check("tiny-phi3").unwrap_err();
        assert!(
            error.is_refusal() && error.to_string().contains("longrope"),
            "{error}"
        );
    }
}
