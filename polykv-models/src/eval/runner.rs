//! Running a prompt for all plans, and what follows it for each.

use super::named::{NamedPlan, PlanInfo};
use super::{Scores, metrics, sample_of};
use crate::causal_lm::PrefillOptions;
use crate::load::LoadedModel;
use crate::rows::{self, decode_rows};
use crate::texts::draw::check_length;
use crate::tokenizer::Specials;
use burn::tensor::{Device, Tensor};
use polykv_core::{At, Error, KvCache, Plan, Prompt, Registry, Result, SharedPrefill, ops};

/// Tokens per pass over a compressed cache.
const PIECE: usize = 128;

/// A model with the plans to compare.
#[derive(Debug)]
pub struct Evaluator<'a> {
    model: &'a LoadedModel,
    plans: Vec<NamedPlan>,
    chunk: usize,
}

/// Takes the logits after a token: the index of the cache, the index of the token, and one number per token of the
/// vocabulary.
pub type EachToken<'a> = dyn FnMut(usize, usize, &[f32]) -> Result<()> + 'a;

/// A prompt that has run.
#[derive(Debug)]
#[non_exhaustive]
pub struct Prompted {
    /// Logits of the first token after the prompt, the same for all plans.
    pub next: Vec<f32>,
    /// One compressed cache per plan.
    pub caches: Vec<KvCache>,
}

impl<'a> Evaluator<'a> {
    /// An evaluator for FullKV, under the name `full`, followed by `plans`.
    ///
    /// # Errors
    /// A plan for another model, and a name given twice.
    pub fn new(model: &'a LoadedModel, plans: Vec<NamedPlan>) -> Result<Self> {
        let layers = model.model.config().layers.len();
        let full = NamedPlan::new("full", Plan::full(layers), &Registry::default());
        let mut all = vec![full];
        for plan in plans {
            let name = &plan.name;
            model.check_layers(&plan.plan).at(name)?;
            if all.iter().any(|other| other.name == *name) {
                let allowed = "a name for each plan";
                let found = format!("'{name}' twice");
                return Err(Error::invalid("plans", "name", found, allowed));
            }
            all.push(plan);
        }
        Ok(Self {
            model,
            plans: all,
            chunk: PrefillOptions::CHUNK,
        })
    }

    /// The model.
    pub fn model(&self) -> &LoadedModel {
        self.model
    }

    /// The device that the model runs on.
    pub fn device(&self) -> &Device {
        self.model.model.device()
    }

    /// FullKV and the plans.
    pub fn plans(&self) -> &[NamedPlan] {
        &self.plans
    }

    /// The facts about FullKV and the plans that a summary needs.
    pub fn infos(&self) -> Vec<PlanInfo> {
        self.plans.iter().map(NamedPlan::info).collect()
    }

    /// Checks that every plan can be carried out for a prompt of `prompt_tokens` tokens.
    ///
    /// # Errors
    /// An error of [`Plan::resolve`], with the plan's name.
    pub fn check(&self, prompt_tokens: usize) -> Result<()> {
        let cost = self.model.model.cache_cost(1);
        for NamedPlan { name, plan, .. } in &self.plans {
            plan.resolve(prompt_tokens, &cost).at(name)?;
        }
        Ok(())
    }

    /// Runs the token ids of a prompt once and compresses it under every plan.
    ///
    /// # Errors
    /// An error of the model or of a plan.
    pub fn prefill(&self, prompt: &[u32]) -> Result<Prompted> {
        let model = &self.model.model;
        let plans = self.plans.iter().map(|named| named.plan.clone()).collect();
        let mut shared = SharedPrefill::new(plans, model.cache_shape(1), model.device())?;
        let mut options = self.options();
        let next = model.prefill(self.model.ids(prompt), &mut shared, &mut options)?;
        Ok(Prompted {
            next: read(next)?,
            caches: shared.into_caches(),
        })
    }

    /// Runs one decode step for every cache: the token of `tokens` with the same index, under the decode rules of the
    /// cache's plan, whatever the caches have seen. The weights are read once for all of them.
    /// Returns the logits of the next token, one list per cache.
    ///
    /// # Errors
    /// Those of [`decode_rows`], and a cache at the end of the model's context.
    pub fn step(&self, caches: &mut [&mut KvCache], tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        let model = &*self.model.model;
        let config = model.config();
        let seen = caches.iter().map(|cache| cache.seen()).max();
        check_length(seen.unwrap_or(0), 1, config.max_positions)?;
        let logits = read(decode_rows(model, tokens, caches)?)?;
        let rows = logits.chunks_exact(config.vocab_size);
        Ok(rows.map(<[f32]>::to_vec).collect())
    }

    /// Runs `tokens` over every cache without eviction, and passes the logits after each token to `each`. All caches
    /// must have seen the same number of tokens.
    ///
    /// # Errors
    /// Caches of different lengths, an error of the model, and the errors of `each`.
    pub fn feed(
        &self,
        caches: &mut [KvCache],
        tokens: &[u32],
        each: &mut EachToken<'_>,
    ) -> Result<()> {
        let start = same_length(caches.iter().map(|cache| cache.seen()))?;
        let vocab = self.model.model.config().vocab_size;
        let at_once = rows::at_once(tokens.len().min(PIECE));
        for (group, caches) in caches.chunks_mut(at_once).enumerate() {
            for (piece, tokens) in tokens.chunks(PIECE).enumerate() {
                let first = piece.saturating_mul(PIECE);
                let logits = self.untrimmed(caches, tokens, start.saturating_add(first))?;
                let of_caches = logits.chunks_exact(vocab.saturating_mul(tokens.len()));
                for (cache, logits) in of_caches.enumerate() {
                    let cache = group.saturating_mul(at_once).saturating_add(cache);
                    for (token, logits) in logits.chunks_exact(vocab).enumerate() {
                        each(cache, first.saturating_add(token), logits)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The logits after each of `tokens`, which begin at position `start`, cache by cache.
    fn untrimmed(&self, caches: &mut [KvCache], tokens: &[u32], start: usize) -> Result<Vec<f32>> {
        let x = self.embed(tokens).repeat_dim(0, caches.len());
        let prompts = caches.iter_mut();
        let mut prompts = prompts
            .map(|cache| Prompt::new(cache.untrimmed(), tokens.len()))
            .collect::<Result<Vec<_>>>()?;
        let model = &*self.model.model;
        let config = model.config();
        check_length(start, tokens.len(), config.max_positions)?;
        let rope = model.rope(start..start.saturating_add(tokens.len()));
        let layers = 0..config.layers.len();
        let x = rows::run(
            model,
            layers,
            x,
            &rope,
            &mut prompts,
            &|prompt, layer, [q, k, v]| {
                let output = prompt.attend(layer, q, k, v)?;
                prompt.end_layer(layer)?;
                Ok(output)
            },
        )?;
        let logits = read(model.head(x))?;
        for prompt in prompts {
            prompt.finish()?;
        }
        Ok(logits)
    }

    /// The logits of the next token after each of the caches: those that the prompt left, or what follows `after`, which
    /// evicts nothing.
    ///
    /// # Errors
    /// The errors of [`Evaluator::feed`].
    pub(super) fn after(&self, prompted: &mut Prompted, after: &[u32]) -> Result<Vec<Vec<f32>>> {
        let Prompted { next, caches } = prompted;
        let mut nexts = vec![next.clone(); caches.len()];
        self.feed(caches, after, &mut |cache, token, row| {
            if token.saturating_add(1) == after.len() {
                *of(&mut nexts, cache)? = row.to_vec();
            }
            Ok(())
        })?;
        Ok(nexts)
    }

    /// Decodes greedily after each cache, whose last logits are `nexts`. Returns the token ids per cache: at most
    /// `most`, up to the first of `stops`, which is left out.
    ///
    /// # Errors
    /// An error of the model or of a cache, and NaN in logits.
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
                of(&mut answers, *plan)?.push(*token);
            }
            if open.is_empty() || made == most {
                break;
            }
            let tokens: Vec<u32> = open.iter().map(|answer| answer.2).collect();
            let mut running: Vec<&mut KvCache> =
                open.iter_mut().map(|answer| &mut *answer.0).collect();
            let rows = self.step(&mut running, &tokens)?;
            for (answer, row) in open.iter_mut().zip(rows) {
                answer.2 = metrics::most_likely(&row)?;
            }
        }
        caches.iter_mut().try_for_each(KvCache::check)?;
        Ok(answers)
    }

    /// The token that a line break ends with, if the tokenizer knows one.
    ///
    /// # Errors
    /// The errors of the tokenizer.
    pub(super) fn newline(&self) -> Result<Option<u32>> {
        let ids = self.model.tokenizer.encode("\n", Specials::AsText)?;
        Ok(ids.last().copied())
    }

    /// The negative log-likelihoods of `tokens` after each cache, whose last logits are `nexts`, in nats. With `decode`
    /// the tokens run one by one under the decode rules; otherwise they run together over the compressed cache, which
    /// then evicts nothing.
    ///
    /// # Errors
    /// An error of the model or of a cache, caches of different lengths, and NaN in logits.
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
        let run = tokens.get(..rest.len()).unwrap_or_default();
        if decode {
            let mut running: Vec<&mut KvCache> = caches.iter_mut().collect();
            for (&token, &wanted) in run.iter().zip(rest) {
                let rows = self.step(&mut running, &vec![token; nexts.len()])?;
                for (of_cache, row) in nlls.iter_mut().zip(&rows) {
                    of_cache.push(metrics::nll(row, wanted)?);
                }
            }
            caches.iter_mut().try_for_each(KvCache::check)?;
            return Ok(nlls);
        }
        self.feed(caches, run, &mut |cache, token, row| {
            let wanted = *sample_of(rest, token)?;
            of(&mut nlls, cache)?.push(metrics::nll(row, wanted)?);
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

    /// `[1, tokens, hidden]`
    fn embed(&self, tokens: &[u32]) -> Tensor<3> {
        self.model.model.embed(self.model.ids(tokens))
    }
}

impl Prompted {
    /// What each compressed cache holds: `kept`, entries per layer and KV head, and `kv_bytes`, over all layers.
    ///
    /// # Errors
    /// NaN scores.
    pub(super) fn held(&mut self) -> Result<Vec<Scores>> {
        let of = |cache: &mut KvCache| {
            let report = cache.report()?;
            Ok(Scores::from([
                ("kept".into(), report.kept_mean()),
                ("kv_bytes".into(), report.bytes as f64),
            ]))
        };
        self.caches.iter_mut().map(of).collect()
    }
}

/// What belongs to a cache.
///
/// # Errors
/// A number that no cache has.
fn of<T>(list: &mut [T], cache: usize) -> Result<&mut T> {
    let count = list.len();
    list.get_mut(cache)
        .ok_or_else(|| Error::invalid("evaluation", "cache", cache, format!("below {count}")))
}

/// # Errors
/// Caches that have seen different numbers of tokens.
fn same_length(mut seen: impl Iterator<Item = usize>) -> Result<usize> {
    let first = seen.next().unwrap_or(0);
    match seen.find(|other| *other != first) {
        Some(other) => {
            let found = format!("{other} tokens");
            Err(Error::invalid(
                "evaluation",
                "length of a cache",
                found,
                first,
            ))
        }
        None => Ok(first),
    }
}

fn read<const D: usize>(logits: Tensor<D>) -> Result<Vec<f32>> {
    logits.try_into_vec_as().map_err(ops::read_error)
}
