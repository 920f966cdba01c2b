//! The memory that requests set aside before they begin.

use super::request::{Request, RequestId};
use crate::causal_lm::CausalLm;
use polykv_core::Result;
use polykv_core::ops::is_cpu;
use std::collections::BTreeMap;

/// Bytes that a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Need {
    /// Until its prompt has run.
    pub prompt: u64,
    /// After that, for all its answers.
    pub steady: u64,
}

/// The bytes of `request`: keys and values as its plan bounds them, statistics, and the hidden states of its prompt.
///
/// # Errors
/// A plan that cannot be carried out for the prompt.
pub(super) fn need(model: &dyn CausalLm, request: &Request, chunk: usize) -> Result<Need> {
    let (config, shape) = (model.config(), model.cache_shape(1));
    // A sequence that goes on needs at most what it would need from the start.
    let before = request.after.as_ref().map_or(0, |held| held.cache.seen());
    let tokens = request.prompt.len().saturating_add(before);
    let room = config.max_positions.saturating_sub(tokens);
    let coming = match request.options.packed {
        true => request.options.max_new_tokens,
        false => request.options.max_new_tokens.min(room),
    };
    let estimate = request
        .plan
        .estimate(tokens, coming, &model.cache_cost(1))?;
    let seen = tokens.saturating_add(coming);
    let aux = request.plan.aux_estimate(&estimate.kept, seen, shape);
    // Its own, and what the chunk at hand becomes on its way through a layer.
    let states = request.prompt.len().saturating_add(chunk);
    let hidden = [states, config.hidden_size, size_of::<f32>()];
    let hidden = hidden.into_iter().fold(1, usize::saturating_mul);
    let all = |parts: &[usize]| -> u64 {
        parts
            .iter()
            .fold(0u64, |all, &part| all.saturating_add(part as u64))
    };
    let answers = match is_cpu(model.device()) {
        true => estimate.of_copies(request.choices),
        false => estimate.steady_bytes.saturating_mul(request.choices),
    };
    let steady = all(&[answers, aux.saturating_mul(request.choices)]);
    let before = request.after.as_ref().filter(|_| request.keep);
    let before = before.map_or(0, |held| held.bytes());
    let prompt = all(&[estimate.peak_bytes, aux, hidden]).saturating_add(before);
    Ok(Need {
        prompt: prompt.max(steady),
        steady,
    })
}

/// What is set aside, and how much there is.
#[derive(Debug)]
pub(super) struct Room {
    limit: Option<u64>,
    taken: BTreeMap<RequestId, u64>,
    /// What the engine's caller holds.
    aside: u64,
}

impl Room {
    pub fn new(limit: Option<u64>) -> Self {
        Self {
            limit,
            taken: BTreeMap::new(),
            aside: 0,
        }
    }

    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// What there is beside what the engine's caller holds.
    pub fn beside_aside(&self) -> Option<u64> {
        Some(self.limit?.saturating_sub(self.aside))
    }

    pub fn taken(&self) -> u64 {
        let taken = self.taken.values().copied();
        taken.fold(self.aside, u64::saturating_add)
    }

    pub fn set_aside(&mut self, bytes: u64) {
        self.aside = bytes;
    }

    pub fn fits(&self, bytes: u64) -> bool {
        self.limit
            .is_none_or(|limit| self.taken().saturating_add(bytes) <= limit)
    }

    /// Sets `bytes` aside for a request, in place of what was set aside for it.
    pub fn take(&mut self, id: RequestId, bytes: u64) {
        self.taken.insert(id, bytes);
    }

    pub fn free(&mut self, id: RequestId) {
        self.taken.remove(&id);
    }
}
