//! Running a prompt for all plans, and what follows it for each.

use super::{Scores, metrics};
use crate::tokenizer::Specials;
use crate::{LoadedModel, PrefillOptions};
use burn::tensor::{Device, Int, Tensor, TensorData};
use polykv_core::{Budget, Error, KvCache, Phase, Plan, Result, Rule, SharedPrefill, ops};
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

    /// Runs one of `tokens` after each of `caches`, which have seen equally many; the plans' decode rules act. The weights are
    /// read once for all of them. Returns the logits of the next tokens.
    ///
    /// # Errors
    /// Caches of different lengths; what a cache refuses; a NaN score.
    pub fn step(&self, caches: &mut [&mut KvCache], tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        let model = &self.model.model;
        let seen = caches.first().map_or(0, |cache| cache.seen());
        if let Some(other) = caches.iter().find(|cache| cache.seen() != seen) {
            let found = format!("{} tokens", other.seen());
            return Err(Error::invalid(
                "evaluation",
                "length of a cache",
                found,
                seen,
            ));
        }
        let rope = model.rope(seen..seen + 1);
        let mut x = model.embed(self.ids(tokens).reshape([tokens.len(), 1]));
        for layer in 0..model.config().layers {
            x = model.layer(layer, x, &rope, &mut |q, k, v| {
                let attended = caches.iter_mut().enumerate().map(|(row, cache)| {
                    let [q, k, v] = [&q, &k, &v].map(|all| all.clone().narrow(0, row, 1));
                    cache.decode(layer, q, k, v)
                });
                Ok(Tensor::cat(attended.collect::<Result<Vec<_>>>()?, 0))
            })?;
        }
        let logits = read(model.head(x))?;
        caches.iter_mut().try_for_each(|cache| cache.check())?;
        let rows = logits.chunks_exact(model.config().vocab_size);
        Ok(rows.map(<[f32]>::to_vec).collect())
    }

    /// Runs tokens after what a cache holds, together and without eviction, and gives the logits after each of them to
    /// `each`.
    ///
    /// # Errors
    /// What the model refuses, and those of `each`.
    pub fn feed(
        &self,
        cache: &mut KvCache,
        tokens: &[u32],
        each: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
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

    /// The logits of the next token after each of the caches: those that the prompt left, or what follows `after`, which
    /// evicts nothing.
    ///
    /// # Errors
    /// Those of [`Evaluator::feed`].
    pub(super) fn after(&self, prompted: &mut Prompted, after: &[u32]) -> Result<Vec<Vec<f32>>> {
        let Prompted { next, caches } = prompted;
        let last = |cache| {
            let mut last = next.clone();
            self.feed(cache, after, &mut |_, row| {
                last = row.to_vec();
                Ok(())
            })?;
            Ok(last)
        };
        caches.iter_mut().map(last).collect()
    }

    /// The most likely tokens one by one after each cache, whose last logits are `nexts`: at most `most`, up to the first of
    /// `stops`.
    ///
    /// # Errors
    /// As [`Evaluator::step`]; NaN in logits.
    pub fn greedy(
        &self,
        nexts: &[Vec<f32>],
        caches: &mut [KvCache],
        most: usize,
        stops: &[u32],
    ) -> Result<Vec<Vec<u32>>> {
        let mut answers = vec![Vec::new(); caches.len()];
        let mut open: Vec<(&mut KvCache, usize, u32)> = Vec::new();
        for (plan, (cache, next)) in caches.iter_mut().zip(nexts).enumerate() {
            open.push((cache, plan, metrics::most_likely(next)?));
        }
        for made in 1..=most {
            open.retain(|(_, _, token)| !stops.contains(token));
            for (_, plan, token) in &open {
                answers[*plan].push(*token);
            }
            if open.is_empty() || made == most {
                break;
            }
            let tokens: Vec<u32> = open.iter().map(|own| own.2).collect();
            let mut running: Vec<&mut KvCache> = open.iter_mut().map(|own| &mut *own.0).collect();
            let rows = self.step(&mut running, &tokens)?;
            for (own, row) in open.iter_mut().zip(rows) {
                own.2 = metrics::most_likely(&row)?;
            }
        }
        Ok(answers)
    }

    /// The token that a line break ends with, if the tokenizer knows one.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub(super) fn newline(&self) -> Result<Option<u32>> {
        let ids = self.model.tokenizer.encode("\n", Specials::AsText)?;
        Ok(ids.last().copied())
    }

    /// The negative log-likelihood of each of `tokens` after each cache, whose last logits are `nexts`: token by token with
    /// eviction if `decode`, else together over the compressed cache, which then evicts nothing.
    ///
    /// # Errors
    /// As [`Evaluator::step`] and [`Evaluator::feed`]; NaN in logits.
    pub fn nlls(
        &self,
        nexts: &[Vec<f32>],
        caches: &mut [KvCache],
        tokens: &[u32],
        decode: bool,
    ) -> Result<Vec<Vec<f64>>> {
        let Some((&first, rest)) = tokens.split_first() else {
            return Ok(vec![Vec::new(); caches.len()]);
        };
        let one = |next: &Vec<f32>| Ok(vec![metrics::nll(next, first)?]);
        let mut nlls = nexts.iter().map(one).collect::<Result<Vec<_>>>()?;
        // The last token is not run: nothing is asked about what comes after it.
        let run = &tokens[..rest.len()];
        if decode {
            let mut caches: Vec<&mut KvCache> = caches.iter_mut().collect();
            for (&token, &wanted) in run.iter().zip(rest) {
                let rows = self.step(&mut caches, &vec![token; nexts.len()])?;
                for (own, row) in nlls.iter_mut().zip(&rows) {
                    own.push(metrics::nll(row, wanted)?);
                }
            }
            return Ok(nlls);
        }
        for (own, cache) in nlls.iter_mut().zip(caches) {
            self.feed(cache, run, &mut |index, row| {
                own.push(metrics::nll(row, rest[index])?);
                Ok(())
            })?;
        }
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

impl Prompted {
    /// What each compressed cache holds: `kept`, entries per layer and KV head, and `kv_bytes`, over all layers.
    pub(super) fn held(&self) -> Vec<Scores> {
        let of = |cache: &KvCache| {
            let report = cache.report();
            Scores::from([
                ("kept".into(), report.kept_mean()),
                ("kv_bytes".into(), report.bytes as f64),
            ])
        };
        self.caches.iter().map(of).collect()
    }
}

fn read<const D: usize>(logits: Tensor<D>) -> Result<Vec<f32>> {
    logits.try_into_vec_as().map_err(ops::read_error)
}
