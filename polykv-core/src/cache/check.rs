//! Checks that the evictions of a prompt can be carried out.

use super::Spans;
use crate::facts::{LayerFacts, ModelFacts};
use crate::phase::Phase;
use crate::plan::{Eviction, LayerEvictions, Resolved};
use crate::{Error, Result};

impl Resolved {
    /// Checks that every budget holds the positions of `spans` beside what the layer's policy protects.
    ///
    /// # Errors
    /// A budget that is too small, of kind [`ErrorKind::Budget`](crate::ErrorKind::Budget). The error names the layer, its
    /// budget and the least budget.
    pub fn check_spans(&self, spans: &Spans) -> Result<()> {
        self.each(|phase, layer, rules, eviction| {
            let Eviction { policy, budget } = eviction;
            let least = rules.protected(eviction, spans, self.tokens);
            if least <= *budget {
                return Ok(());
            }
            let others = match spans.count() {
                0 => String::new(),
                count => format!("{count} protected positions and "),
            };
            let allowed = format!(
                "at least {least}, {others}what policy {} protects",
                policy.name()
            );
            let field = format!("{phase} budget of layer {layer}");
            Err(Error::budget(field, budget, allowed))
        })
    }

    fn each(
        &self,
        mut check: impl FnMut(Phase, usize, &LayerEvictions, &Eviction) -> Result<()>,
    ) -> Result<()> {
        for (layer, rules) in self.layers.iter().enumerate() {
            for phase in Phase::BOTH {
                if let Some(eviction) = rules.of(phase) {
                    check(phase, layer, rules, eviction)?;
                }
            }
        }
        Ok(())
    }
}

impl ModelFacts {
    /// Checks that scale, soft-cap and windows are in range, and that the policies of every layer get what they need of the
    /// model.
    pub(super) fn check(&self, resolved: &Resolved) -> Result<()> {
        for (name, value) in [("scale", self.scale), ("soft-cap", self.softcap)] {
            if let Some(value) = value
                && !(value.is_finite() && value > 0.0)
            {
                return Err(Error::invalid("model", name, value, "finite, above 0"));
            }
        }
        if let Some(layer) = self.layers.iter().position(|facts| facts.window == Some(0)) {
            let field = format!("window of layer {layer}");
            return Err(Error::invalid("model", field, 0, "at least 1"));
        }
        resolved.each(|phase, layer, _, eviction| {
            let LayerFacts { rope, output, .. } = self.layer(layer);
            let needs = eviction.policy.needs();
            let missing = match () {
                () if needs.rope && rope.is_none() => "rotary frequencies",
                () if needs.output && output.is_none() => "the output projection's weights",
                () => return Ok(()),
            };
            let name = eviction.policy.name();
            Err(Error::plan(
                format!("{phase} policy of layer {layer}"),
                format!("{name}, which needs {missing} of the model"),
                "a policy without that need, or a model that tells them (KvCache::set_facts)",
            ))
        })
    }
}
