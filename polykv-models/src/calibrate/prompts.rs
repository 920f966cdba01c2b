use super::{Continued, Example, layers, nll, read};
use crate::causal_lm::PrefillOptions;
use crate::load::LoadedModel;
use crate::rows;
use polykv_core::calibrate::ExampleLosses;
use polykv_core::device::run_on;
use polykv_core::{Error, KvCache, Phase, Plan, Result, SharedPrefill, machine, ops};

/// The compressed caches of prompts that have run once under several plans. A mixture of these plans then costs only
/// its continuations, because what a layer keeps of the prompt does not depend on what the other layers keep.
#[derive(Debug)]
pub struct CompressedPrompts<'a> {
    model: &'a LoadedModel,
    phase: Phase,
    prompts: Vec<Prompted<'a>>,
}

/// A plan that gives layer `l` the rules of plan `picks[l]` of [`CompressedPrompts`].
#[derive(Clone, Debug)]
pub struct Mixture {
    /// The whole plan.
    pub plan: Plan,
    /// One per layer.
    pub picks: Vec<usize>,
}

#[derive(Debug)]
struct Prompted<'a> {
    example: &'a Example,
    full_nll: f64,
    /// One per plan.
    caches: Vec<KvCache>,
}

impl<'a> CompressedPrompts<'a> {
    /// Runs the prompts of `examples` under every plan, for mixtures of the plans in one phase. In the prefill phase
    /// the continuations run with everything kept. `progress` is called before each prompt with the number of prompts
    /// that are done.
    ///
    /// # Errors
    /// An error of the model or of a plan; caches that do not fit the free memory.
    pub fn new(
        model: &'a LoadedModel,
        phase: Phase,
        plans: &[Plan],
        examples: &'a [Example],
        progress: &mut (dyn FnMut(usize) + Send),
    ) -> Result<Self> {
        let full = Plan::full(model.model.config().layers.len());
        let plans: Vec<Plan> = [full].iter().chain(plans).cloned().collect();
        check_memory(model, &plans, examples)?;
        let prompts = run_on(model.model.device(), || {
            let prompts = examples.iter().enumerate().map(|(index, example)| {
                progress(index);
                Prompted::run(model, &plans, example)
            });
            prompts.collect::<Result<_>>()
        })?;
        Ok(Self {
            model,
            phase,
            prompts,
        })
    }

    /// The losses of each mixture on each example: the mean negative log-likelihood of the continuation, in nats, less
    /// that of FullKV. Several mixtures run together.
    ///
    /// # Errors
    /// A pick that is none of the plans, NaN in scores or likelihoods.
    pub fn losses(&self, mixtures: &[Mixture]) -> Result<Vec<ExampleLosses>> {
        run_on(self.model.model.device(), || {
            let mut losses = vec![ExampleLosses::new(); mixtures.len()];
            for Prompted {
                example,
                full_nll,
                caches,
            } in &self.prompts
            {
                let at_once = rows::at_once(example.run().len());
                let groups = mixtures.chunks(at_once).zip(losses.chunks_mut(at_once));
                for (group, losses) in groups {
                    let mix = |mixture: &Mixture| {
                        KvCache::of_layers(mixture.plan.clone(), caches, &mixture.picks)
                    };
                    let mut mixed = group.iter().map(mix).collect::<Result<Vec<_>>>()?;
                    let nlls = continuation(self.model, example, &mut mixed, self.phase)?;
                    for (losses, nll) in losses.iter_mut().zip(nlls) {
                        losses.entry(example.data).or_default().push(nll - full_nll);
                    }
                }
            }
            Ok(losses)
        })
    }
}

impl<'a> Prompted<'a> {
    fn run(model: &LoadedModel, plans: &[Plan], example: &'a Example) -> Result<Self> {
        let lm = &model.model;
        let mut shared = SharedPrefill::new(plans.to_vec(), lm.cache_shape(1), lm.device())?;
        let mut options = PrefillOptions::default();
        lm.prefill(model.ids(&example.prompt), &mut shared, &mut options)?;
        let mut caches = shared.into_caches();
        let mut full = [caches.remove(0)];
        let full_nll = continuation(model, example, &mut full, Phase::Prefill)?[0];
        Ok(Self {
            example,
            full_nll,
            caches,
        })
    }
}

/// All caches are held at once: on the CPU that is a number which can be known.
fn check_memory(model: &LoadedModel, plans: &[Plan], examples: &[Example]) -> Result<()> {
    let lm = &model.model;
    let Some(free) = machine::free_memory().filter(|_| ops::is_cpu(lm.device())) else {
        return Ok(());
    };
    let mut needed = 0;
    for example in examples {
        for plan in plans {
            let estimate = plan.estimate(example.prompt.len(), 0, &lm.cache_cost(1))?;
            needed += estimate.steady_bytes as u64;
        }
    }
    if needed <= free {
        return Ok(());
    }
    let found = format!(
        "{} MB, for {} prompts under {} plans",
        needed / 1_000_000,
        examples.len(),
        plans.len()
    );
    let allowed = format!(
        "at most {} MB, what is free: fewer or shorter examples, or fewer policies",
        free / 1_000_000
    );
    Err(Error::invalid(
        "calibration",
        "memory of the caches",
        found,
        allowed,
    ))
}

/// The mean negative log-likelihood of the scored tokens over each of the compressed prompts.
fn continuation(
    model: &LoadedModel,
    example: &Example,
    caches: &mut [KvCache],
    phase: Phase,
) -> Result<Vec<f64>> {
    let lm = &model.model;
    let (run, start) = (example.run(), example.prompt.len());
    let rope = lm.rope(start..start + run.len());
    let x = lm.embed(model.ids(run)).repeat_dim(0, caches.len());
    let continued = caches.iter_mut();
    let mut continued = continued
        .map(|cache| Continued::new(cache, phase, run.len()))
        .collect::<Result<Vec<_>>>()?;
    let x = layers(model, 0..lm.config().layers.len(), x, &rope, &mut continued)?;
    continued.into_iter().try_for_each(Continued::finish)?;
    read(nll(model, example, x))
}
