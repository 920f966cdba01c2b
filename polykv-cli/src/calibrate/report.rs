//! profile.json: every number of a calibration, and what was made of it.

use super::journal::Journal;
use crate::args::{BudgetSignal, CalibrateArgs, ChoiceArgs, Objective, RouteName, SignalName};
use polykv::allocate::{self, Basis, LayerStat};
use polykv::calibrate::{
    Candidate, Data, Direction, Draft, Found, FoundBudgets, Profile, Signal, route,
};
use polykv::models::LoadedModel;
use polykv::{Budget, Error, Phase, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Of the file's schema.
const SCHEMA: u32 = 1;

/// How much more text may count than questions in the routes that a search begins with, beside once.
const TEXT_FACTORS: [f64; 6] = [0.25, 0.5, 2.0, 4.0, 8.0, 16.0];

/// Scripts depend on it: fields may be added, never renamed or dropped.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    schema: u32,
    version: String,
    /// Fingerprint of the model.
    pub model: String,
    layers: usize,
    budget: Budget,
    settings: Settings,
    /// What the indices in routes and tables stand for.
    pub candidates: Vec<Candidate>,
    pub profiles: BTreeMap<Data, Profile>,
    pub prefill: PhaseReport,
    pub decode: PhaseReport,
    /// Of the plan that was written.
    pub plan_hash: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Settings {
    length: usize,
    continuation: usize,
    question_after: bool,
    seed: u64,
    signal: Signal,
    route: Direction,
    allocator: String,
    /// What the allocator followed, if it follows a signal.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget_signal: Option<String>,
    refine: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct PhaseReport {
    /// A candidate per layer, from what each layer does alone; empty for a phase that keeps everything.
    pub route: Vec<usize>,
    /// Entries per layer for a prompt of `length` tokens; empty for a phase that keeps everything.
    pub budgets: Vec<usize>,
    /// The search from there, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refined: Option<Found>,
    /// The search for budgets under the route that was found, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budgets_refined: Option<FoundBudgets>,
}

impl PhaseReport {
    /// The candidate per layer in the plan, none for a phase that keeps everything.
    pub fn picks(&self) -> Option<&[usize]> {
        let refined = self.refined.as_ref().map(|found| &found.picks);
        let picks = refined.unwrap_or(&self.route);
        (!picks.is_empty()).then_some(picks)
    }
}

/// Whether likelihoods have to be measured beside cosines.
pub fn likelihoods(choice: &ChoiceArgs) -> bool {
    let budgets = choice.allocator == "calibrated" && choice.budget_signal == BudgetSignal::Ppl;
    choice.signal == SignalName::Ppl || budgets
}

impl Report {
    /// Routes and budgets from the measurements.
    ///
    /// # Errors
    /// An allocation that does not hold what the policies protect.
    pub fn new(
        args: &CalibrateArgs,
        model: &LoadedModel,
        candidates: Vec<Candidate>,
        budget: Budget,
        journal: &Journal,
    ) -> Result<Self> {
        let config = model.model.config();
        let measured = journal.measured();
        let kinds: &[Data] = match args.examples.objective {
            Objective::Text => &[Data::Text],
            Objective::Evidence => &[Data::Evidence],
            Objective::Both => &[Data::Text, Data::Evidence],
        };
        let profiles: BTreeMap<Data, Profile> = kinds
            .iter()
            .filter_map(|&data| Some((data, Profile::of(&measured, data)?)))
            .collect();
        let choice = &args.choice;
        let allocator = allocate::by_name(&choice.allocator)?;
        let follows = allocator.basis() == Basis::Calibration;
        let budget_signal = match choice.budget_signal {
            BudgetSignal::Entropy => "entropy",
            BudgetSignal::Ppl => "ppl",
            BudgetSignal::Effect => "effect",
        };
        let settings = Settings {
            length: args.examples.length,
            continuation: args.examples.continuation,
            question_after: args.examples.question_after,
            seed: args.examples.seed,
            signal: match choice.signal {
                SignalName::Cosine => Signal::Cosine,
                SignalName::Ppl => Signal::Ppl,
            },
            route: match choice.route {
                RouteName::Forward => Direction::Forward,
                RouteName::Inverse => Direction::Inverse,
            },
            allocator: choice.allocator.clone(),
            budget_signal: follows.then(|| budget_signal.to_string()),
            refine: choice.refine,
        };
        let least = least_budget(&candidates)?;
        let total = budget.total(
            settings.length,
            model.model.cache_shape(1).cost(config.layers),
        );
        let phase = |phase| -> Result<PhaseReport> {
            if !choice.phase.list().contains(&phase) {
                return Ok(PhaseReport {
                    route: Vec::new(),
                    budgets: Vec::new(),
                    refined: None,
                    budgets_refined: None,
                });
            }
            let sensitivity = sensitivity(&profiles, phase, choice.budget_signal, config.layers);
            let stats: Vec<LayerStat> = sensitivity
                .iter()
                .map(|&sensitivity| LayerStat {
                    share: 1.0,
                    least,
                    sensitivity,
                })
                .collect();
            Ok(PhaseReport {
                route: best(
                    &profiles,
                    &candidates,
                    phase,
                    settings.signal,
                    settings.route,
                    1.0,
                )?,
                budgets: allocator.split(total, settings.length, &stats),
                refined: None,
                budgets_refined: None,
            })
        };
        Ok(Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_string(),
            model: config.fingerprint(),
            layers: config.layers,
            budget,
            prefill: phase(Phase::Prefill)?,
            decode: phase(Phase::Decode)?,
            settings,
            candidates,
            profiles,
            plan_hash: String::new(),
        })
    }

    /// # Errors
    /// A file that cannot be read or is no profile.
    pub fn read(path: &Path) -> Result<Self> {
        let text = crate::prompt::read_file(path)?;
        let report: Self = serde_json::from_str(&text).map_err(|e| {
            let found = format!("no profile ({e})");
            Error::invalid(path.display(), "content", found, "a profile of calibrate")
        })?;
        match report.schema == SCHEMA {
            true => Ok(report),
            false => Err(Error::invalid(
                path.display(),
                "schema",
                report.schema,
                SCHEMA,
            )),
        }
    }

    /// The worst candidate of each layer.
    ///
    /// # Errors
    /// A profile whose tables do not fit `layers`; `place` names it.
    pub fn worst(&self, place: &str, phase: Phase, layers: usize) -> Result<Vec<&Candidate>> {
        let inverse = Direction::Inverse;
        let picks = best(
            &self.profiles,
            &self.candidates,
            phase,
            self.settings.signal,
            inverse,
            1.0,
        )?;
        if picks.len() != layers {
            let allowed = format!("{layers}, the plan's");
            return Err(Error::invalid(place, "layers", picks.len(), allowed));
        }
        let pick = |&pick: &usize| {
            let allowed = format!("below {}, the candidates", self.candidates.len());
            let refused = || Error::invalid(place, "candidate", pick, allowed);
            self.candidates.get(pick).ok_or_else(refused)
        };
        picks.iter().map(pick).collect()
    }

    pub fn draft<'a>(&self, candidates: &'a [Candidate], budget: Budget) -> Draft<'a> {
        let allocator = allocate::by_name(&self.settings.allocator).ok();
        let online = allocator.is_some_and(|own| own.basis().is_online());
        let budgets = |own: &PhaseReport| match online {
            true => Vec::new(),
            false => own.budgets.clone(),
        };
        Draft {
            candidates,
            layers: self.layers,
            budget,
            model: Some(self.model.clone()),
            budgets: [budgets(&self.prefill), budgets(&self.decode)],
            online: online.then(|| self.settings.allocator.clone()),
        }
    }

    /// The routes that a search begins with: the plan's own, and those that make more or less of text. Several equal ones
    /// come once.
    ///
    /// # Errors
    /// As [`Report::new`].
    pub fn routes(&self, phase: Phase) -> Result<Vec<Vec<usize>>> {
        let mut routes = vec![self.phase(phase).route.clone()];
        if self.profiles.len() < 2 {
            return Ok(routes);
        }
        let Settings { signal, route, .. } = self.settings;
        for text in TEXT_FACTORS {
            let own = best(&self.profiles, &self.candidates, phase, signal, route, text)?;
            if !routes.contains(&own) {
                routes.push(own);
            }
        }
        Ok(routes)
    }

    pub fn phase(&self, phase: Phase) -> &PhaseReport {
        match phase {
            Phase::Prefill => &self.prefill,
            Phase::Decode => &self.decode,
        }
    }

    /// The least budget that works with every candidate, and the prompt's length.
    ///
    /// # Errors
    /// A candidate that cannot be built.
    pub fn limits(&self) -> Result<(usize, usize)> {
        Ok((least_budget(&self.candidates)?, self.settings.length))
    }

    /// Takes in what the searches of a phase found.
    pub fn set_refined(&mut self, phase: Phase, found: Found, budgets: Option<FoundBudgets>) {
        let own = match phase {
            Phase::Prefill => &mut self.prefill,
            Phase::Decode => &mut self.decode,
        };
        if let Some(found) = &budgets {
            own.budgets.clone_from(&found.budgets);
        }
        own.refined = Some(found);
        own.budgets_refined = budgets;
    }
}

fn least_budget(candidates: &[Candidate]) -> Result<usize> {
    let mut least = 1;
    for candidate in candidates {
        least = least.max(allocate::least_budget(&*candidate.build("command line")?));
    }
    Ok(least)
}

/// `text` is how much more plain text counts than questions, where both were measured.
fn best(
    profiles: &BTreeMap<Data, Profile>,
    candidates: &[Candidate],
    phase: Phase,
    signal: Signal,
    direction: Direction,
    text: f64,
) -> Result<Vec<usize>> {
    let profiles: Vec<(&Profile, f64)> = profiles
        .iter()
        .map(|(&data, own)| (own, if data == Data::Text { text } else { 1.0 }))
        .collect();
    let costs = candidates
        .iter()
        .map(|candidate| Ok(cost(candidate.build("profile")?.needs())))
        .collect::<Result<Vec<_>>>()?;
    Ok(route(&profiles, phase, signal, direction, &costs))
}

/// Attention of all queries costs more than any number of remembered ones.
fn cost(needs: polykv::policy::Needs) -> usize {
    needs.queries + if needs.attention { 1 << 20 } else { 0 }
}

/// Per layer; with two kinds of data the mean of both, each in proportion to its sum.
fn sensitivity(
    profiles: &BTreeMap<Data, Profile>,
    phase: Phase,
    signal: BudgetSignal,
    layers: usize,
) -> Vec<f64> {
    let mut sums = vec![0.0; layers];
    for profile in profiles.values() {
        let own = match signal {
            BudgetSignal::Entropy => profile.entropy.clone(),
            BudgetSignal::Ppl => profile.phase(phase).worst_delta_ppl(),
            // Evenly, until a search tells more.
            BudgetSignal::Effect => vec![1.0; layers],
        };
        let total: f64 = own.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        for (sum, own) in sums.iter_mut().zip(own) {
            *sum += own / total;
        }
    }
    sums
}
