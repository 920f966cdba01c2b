//! What differs from layer to layer in a GGUF file's model.

use super::config::key;
use super::{GgufFile, Value};
use crate::config::{Family, LayerConfig, RopeConfig};
use polykv_core::{Error, Result};

/// What says which layers have a window.
const PATTERN: &str = "attention.sliding_window_pattern";

impl GgufFile {
    /// The layers, whose number has been checked. `rope` is the embedding of those that see every token.
    pub(super) fn layers(
        &self,
        family: Family,
        count: usize,
        rope: RopeConfig,
        context: usize,
    ) -> Result<Vec<LayerConfig>> {
        let window = self.window(family, context)?;
        let local = match window {
            Some(_) => self.local_layers(family, count)?,
            None => vec![false; count],
        };
        let local_rope = match family {
            Family::Gemma3 => self.local_rope(&rope)?,
            _ => rope.clone(),
        };
        let layer = |(layer, local): (usize, bool)| LayerConfig {
            rope: match family {
                // As llama.cpp has it: files do not say so.
                Family::SmolLm3 if layer.saturating_add(1).is_multiple_of(4) => None,
                _ if local => Some(local_rope.clone()),
                _ => Some(rope.clone()),
            },
            // One that holds the whole context hides nothing.
            window: window.filter(|window| local && *window < context),
            // Experts have a router.
            sparse: self
                .tensor(&format!("blk.{layer}.ffn_gate_inp.weight"))
                .is_some(),
        };
        Ok(local.into_iter().enumerate().map(layer).collect())
    }

    /// The window of layers that have one; 0 stands for none.
    fn window(&self, family: Family, context: usize) -> Result<Option<usize>> {
        let window_key = key(family, "attention.sliding_window");
        let stated = match self.uint(&window_key)? {
            Some(_) => Some(self.size(&window_key)?),
            None => (family == Family::Gemma2).then_some(4096),
        };
        let window = stated.filter(|window| *window > 0);
        match (family, window) {
            // Converters do not write it for these, so nobody says which layers it would be in.
            (Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe | Family::SmolLm3, Some(window))
                if window < context =>
            {
                Err(Error::unsupported(
                    format!("{window_key} {window}"),
                    format!(
                        "{}: allowed is a window of at least the context, {context}",
                        self.place()
                    ),
                ))
            }
            _ => Ok(window),
        }
    }

    /// Which layers have a window.
    fn local_layers(&self, family: Family, count: usize) -> Result<Vec<bool>> {
        let pattern = key(family, PATTERN);
        // Every so many layers, counted from 1, one sees every token.
        let period = match (self.value(&pattern), family) {
            (Some(Value::Array(layers)), _) => {
                let read = |value: &Value| match value {
                    Value::Bool(local) => Some(*local),
                    other => other.as_u64().map(|local| local != 0),
                };
                let local: Option<Vec<bool>> = layers.iter().map(read).collect();
                let local = local.filter(|local| local.len() == count);
                let allowed = format!("{count} of true and false, or a number");
                return local.ok_or_else(|| self.refuse(&pattern, layers.len(), &allowed));
            }
            (Some(_), _) => self.size(&pattern)?,
            (None, Family::Gemma2) => 2,
            (None, Family::Gemma3) => 6,
            (None, _) => 0,
        };
        Ok((1..=count)
            .map(|layer| period == 0 || !layer.is_multiple_of(period))
            .collect())
    }

    /// Gemma 3 rotates by a base of its own in layers with a window, and scales that of the others only.
    fn local_rope(&self, rope: &RopeConfig) -> Result<RopeConfig> {
        let theta = self.number(&key(Family::Gemma3, "rope.freq_base_swa"))?;
        Ok(RopeConfig::new(theta.unwrap_or(10_000.0), rope.rotated))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::tiny_llama;
    use super::*;

    #[test]
    fn a_window_is_that_of_every_layer_unless_it_holds_the_context() {
        let windows = |value| {
            let file = tiny_llama().value("llama.attention.sliding_window", &value);
            file.open().config().unwrap().windows()
        };
        assert_eq!(windows(Value::Uint(64)), [Some(64)]);
        for all in [0, 128, 1 << 20] {
            assert_eq!(windows(Value::Uint(all)), [None]);
        }
    }

    #[test]
    fn a_pattern_says_which_layers_have_a_window() {
        let windows = |pattern: Value| {
            let file = tiny_llama()
                .value("llama.attention.sliding_window", &Value::Uint(64))
                .replace("llama.block_count", &Value::Uint(3))
                .value("llama.attention.sliding_window_pattern", &pattern);
            file.open().config().map(|config| config.windows())
        };
        let some = Some(64);
        assert_eq!(windows(Value::Uint(2)).unwrap(), [some, None, some]);
        let list = |local: &[bool]| Value::Array(local.iter().copied().map(Value::Bool).collect());
        let found = windows(list(&[false, true, true])).unwrap();
        assert_eq!(found, [None, some, some]);
        let message = windows(list(&[true])).unwrap_err().to_string();
        assert!(message.contains("3 of true and false"), "{message}");
    }
}
