//! Running a prompt for all plans, and what follows it for each.

use super::{Scores, metrics};
use crate::tokenizer::Specials;
use crate::{LoadedModel, PrefillOptions};
use burn::tensor::{Device, Int, Tensor, TensorData};
use polykv_core::{
    Budget, CacheReport, Error, KvCache, Phase, Plan, Result, Rule, SharedPrefill, ops,
};
use serde::{Deserialize, Serialize};

/// Tokens per pass over a compressed cache; bounds the logits held at once.
const PIECE: usize = 128;

/// A plan under a name.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub name: String,
    pub plan: Plan,
}

/// What a summary must know of a plan; small enough to be stored beside predictions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanInfo {
    pub name: String,
    pub hash: String,
    /// Whether one and the same policy rules all layers, in one phase or in both: what other plans are compared with.
    pub single: bool,
    /// None if everything is kept.
    pub budget: Option<Budget>,
}

impl Candidate {
    pub fn info(&self) -> PlanInfo {
        let phases = [Phase::Prefill, Phase::Decode];
        let phases = phases.map(|phase| self.plan.rules(phase));
        let mut rules = phases.iter().flat_map(|rules| rules.iter());
        let evicting = rules.find(|rule| rule.policy != "full");
        let single = evicting.is_some_and(|first| {
            phases.iter().all(|rules| {
                let full = rules.iter().all(|rule| rule.policy == "full");
                let same = |rule: &Rule| rule.policy == first.policy && rule.params == first.params;
                full || rules.iter().all(same)
            })
        });
        PlanInfo {
            name: self.name.clone(),
            hash: self.plan.hash(),
            single,
            budget: evicting.map(|_| self.plan.budget),
        }
    }
}

/// A model with the plans to compare.
#[derive(Debug)]
pub struct Evaluator<'a> {
    model: &'a LoadedModel,
    candidates: Vec<Candidate>,
    chunk: usize,
}

/// A prompt that has run.
#[derive(Debug)]
pub struct Prompted {
    /// Logits of the first token after the prompt, the same for all plans.
    pub next: Vec<f32>,
    /// One compressed cache per plan.
    pub caches: Vec<KvCache>,
}

impl<'a> Evaluator<'a> {
    /// FullKV comes first, under the name `full`, beside `plans`.
    ///
    /// # Errors
    /// A plan for another model, and a name given twice.
    pub fn new(model: &'a LoadedModel, plans: Vec<Candidate>) -> Result<Self> {
        let config = model.model.config();
        let mut candidates = vec![Candidate {
            name: "full".into(),
            plan: Plan::full(config.layers),
        }];
        for candidate in plans {
            let name = &candidate.name;
            candidate
                .plan
                .check_model(name, config.layers, &config.fingerprint())?;
            if candidates.iter().any(|other| other.name == *name) {
                let allowed = "a name for each plan";
                return Err(Error::invalid(
                    "plans",
                    "name",
                    format!("'{name}' twice"),
                    allowed,
                ));
            }
            candidates.push(candidate);
        }
        Ok(Self {
            model,
            candidates,
            chunk: PrefillOptions::CHUNK,
        })
    }

    pub fn model(&self) -> &LoadedModel {
        self.model
    }

    pub fn device(&self) -> &Device {
        self.model.model.device()
    }

    /// FullKV and the plans.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// What is to be known of FullKV and the plans after the run.
    pub fn plans(&self) -> Vec<PlanInfo> {
        self.candidates.iter().map(Candidate::info).collect()
    }

    /// Whether every plan can be carried out for a prompt.
    ///
    /// # Errors
    /// What [`Plan::resolve`] refuses, with the plan's name.
    pub fn check(&self, prompt_tokens: usize) -> Result<()> {
        let shape = self.model.model.cache_shape(1);
        for Candidate { name, plan } in &self.candidates {
            plan.resolve(name, prompt_tokens, shape.cost(plan.layers))?;
        }
        Ok(())
    }

    /// Runs a prompt once and compresses it under every plan.
    ///
    /// # Errors
    /// What the model and the plans refuse.
    pub fn prefill(&self, prompt: &[u32]) -> Result<Prompted> {
        let model = &self.model.model;
        let plans = self.candidates.iter().map(|own| own.plan.clone()).collect();
        let mut shared = SharedPrefill::new(plans, model.cache_shape(1), model.device())?;
        let mut options = self.options();
        let next = model.prefill(self.ids(prompt), &mut shared, &mut options)?;
        Ok(Prompted {
            next: read(next)?,
            caches: shared.finish(),
        })
    }

    /// Runs one token; the plan's decode rule acts. Returns the logits of the next one.
    ///
    /// # Errors
    /// What the cache refuses; the model's context; a NaN score.
    pub fn step(&self, cache: &mut KvCache, token: u32) -> Result<Vec<f32>> {
        let logits = self.model.model.decode(self.ids(&[token]), cache)?;
        let logits = read(logits)?;
        cache.check()?;
        Ok(logits)
    }

    /// Runs tokens after what the cache holds and gives the logits after each of them to `each`: token by token with
    /// eviction if `decode`, else together over the compressed cache, which then evicts nothing.
    ///
    /// # Errors
    /// What the model refuses, and those of `each`.
    pub fn feed(
        &self,
        cache: &mut KvCache,
        tokens: &[u32],
        decode: bool,
        each: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        if decode {
            for (index, &token) in tokens.iter().enumerate() {
                each(index, &self.step(cache, token)?)?;
            }
            return Ok(());
        }
        let vocab = self.model.model.config().vocab_size;
        for (piece, tokens) in tokens.chunks(PIECE).enumerate() {
            let mut options = self.options();
            let mut cache = cache.untrimmed();
            let logits = self
                .model
                .model
                .logits(self.ids(tokens), &mut cache, &mut options)?;
            for (index, row) in read(logits)?.chunks_exact(vocab).enumerate() {
                each(piece * PIECE + index, row)?;
            }
        }
        Ok(())
    }

    /// The most likely tokens one by one after a cache whose last logits are `next`, at most `most`, up to the first of
    /// `stops`.
    ///
    /// # Errors
    /// As [`Evaluator::step`]; NaN in logits.
    pub fn greedy(
        &self,
        next: &[f32],
        cache: &mut KvCache,
        most: usize,
        stops: &[u32],
    ) -> Result<Vec<u32>> {
        let mut tokens = Vec::new();
        if most == 0 {
            return Ok(tokens);
        }
        let mut token = metrics::most_likely(next)?;
        while !stops.contains(&token) {
            tokens.push(token);
            if tokens.len() == most {
                break;
            }
            token = metrics::most_likely(&self.step(cache, token)?)?;
        }
        Ok(tokens)
    }

    /// The token that a line break ends with, if the tokenizer knows one.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub(super) fn newline(&self) -> Result<Option<u32>> {
        let ids = self.model.tokenizer.encode("\n", Specials::AsText)?;
        Ok(ids.last().copied())
    }

    /// The negative log-likelihood of each of `tokens` after a cache whose last logits are `next`.
    ///
    /// # Errors
    /// As [`Evaluator::feed`]; NaN in logits.
    pub fn nlls(
        &self,
        next: &[f32],
        cache: &mut KvCache,
        tokens: &[u32],
        decode: bool,
    ) -> Result<Vec<f64>> {
        let Some((&first, rest)) = tokens.split_first() else {
            return Ok(Vec::new());
        };
        let mut nlls = vec![metrics::nll(next, first)?];
        // The last token is not run: nothing is asked about what comes after it.
        let run = &tokens[..rest.len()];
        self.feed(cache, run, decode, &mut |index, row| {
            nlls.push(metrics::nll(row, rest[index])?);
            Ok(())
        })?;
        Ok(nlls)
    }

    fn options(&self) -> PrefillOptions<'static> {
        PrefillOptions {
            chunk: self.chunk,
            ..PrefillOptions::default()
        }
    }

    fn ids(&self, ids: &[u32]) -> Tensor<2, Int> {
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let dims = [1, ids.len()];
        Tensor::from_data(TensorData::new(ids, dims), self.device())
    }
}

/// What a compressed cache holds: `kept`, entries per layer and KV head, and `kv_bytes`, over all layers.
pub(super) fn memory(report: &CacheReport) -> Scores {
    Scores::from([
        ("kept".into(), report.kept_mean()),
        ("kv_bytes".into(), report.bytes as f64),
    ])
}

fn read<const D: usize>(logits: Tensor<D>) -> Result<Vec<f32>> {
    logits.try_into_vec_as().map_err(ops::read_error)
}
