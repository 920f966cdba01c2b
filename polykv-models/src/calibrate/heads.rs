//! What repeating the examples attends to, as the teacher of budgets of KV heads.

use super::Example;
use crate::LoadedModel;
use crate::causal_lm::PrefillOptions;
use burn::tensor::Tensor;
use polykv_core::calibrate::contest;
use polykv_core::device::run_on;
use polykv_core::ops::{self, AttentionBlock};
use polykv_core::policy::{Appended, KvZip, LayerView, Needs, Params, Protect, State};
use polykv_core::{Budget, Codes, Error, KvCache, Phase, Plan, Policy, Result};
use std::sync::{Arc, Mutex};

/// [`KvZip`], which notes the scores of each layer's heads.
#[derive(Debug)]
struct Teacher {
    policy: KvZip,
    /// `[layer][head][entry]`
    scores: Mutex<Vec<Vec<Vec<f32>>>>,
}

impl Teacher {
    fn new() -> Self {
        // What a question at the end looks at is no matter of the heads.
        let policy = KvZip {
            window: 0,
            ..KvZip::default()
        };
        let scores = Mutex::default();
        Self { policy, scores }
    }
}

impl Policy for Teacher {
    fn name(&self) -> &str {
        "teacher"
    }

    fn params(&self) -> Params {
        self.policy.params()
    }

    fn needs(&self) -> Needs {
        self.policy.needs()
    }

    fn protect(&self, budget: usize) -> Protect {
        self.policy.protect(budget)
    }

    fn append(&self, state: &mut State, appended: &Appended) -> Result<()> {
        self.policy.append(state, appended)
    }

    fn observe_repetition(&self, state: &mut State, block: &AttentionBlock) -> Result<()> {
        self.policy.observe_repetition(state, block)
    }

    fn score(&self, state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        let scores = self.policy.score(state, view)?;
        let [_, kv_heads, entries] = scores.dims();
        // What is protected is always among the best.
        let mask = view.protected.mask(view.positions.clone());
        let best = scores.clone().mask_fill(mask, f32::MAX);
        let best: Vec<f32> = best.try_into_vec_as().map_err(ops::read_error)?;
        let heads = best.chunks(entries.max(1)).take(kv_heads);
        let lost = |_| Error::Failed("scores of a layer that failed".into());
        let mut all = self.scores.lock().map_err(lost)?;
        all.push(heads.map(<[f32]>::to_vec).collect());
        Ok(scores)
    }
}

/// The entries that all KV heads of all layers keep together of a prompt of `tokens` tokens under a budget, where layers keep
/// their entries in codes or not.
///
/// # Errors
/// A budget that is less than what is protected.
pub fn total(
    model: &LoadedModel,
    tokens: usize,
    budget: Budget,
    kv: Option<Codes>,
) -> Result<usize> {
    let lm = &model.model;
    let policy = Arc::new(Teacher::new());
    let mut plan = Plan::uniform(lm.config().layers.len(), policy, budget, &[Phase::Prefill]);
    if let Some(codes) = kv {
        plan = plan.with_kv(codes);
    }
    let resolved = plan.resolve(tokens, &lm.cache_cost(1))?;
    let heads = lm.cache_shape(1).kv_heads;
    Ok(resolved.total(Phase::Prefill).saturating_mul(heads))
}

/// How many entries each KV head of each layer has among the best of an example's prompt under a budget, `[layer][head]`, where
/// layers keep their entries in codes or not.
///
/// # Errors
/// A prompt of fewer than two tokens, a budget that is less than what is protected, and an error of the model.
pub fn counts(
    model: &LoadedModel,
    example: &Example,
    budget: Budget,
    kv: Option<Codes>,
) -> Result<Vec<Vec<usize>>> {
    let lm = &model.model;
    let (layers, shape) = (lm.config().layers.len(), lm.cache_shape(1));
    let teacher = Arc::new(Teacher::new());
    let tokens = example.prompt.len();
    let total = total(model, tokens, budget, kv)?;
    // As much as can be while every layer still scores, so that all scores are of the whole prompt.
    let most = Budget::Tokens(tokens.saturating_sub(1));
    let all = Plan::uniform(layers, teacher.clone(), most, &[Phase::Prefill]);
    let mut cache = KvCache::new(all, shape, lm.device())?;
    let ids = model.ids(&example.prompt);
    run_on(lm.device(), || {
        let mut options = PrefillOptions::default();
        lm.prefill(ids, &mut cache, &mut options).map(drop)
    })?;
    let lost = |_| Error::Failed("scores of a layer that failed".into());
    let scores = teacher.scores.lock().map_err(lost)?;
    match scores.len() == layers {
        true => Ok(contest(&scores, total)),
        false => {
            let allowed = format!("{layers}, the layers: the budget must evict from each");
            let found = scores.len();
            Err(Error::invalid(
                "calibration",
                "layers with scores",
                found,
                allowed,
            ))
        }
    }
}
