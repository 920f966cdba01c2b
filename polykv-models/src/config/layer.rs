//! What differs from layer to layer.

use super::checks::{MAX_POSITIONS, check_positive, check_size};
use super::{ModelConfig, RopeConfig};
use polykv_core::{Error, Result};

/// What one layer is like, where the layers of a model differ.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerConfig {
    /// The rotary embedding of queries and keys; `None` in layers without positions (NoPE).
    pub rope: Option<RopeConfig>,
    /// How many tokens a query attends to, itself included and the latest before it (sliding-window attention); `None`
    /// means all.
    pub window: Option<usize>,
    /// Whether the feed-forward network is a mixture of experts, see [`ModelConfig::experts`].
    pub sparse: bool,
}

/// A mixture of experts (MoE): feed-forward networks of which each token takes few.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// How many there are in a layer.
    pub count: usize,
    /// How many of them a token takes: those with the largest softmax of the router's logits.
    pub used: usize,
    /// Width of each.
    pub intermediate_size: usize,
    /// Whether the weights of those that a token takes are divided by their sum.
    pub normalize: bool,
}

impl LayerConfig {
    /// A layer that attends to everything, rotates whole heads without scaling, and has a dense feed-forward network.
    #[must_use]
    pub fn plain(rope_theta: f64, head_dim: usize) -> Self {
        Self {
            rope: Some(RopeConfig::new(rope_theta, head_dim)),
            window: None,
            sparse: false,
        }
    }

    pub(super) fn validate(&self, place: &str, config: &ModelConfig) -> Result<()> {
        if let Some(window) = self.window {
            check_size(place, "sliding_window", window, MAX_POSITIONS)?;
        }
        if self.sparse && config.experts.is_none() {
            let allowed = "present, since layers have experts";
            return Err(Error::invalid(place, "num_experts", "missing", allowed));
        }
        let Some(rope) = &self.rope else {
            return Ok(());
        };
        check_positive(place, "rope_theta", rope.theta, 1e12)?;
        if !rope.rotated.is_multiple_of(2) || rope.rotated == 0 || rope.rotated > config.head_dim {
            let allowed = format!("an even number, 2 to head_dim, {}", config.head_dim);
            let field = "rotated elements of a head";
            return Err(Error::invalid(place, field, rope.rotated, allowed));
        }
        rope.validate(place)
    }
}

impl Experts {
    pub(super) fn validate(&self, place: &str) -> Result<()> {
        check_size(place, "num_experts", self.count, 1024)?;
        check_size(place, "num_experts_per_tok", self.used, self.count)?;
        check_size(
            place,
            "moe_intermediate_size",
            self.intermediate_size,
            1 << 22,
        )
    }
}
