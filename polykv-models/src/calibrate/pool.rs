use super::{Example, ids, layers, nll, read};
use crate::{LoadedModel, PrefillOptions};
use polykv_core::calibrate::{Draft, ExampleLosses};
use polykv_core::device::run_on;
use polykv_core::{Error, KvCache, Phase, Plan, PromptCache, Result, SharedPrefill, machine, ops};

/// Examples whose prompts have run once under every candidate, so that any route costs its continuations only: a layer's cut
/// of the prompt does not depend on what the other layers keep.
#[derive(Debug)]
pub struct Pool<'a> {
    model: &'a LoadedModel,
    draft: &'a Draft<'a>,
    phase: Phase,
    /// The prefill route under which decode routes are compared, if the prefill evicts there.
    prefill: Option<Vec<usize>>,
    prompts: Vec<Prompted<'a>>,
}

#[derive(Debug)]
struct Prompted<'a> {
    example: &'a Example,
    full_nll: f64,
    /// One per candidate, which rules all layers.
    caches: Vec<KvCache>,
}

impl<'a> Pool<'a> {
    /// For routes of one phase. Routes of the prefill are compared with everything kept while decoding, those of the decode
    /// phase after the `prefill` route, or with the whole prompt kept. `progress` is called with the prompts done.
    ///
    /// # Errors
    /// What the model and the plans refuse; caches that do not fit the memory that is free.
    pub fn new(
        model: &'a LoadedModel,
        draft: &'a Draft<'a>,
        phase: Phase,
        prefill: Option<&[usize]>,
        examples: &'a [Example],
        progress: &mut (dyn FnMut(usize) + Send),
    ) -> Result<Self> {
        let count = draft.candidates.len();
        let plans = (0..count).map(|candidate| {
            let all = vec![candidate; draft.layers];
            match phase {
                Phase::Prefill => draft.plan(Some(&all), None),
                Phase::Decode => draft.plan(prefill, Some(&all)),
            }
        });
        let plans: Vec<Plan> = [Plan::full(draft.layers)]
            .into_iter()
            .chain(plans)
            .collect();
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
            draft,
            phase,
            prefill: prefill.map(<[usize]>::to_vec),
            prompts,
        })
    }

    /// The mean negative log-likelihood of each continuation under a route, beyond FullKV's.
    ///
    /// # Errors
    /// A pick that is no candidate, NaN in scores or likelihoods.
    pub fn losses(&self, picks: &[usize]) -> Result<ExampleLosses> {
        if let Some(wrong) = picks
            .iter()
            .find(|&&pick| pick >= self.draft.candidates.len())
        {
            let allowed = format!("below {}", self.draft.candidates.len());
            return Err(Error::invalid("route", "candidate", wrong, allowed));
        }
        let plan = match self.phase {
            Phase::Prefill => self.draft.plan(Some(picks), None),
            Phase::Decode => self.draft.plan(self.prefill.as_deref(), Some(picks)),
        };
        run_on(self.model.model.device(), || {
            let mut losses = ExampleLosses::new();
            for Prompted {
                example,
                full_nll,
                caches,
            } in &self.prompts
            {
                let mut cache = KvCache::of_layers(plan.clone(), caches, picks)?;
                let own = continuation(self.model, example, &mut cache, self.phase)?;
                losses.entry(example.data).or_default().push(own - full_nll);
            }
            Ok(losses)
        })
    }
}

impl<'a> Prompted<'a> {
    fn run(model: &LoadedModel, plans: &[Plan], example: &'a Example) -> Result<Self> {
        let own = &model.model;
        let mut shared = SharedPrefill::new(plans.to_vec(), own.cache_shape(1), own.device())?;
        let mut options = PrefillOptions::default();
        own.prefill(ids(model, &example.prompt), &mut shared, &mut options)?;
        let mut caches = shared.finish();
        let mut full = caches.remove(0);
        Ok(Self {
            example,
            full_nll: continuation(model, example, &mut full, Phase::Prefill)?,
            caches,
        })
    }
}

/// All caches are held at once: on the CPU that is a number which can be known.
fn check_memory(model: &LoadedModel, plans: &[Plan], examples: &[Example]) -> Result<()> {
    let own = &model.model;
    let Some(free) = machine::free_memory().filter(|_| ops::is_cpu(own.device())) else {
        return Ok(());
    };
    let mut needed = 0;
    for example in examples {
        for plan in plans {
            let cost = own.cache_shape(1).cost(plan.layers);
            let estimate = plan.estimate("calibration", example.prompt.len(), 0, cost)?;
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

/// The mean negative log-likelihood of the scored tokens over a compressed prompt.
fn continuation(
    model: &LoadedModel,
    example: &Example,
    cache: &mut KvCache,
    phase: Phase,
) -> Result<f64> {
    let own = &model.model;
    let (run, start) = (example.run(), example.prompt.len());
    let rope = own.rope(start..start + run.len());
    if phase == Phase::Prefill {
        cache.untrimmed().begin_prefill(run.len())?;
    }
    let x = own.embed(ids(model, run));
    let x = layers(model, 0..own.config().layers, x, &rope, cache, phase)?;
    cache.check()?;
    Ok(read(nll(model, example, x))?[0])
}
