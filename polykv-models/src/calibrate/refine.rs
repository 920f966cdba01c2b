//! Searches with the whole plan in effect. Evaluations are in the journal before the next ones start.

use super::journal::Journal;
use super::{CompressedPrompts, Example, Mixture, Progress, Stage};
use crate::LoadedModel;
use polykv_core::calibrate::{
    BudgetSearch, ExampleLosses, FoundBudgets, FoundRoute, PlanDraft, RouteSearch, Trials,
};
use polykv_core::{Error, Phase, Plan, Result};

/// Plans that are evaluated together; what an interruption loses.
const AT_ONCE: usize = 16;

/// One phase of a calibration.
pub struct Refinement<'a> {
    pub model: &'a LoadedModel,
    pub examples: &'a [Example],
    pub draft: &'a PlanDraft<'a>,
    /// The number of the draft's candidates that the phase chooses from, which are the first.
    pub choices: usize,
    pub phase: Phase,
    /// The route of the prefill, under which those of the decode phase are compared.
    pub prefill: Option<&'a [usize]>,
    pub seed: u64,
    pub journal: &'a mut Journal,
    pub progress: &'a mut (dyn FnMut(Progress) + Send),
}

/// Whole plans as mixtures of a few, whose prompts run only if some evaluation is not in the journal yet.
struct Mixtures<'a> {
    plans: Vec<Plan>,
    prompts: Option<CompressedPrompts<'a>>,
    stage: Stage,
    done: usize,
    most: usize,
}

impl Mixtures<'_> {
    fn new(plans: Vec<Plan>, stage: Stage, most: usize) -> Self {
        Self {
            plans,
            prompts: None,
            stage,
            done: 0,
            most,
        }
    }
}

impl<'a> Refinement<'a> {
    /// The best route of several and of what at most `moves` evaluations beside these find.
    ///
    /// # Errors
    /// What the model refuses, NaN, and a journal that cannot be written.
    pub fn route(&mut self, routes: Vec<Vec<usize>>, moves: usize) -> Result<FoundRoute> {
        let search = RouteSearch {
            candidates: self.choices,
            routes,
            moves,
            seed: self.seed,
        };
        let (draft, phase, prefill) = (self.draft, self.phase, self.prefill);
        let single = |candidate| draft.with(phase, prefill, &vec![candidate; draft.layers()]);
        let singles = (0..search.candidates).map(single).collect();
        let most = search.candidates + search.routes.len() + search.moves;
        let mut mixtures = Mixtures::new(singles, Stage::Refining(phase), most);
        search.run(&mut |all| {
            let mixture = |picks: &Vec<usize>| Mixture {
                plan: draft.with(phase, prefill, picks),
                picks: picks.clone(),
            };
            let all: Vec<Mixture> = all.iter().map(mixture).collect();
            self.losses(&mut mixtures, &all)
        })
    }

    /// The budgets under the route `found`; `limits` are those of [`BudgetSearch`].
    ///
    /// # Errors
    /// What the model refuses, NaN, and a journal that cannot be written.
    pub fn budgets(
        &mut self,
        found: &FoundRoute,
        limits: (usize, Vec<usize>),
    ) -> Result<FoundBudgets> {
        let (draft, phase, prefill) = (self.draft, self.phase, self.prefill);
        let singles = found.moves.iter().take(self.choices);
        let search = BudgetSearch {
            singles: singles.map(|one| one.losses.clone()).collect(),
            budgets: draft.budgets(phase),
            limits,
            seed: self.seed,
        };
        search.run(&mut |trials| match trials {
            Trials::Levels { levels, rows } => {
                let trial = |budgets: &[usize]| draft.trial(phase, prefill, &found.picks, budgets);
                let both = levels.into_iter().map(trial).collect();
                let mut mixtures = Mixtures::new(both, Stage::Screening(phase), rows.len());
                let mixture = |row: &Vec<bool>| {
                    let picks: Vec<usize> = row.iter().map(|&high| usize::from(high)).collect();
                    let chosen = picks.iter().enumerate();
                    let budgets: Vec<usize> =
                        chosen.map(|(layer, &level)| levels[level][layer]).collect();
                    let plan = trial(&budgets);
                    Mixture { plan, picks }
                };
                let all: Vec<Mixture> = rows.iter().map(mixture).collect();
                self.losses(&mut mixtures, &all)
            }
            Trials::Budgets(all) => {
                let plan = |budgets: &Vec<usize>| {
                    let draft = draft.with_budgets(phase, budgets);
                    draft.with(phase, prefill, &found.picks)
                };
                let plans: Vec<Plan> = all.iter().map(plan).collect();
                let mut mixtures = Mixtures::new(plans.clone(), Stage::Budgets(phase), all.len());
                let mixture = |(index, plan)| Mixture {
                    plan,
                    picks: vec![index; draft.layers()],
                };
                let all: Vec<Mixture> = plans.into_iter().enumerate().map(mixture).collect();
                self.losses(&mut mixtures, &all)
            }
        })
    }

    /// The losses of some mixtures, from the journal where it has them.
    fn losses(
        &mut self,
        mixtures: &mut Mixtures<'a>,
        all: &[Mixture],
    ) -> Result<Vec<ExampleLosses>> {
        // Together always, known or not: what runs beside a plan decides how its sums are rounded.
        for some in all.chunks(AT_ONCE) {
            mixtures.done += some.len();
            let known = |mixture: &Mixture| self.journal.losses(&mixture.plan).is_some();
            if some.iter().all(known) {
                continue;
            }
            let prompts = match &mixtures.prompts {
                Some(prompts) => prompts,
                None => mixtures.prompts.insert(self.prompts(&mixtures.plans)?),
            };
            (self.progress)(Progress {
                stage: mixtures.stage,
                done: mixtures.done - some.len(),
                of: mixtures.most,
            });
            for (mixture, losses) in some.iter().zip(prompts.losses(some)?) {
                if self.journal.losses(&mixture.plan).is_none() {
                    self.journal.add_losses(&mixture.plan, losses)?;
                }
            }
        }
        // As read back: a resumed run continues with the very same numbers.
        let written = |mixture: &Mixture| self.journal.losses(&mixture.plan).cloned();
        let lost = || Error::Failed("an evaluation that was not noted".into());
        let all = all.iter();
        all.map(|mixture| written(mixture).ok_or_else(lost))
            .collect()
    }

    fn prompts(&mut self, plans: &[Plan]) -> Result<CompressedPrompts<'a>> {
        let (model, examples) = (self.model, self.examples);
        let mut progress = |done| {
            (self.progress)(Progress {
                stage: Stage::Preparing,
                done,
                of: examples.len(),
            });
        };
        CompressedPrompts::new(model, self.phase, plans, examples, &mut progress)
    }
}
