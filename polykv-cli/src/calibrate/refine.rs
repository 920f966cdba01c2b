//! Searches with the whole plan in effect. Each evaluation is on disk before the next one starts.

use super::journal::{Journal, Record};
use crate::output::progress::Steps;
use polykv::calibrate::{BudgetSearch, Draft, ExampleLosses, Found, FoundBudgets, Search, Trials};
use polykv::models::LoadedModel;
use polykv::models::calibrate::{Example, Pool};
use polykv::{Error, Phase, Plan, Result};

/// One phase of a calibration.
#[derive(Debug)]
pub struct Refinement<'a> {
    pub model: &'a LoadedModel,
    pub examples: &'a [Example],
    pub draft: &'a Draft<'a>,
    pub phase: Phase,
    /// The route of the prefill, under which those of the decode phase are compared.
    pub prefill: Option<&'a [usize]>,
    pub seed: u64,
    pub journal: &'a mut Journal,
}

/// Whole plans as mixtures of a few, whose prompts run only if some evaluation is not in the journal yet.
struct Mixtures<'a> {
    plans: Vec<Plan>,
    pool: Option<Pool<'a>>,
    steps: Steps,
    done: usize,
    most: usize,
}

impl<'a> Mixtures<'a> {
    fn new(plans: Vec<Plan>, what: &str, phase: Phase, most: usize) -> Self {
        Self {
            plans,
            pool: None,
            steps: Steps::new(format!("{what} {phase}"), "plan"),
            done: 0,
            most,
        }
    }
}

impl<'a> Refinement<'a> {
    /// The best route of several and of what at most `moves` evaluations beside these find.
    ///
    /// # Errors
    /// What the model refuses; a journal that cannot be written.
    pub fn route(&mut self, routes: Vec<Vec<usize>>, moves: usize) -> Result<Found> {
        let search = Search {
            candidates: self.draft.candidates.len(),
            routes,
            moves,
            seed: self.seed,
        };
        let (draft, phase, prefill) = (self.draft, self.phase, self.prefill);
        let single = |own| draft.with(phase, prefill, &vec![own; draft.layers]);
        let singles = (0..search.candidates).map(single).collect();
        let most = search.candidates + search.routes.len() + search.moves;
        let mut mixtures = Mixtures::new(singles, "refining", phase, most);
        search
            .run(&mut |picks| self.losses(&mut mixtures, &draft.with(phase, prefill, picks), picks))
    }

    /// The budgets under the route `found`; `limits` are those of [`BudgetSearch`].
    ///
    /// # Errors
    /// As [`Self::route`].
    pub fn budgets(&mut self, found: &Found, limits: (usize, usize)) -> Result<FoundBudgets> {
        let (draft, phase, prefill) = (self.draft, self.phase, self.prefill);
        let singles = found.moves.iter().take(draft.candidates.len());
        let search = BudgetSearch {
            singles: singles.map(|one| one.losses.clone()).collect(),
            budgets: draft.budgets(phase),
            limits,
            seed: self.seed,
        };
        let levels = search.levels();
        search.run(&mut |trials| match trials {
            Trials::Levels(rows) => {
                let trial = |budgets: &[usize]| draft.trial(phase, prefill, &found.picks, budgets);
                let both = levels.iter().map(|own| trial(own)).collect();
                let mut mixtures = Mixtures::new(both, "screening", phase, rows.len());
                let losses = |row: &Vec<bool>| {
                    let picks: Vec<usize> = row.iter().map(|&high| usize::from(high)).collect();
                    let own = picks.iter().enumerate();
                    let budgets: Vec<usize> = own.map(|(layer, &own)| levels[own][layer]).collect();
                    self.losses(&mut mixtures, &trial(&budgets), &picks)
                };
                rows.iter().map(losses).collect()
            }
            Trials::Budgets(all) => {
                let plan = |budgets: &Vec<usize>| {
                    let own = draft.with_budgets(phase, budgets);
                    own.with(phase, prefill, &found.picks)
                };
                let plans: Vec<Plan> = all.iter().map(plan).collect();
                let mut mixtures = Mixtures::new(plans.clone(), "budgets of", phase, all.len());
                let losses = |(own, plan): (usize, &Plan)| {
                    self.losses(&mut mixtures, plan, &vec![own; draft.layers])
                };
                plans.iter().enumerate().map(losses).collect()
            }
        })
    }

    fn losses(
        &mut self,
        mixtures: &mut Mixtures<'a>,
        plan: &Plan,
        picks: &[usize],
    ) -> Result<ExampleLosses> {
        let key = plan.hash();
        mixtures.done += 1;
        if let Some(known) = self.journal.losses(&key) {
            return Ok(known.clone());
        }
        let pool = match &mixtures.pool {
            Some(pool) => pool,
            None => {
                let (mut prompts, count) = (Steps::new("preparing", "prompt"), self.examples.len());
                let new = Pool::new(
                    self.model,
                    self.phase,
                    &mixtures.plans,
                    self.examples,
                    &mut |done| prompts.step(done, count),
                )?;
                mixtures.pool.insert(new)
            }
        };
        mixtures.steps.step(mixtures.done - 1, mixtures.most);
        let losses = pool.losses(plan, picks)?;
        self.journal.add(&Record::Losses {
            plan: key.clone(),
            losses,
        })?;
        // As read back: a resumed run continues with the very same numbers.
        let written = self.journal.losses(&key).cloned();
        written.ok_or_else(|| Error::Failed("an evaluation that was not written".into()))
    }
}
