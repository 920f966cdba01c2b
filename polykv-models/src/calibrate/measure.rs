use super::{Continued, Example, layers, nll, read};
use crate::causal_lm::PrefillOptions;
use crate::layers::RopeTable;
use crate::load::LoadedModel;
use crate::rows;
use burn::tensor::Tensor;
use polykv_core::calibrate::{Candidate, Measured, PhaseMeasured, signals};
use polykv_core::device::run_on;
use polykv_core::plan::Share;
use polykv_core::{At, Budget, Error, KvCache, Phase, Plan, Prompt, Result, SharedPrefill};

/// Measures what each policy costs in one layer alone: in each layer and phase it runs every candidate at the budget
/// while all other layers keep everything.
/// The prefix and the continuation of an example run once each. The inputs of a layer are those of FullKV whatever is
/// tried in it, so one pass serves all layers, and a candidate costs one attention per layer. Likelihoods also cost a
/// run of the layers above for each candidate.
#[derive(Debug)]
pub struct Measurer<'a> {
    model: &'a LoadedModel,
    phases: &'a [Phase],
    /// One phase of one candidate each, in the order of the phases; all layers at once.
    plans: Vec<(Phase, &'a Candidate, Plan)>,
    /// Whether likelihoods are measured beside cosines.
    likelihoods: bool,
}

/// The signals of one example, in the order of layers, phases and candidates. The host reads them at the end.
#[derive(Default)]
struct Signals {
    entropy: Vec<Tensor<1>>,
    cosine: Vec<Tensor<1>>,
    nll: Vec<Tensor<1>>,
}

impl<'a> Measurer<'a> {
    /// A measurer for the given candidates at one budget. It measures the phases in `phases`, each of which must occur
    /// once, and likelihoods only if `likelihoods` is true. `heads` are the parts of the budget for each KV head of each layer,
    /// or empty for equal budgets.
    ///
    /// # Errors
    /// No candidate, and candidates or a budget that are refused.
    pub fn new(
        model: &'a LoadedModel,
        candidates: &'a [Candidate],
        phases: &'a [Phase],
        budget: Budget,
        likelihoods: bool,
        heads: &[Vec<f64>],
    ) -> Result<Self> {
        if candidates.is_empty() {
            return Err(Error::invalid("calibration", "policies", 0, "at least 1"));
        }
        let layers = model.model.config().layers.len();
        let mut plans = Vec::new();
        for &phase in phases {
            for candidate in Candidate::of_phase(candidates, phase, phases) {
                let policy = candidate.policy.clone();
                let mut plan = Plan::uniform(layers, policy, budget, &[phase]);
                if let Some(codes) = candidate.kv {
                    plan = plan.with_kv(codes);
                }
                divide(&mut plan, phase, heads);
                plan.check()?;
                plans.push((phase, candidate, plan));
            }
        }
        Ok(Self {
            model,
            phases,
            plans,
            likelihoods,
        })
    }

    /// Checks that every candidate can run at the budget for a prompt of `prompt` tokens, and that it evicts something
    /// there, unless it keeps all of it in codes.
    ///
    /// # Errors
    /// A candidate that cannot run at the budget or that evicts nothing, by name and budget.
    pub fn check(&self, prompt: usize) -> Result<()> {
        let cost = self.model.model.cache_cost(1);
        for (_, candidate, plan) in &self.plans {
            let place = format!("calibration of {}", candidate.policy.key());
            let resolved = plan.resolve(prompt, &cost).at(place)?;
            let budgets = resolved.layers.iter().filter_map(|rules| {
                let prefill = rules.budget(Phase::Prefill);
                prefill.or(rules.budget(Phase::Decode))
            });
            let budgets: Vec<usize> = budgets.collect();
            let mut layers = budgets.iter().enumerate();
            let idle = layers.all(|(layer, &budget)| budget >= prompt.min(cost.most(layer)));
            if let Some(budget) = budgets.into_iter().max()
                && idle
                && candidate.kv.is_none()
            {
                let allowed = format!("below {prompt}, the tokens of the shortest prefix");
                return Err(Error::invalid("calibration", "budget", budget, allowed));
            }
        }
        Ok(())
    }

    /// The signals of one example. `progress` is called before each layer with its index.
    ///
    /// # Errors
    /// An error of the model or of a policy, NaN in scores or signals.
    pub fn measure(
        &self,
        example: &Example,
        progress: &mut (dyn FnMut(usize) + Send),
    ) -> Result<Measured> {
        run_on(self.model.model.device(), || self.run(example, progress))
    }

    fn run(&self, example: &Example, progress: &mut dyn FnMut(usize)) -> Result<Measured> {
        let model = &self.model.model;
        let config = model.config();
        let mut plans = vec![Plan::full(config.layers.len())];
        plans.extend(self.plans.iter().map(|(.., plan)| plan.clone()));
        let mut shared = SharedPrefill::new(plans, model.cache_shape(1), model.device())?;
        model.prefill(
            self.model.ids(&example.prompt),
            &mut shared,
            &mut PrefillOptions::default(),
        )?;
        let mut caches = shared.into_caches();
        let mut full = caches.remove(0);
        let prefix = full.clone();

        let run = example.run();
        let start = example.prompt.len();
        let rope = model.rope(start..start + run.len());
        let mut x = model.embed(self.model.ids(run));
        let mut found = Signals::default();
        let mut full = Continued::new(&mut full, Phase::Prefill, run.len())?;
        let caches = caches.iter_mut().zip(&self.plans);
        let mut caches = caches
            .map(|(cache, (phase, ..))| Continued::new(cache, *phase, run.len()))
            .collect::<Result<Vec<_>>>()?;
        for layer in 0..config.layers.len() {
            progress(layer);
            let input = x.clone();
            let mut reference = None;
            let mut others = Vec::new();
            x = model.layer(layer, input.clone(), &rope, &mut |q, k, v| {
                let output = full.attend(layer, [&q, &k, &v])?;
                found
                    .entropy
                    .push(entropy(full.cache(), layer, q.clone(), example)?);
                for cache in &mut caches {
                    others.push(cache.attend(layer, [&q, &k, &v])?);
                }
                reference = Some(output.clone());
                Ok(output)
            })?;
            let output = |attended: &Tensor<4>| {
                let queries = example.queries();
                let scored = attended.clone().narrow(2, queries.start, queries.len());
                model.attention_output(layer, scored)
            };
            if let Some(reference) = &reference {
                let reference = output(reference)?;
                for other in &others {
                    let cosine = signals::mean_cosine(reference.clone(), output(other)?);
                    found.cosine.push(cosine);
                }
            }
            if self.likelihoods {
                for some in others.chunks(rows::at_once(run.len())) {
                    let input = input.clone().repeat_dim(0, some.len());
                    let changed = model.layer(layer, input, &rope, &mut |_, _, _| {
                        Ok(Tensor::cat(some.to_vec(), 0))
                    })?;
                    let top = self.above(layer, changed, &rope, &prefix)?;
                    found.nll.push(nll(self.model, example, top));
                }
            }
        }
        caches.into_iter().try_for_each(Continued::finish)?;
        let full_nll = read(nll(self.model, example, x))?;
        self.collect(example, full_nll[0], found)
    }

    /// The layers above `layer`, each row over everything that FullKV keeps.
    fn above(
        &self,
        layer: usize,
        x: Tensor<3>,
        rope: &RopeTable,
        prefix: &KvCache,
    ) -> Result<Tensor<3>> {
        let [rows, tokens, _] = x.dims();
        let mut caches = vec![prefix.clone(); rows];
        let continued = caches.iter_mut().map(|cache| {
            let prompt = Prompt::new(cache.untrimmed(), tokens)?;
            Ok(Continued::Untrimmed(prompt.above(layer + 1)))
        });
        let mut continued = continued.collect::<Result<Vec<_>>>()?;
        let count = self.model.model.config().layers.len();
        layers(self.model, layer + 1..count, x, rope, &mut continued)
    }

    fn collect(&self, example: &Example, full_nll: f64, found: Signals) -> Result<Measured> {
        let cosine = read(Tensor::cat(found.cosine, 0))?;
        let nll = match self.likelihoods {
            true => read(Tensor::cat(found.nll, 0))?,
            false => Vec::new(),
        };
        let of = |phase: Phase| {
            if !self.phases.contains(&phase) {
                return PhaseMeasured::default();
            }
            let row = |layer: &[f64]| -> Vec<f64> {
                let values = layer.iter().zip(&self.plans);
                let own = values.filter(|(_, (of, ..))| *of == phase);
                own.map(|(&value, _)| value).collect()
            };
            let rows = |values: &[f64]| values.chunks_exact(self.plans.len()).map(row).collect();
            PhaseMeasured {
                cosine: rows(&cosine),
                nll: rows(&nll),
            }
        };
        Ok(Measured {
            data: example.data,
            prompt_tokens: example.prompt.len(),
            scored_tokens: example.scored.len(),
            full_nll,
            entropy: read(Tensor::cat(found.entropy, 0))?,
            prefill: of(Phase::Prefill),
            decode: of(Phase::Decode),
        })
    }
}

/// Gives every KV head of every layer its part of a plan's budget.
fn divide(plan: &mut Plan, phase: Phase, heads: &[Vec<f64>]) {
    for (layer, parts) in plan.layers.iter_mut().zip(heads) {
        let share = parts.iter().sum::<f64>();
        let rule = layer.rule(phase).clone();
        *layer.rule_mut(phase) = rule.with_share(Share::Part(share));
    }
    plan.set_heads(heads);
}

/// The mean entropy of the attention of the scored queries over all entries.
fn entropy(full: &KvCache, layer: usize, q: Tensor<4>, example: &Example) -> Result<Tensor<1>> {
    // The cache knows the positions of its last queries, so all of the continuation's go in.
    let attention = full.attention(layer, q)?;
    let queries = example.queries();
    Ok(signals::mean_entropy(attention.narrow(
        3,
        queries.start,
        queries.len(),
    )))
}
