use super::{
    Candidate, Data, Direction, FoundBudgets, FoundRoute, PlanDraft, Profile, Signal, route,
};
use crate::allocate::{Allocator, least_budget};
use crate::budget::{Budget, EntryCost};
use crate::codes::Codes;
use crate::phase::Phase;
use crate::plan::{Plan, Rule};
use crate::policy::{Needs, Policies, PolicySpec};
use crate::{Error, Result, files};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The version of the report's schema.
pub const SCHEMA: u32 = 1;

/// The most bytes of a report; larger files are refused.
const MAX_BYTES: u64 = 1 << 30;

/// The factors by which text counts more than questions in the routes that a search starts from, beside 1.
const TEXT_FACTORS: [f64; 6] = [0.25, 0.5, 2.0, 4.0, 8.0, 16.0];

/// The result of a calibration with every number that led to it. The command line writes it as `profile.json`. Later versions
/// may add fields, but do not rename or drop any.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// The version of the schema, [`SCHEMA`].
    pub schema: u32,
    /// The version of the program that made the report.
    pub version: String,
    /// The fingerprint of the model.
    pub model: String,
    /// The number of the model's layers.
    pub layers: usize,
    /// The plan's budget.
    pub budget: Budget,
    /// How the examples were made, and the choices of the calibration.
    pub settings: Settings,
    /// The policies to choose from. Routes and tables name them by index: first all in the first format of
    /// [`Report::kv`](Self#structfield.kv), then all in the next one and so on.
    pub candidates: Vec<PolicySpec>,
    /// The formats of entries to choose from, `None` for the cache's type; empty if there was only that one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kv: Vec<Option<Codes>>,
    /// The part of the budget for each KV head of each layer, see [`parts`](super::parts); empty if policies divide the budgets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<Vec<f64>>,
    /// The signals for each kind of data that was measured.
    pub profiles: BTreeMap<Data, Profile>,
    /// The route and the budgets of the prefill.
    pub prefill: PhaseReport,
    /// The route and the budgets of the decode phase.
    pub decode: PhaseReport,
    /// The fingerprint of the plan file, see [`PlanFile::hash`](crate::PlanFile::hash); empty until there is one.
    pub plan_hash: String,
}

/// The signal that an allocator of [`Basis::Calibration`](crate::allocate::Basis::Calibration) splits the budget by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BudgetSignal {
    /// The entropy of a layer's attention.
    Entropy,
    /// The rise of perplexity under the layer's worst candidate.
    Ppl,
    /// The effect of more entries in a layer on the loss of the whole plan, which is an addition of this project. The report
    /// has even budgets; a [`BudgetSearch`](super::BudgetSearch) then improves them.
    Effect,
}

/// The settings of a calibration, as its report states them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Tokens of each prompt.
    pub length: usize,
    /// Scored tokens of each text after its prompt.
    pub continuation: usize,
    /// Whether a question follows the compressed text instead of being part of the prompt that is compressed.
    pub question_after: bool,
    /// The seed of the examples and of the searches.
    pub seed: u64,
    /// The signal that the route is chosen by.
    pub signal: Signal,
    /// Whether the route has the best candidate of each layer or the worst.
    pub route: Direction,
    /// The name of the allocator.
    pub allocator: String,
    /// The signal that the allocator split the budget by, if its basis is a calibration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_signal: Option<BudgetSignal>,
    /// The most plans that the search over routes may evaluate; 0 without a search.
    pub refine: usize,
}

/// The route and the budgets of one phase.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PhaseReport {
    /// The index of a candidate for each layer, chosen by the effect of each layer alone; empty for a phase that keeps
    /// everything.
    pub route: Vec<usize>,
    /// Entries per KV head for each layer, for a prompt of [`Settings::length`] tokens, see [`PlanDraft::budgets`]; empty for
    /// a phase that keeps everything.
    pub budgets: Vec<usize>,
    /// The result of the search over routes, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refined: Option<FoundRoute>,
    /// The result of the search over budgets with the route that was found, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budgets_refined: Option<FoundBudgets>,
}

impl PhaseReport {
    /// The route of the plan, the index of a candidate for each layer: that of the search if there was one. `None` for a phase
    /// that keeps everything.
    pub fn picks(&self) -> Option<&[usize]> {
        let refined = self.refined.as_ref().map(|found| &found.picks);
        let picks = refined.unwrap_or(&self.route);
        (!picks.is_empty()).then_some(picks)
    }
}

impl Report {
    /// Reads a report from a JSON file.
    ///
    /// # Errors
    /// A file that cannot be read, has more than 2^30 bytes, or is no report of schema 1.
    pub fn read(path: &Path) -> Result<Self> {
        let refuse = |field, found, allowed| Error::invalid(path.display(), field, found, allowed);
        let text = files::read_capped_text(path, MAX_BYTES)?;
        let report: Self = serde_json::from_str(&text).map_err(|e| {
            let found = format!("no profile ({e})");
            refuse("content", found, "a profile of calibrate".to_string())
        })?;
        match report.schema {
            SCHEMA => Ok(report),
            other => Err(refuse("schema", other.to_string(), SCHEMA.to_string())),
        }
    }

    /// The report as one line of JSON.
    ///
    /// # Errors
    /// A number that JSON cannot hold.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::Failed(format!("a report as JSON: {e}")))
    }

    /// The route and the budgets of one phase.
    pub fn phase(&self, phase: Phase) -> &PhaseReport {
        match phase {
            Phase::Prefill => &self.prefill,
            Phase::Decode => &self.decode,
        }
    }

    /// Builds the candidates from the names of policies, in every format.
    ///
    /// # Errors
    /// What [`PolicySpec::build`] refuses.
    pub fn candidates(&self, policies: &Policies) -> Result<Vec<Candidate>> {
        let specs = self.candidates.iter();
        let built = specs.map(|spec| spec.build(policies));
        let built: Vec<_> = built.collect::<Result<_>>()?;
        Ok(Candidate::all(&built, self.formats()))
    }

    /// The name of a candidate for tables.
    pub fn name(&self, candidate: usize) -> String {
        let policies = self.candidates.len().max(1);
        let spec = self.candidates.get(candidate % policies);
        let name = spec.map_or(String::new(), ToString::to_string);
        match self.formats().get(candidate / policies) {
            Some(Some(codes)) => format!("{name} in {codes}"),
            _ => name,
        }
    }

    /// The number of candidates that a phase chooses from, which are the first, see [`Candidate::of_phase`].
    pub fn choices(&self, phase: Phase) -> usize {
        let mut profiles = self.profiles.values();
        let beside =
            phase == Phase::Decode && profiles.any(|profile| !profile.prefill.cosine.is_empty());
        let formats = if beside { 1 } else { self.formats().len() };
        self.candidates.len().saturating_mul(formats)
    }

    fn formats(&self) -> &[Option<Codes>] {
        match self.kv.as_slice() {
            [] => &[None],
            formats => formats,
        }
    }

    /// A draft with the budgets of this report, from which plans are made, where an entry costs `cost`. `candidates` are those
    /// of the report, see [`Report::candidates`]. If `allocator` splits the budget anew for each prompt, the draft names it
    /// instead of budgets.
    #[must_use]
    pub fn draft<'a>(
        &self,
        candidates: &'a [Candidate],
        allocator: &Arc<dyn Allocator>,
        cost: EntryCost,
    ) -> PlanDraft<'a> {
        let online = allocator.basis().is_online();
        let budgets = |phase: &PhaseReport| match online {
            true => Vec::new(),
            false => phase.budgets.clone(),
        };
        PlanDraft {
            candidates,
            cost,
            budget: self.budget,
            budgets: [budgets(&self.prefill), budgets(&self.decode)],
            heads: self.heads.clone(),
            online: online.then(|| allocator.clone()),
        }
    }

    /// The routes that a search starts from, each once: that of the report, and if both kinds of data were measured those in
    /// which text counts more or less. `candidates` are those of the phase, see [`Candidate::of_phase`].
    pub fn routes(&self, candidates: &[Candidate], phase: Phase) -> Vec<Vec<usize>> {
        let mut routes = vec![self.phase(phase).route.clone()];
        if self.profiles.len() < 2 {
            return routes;
        }
        for text in TEXT_FACTORS {
            let direction = self.settings.route;
            let route = best(self, candidates, phase, direction, text, &|_, _| true);
            if !routes.contains(&route) {
                routes.push(route);
            }
        }
        routes
    }

    /// The least budget that works with each of `candidates`, and the most entries that each layer holds of the prompt, as
    /// [`BudgetSearch::limits`] has them. `formats` are those of the layers.
    ///
    /// # Errors
    /// A candidate that protects more than its budget under every budget.
    ///
    /// [`BudgetSearch::limits`]: super::BudgetSearch::limits
    pub fn limits(
        &self,
        candidates: &[Candidate],
        formats: &[Option<Codes>],
        cost: &EntryCost,
    ) -> Result<(usize, Vec<usize>)> {
        let draft = PlanDraft {
            candidates,
            cost: cost.clone(),
            budget: self.budget,
            budgets: [Vec::new(), Vec::new()],
            heads: Vec::new(),
            online: None,
        };
        let mut least = 1;
        for candidate in candidates {
            let entries = least_budget(&*candidate.policy)?;
            for &format in formats {
                least = least.max(draft.in_cache_type(entries, format));
            }
        }
        let most = |(layer, &format): (usize, &Option<Codes>)| {
            let entries = cost.most(layer).min(self.settings.length);
            draft.in_cache_type(entries, format)
        };
        Ok((least, formats.iter().enumerate().map(most).collect()))
    }

    /// Stores the results of the searches of a phase. Budgets that a search found replace those of the report.
    pub fn set_refined(&mut self, phase: Phase, found: FoundRoute, budgets: Option<FoundBudgets>) {
        let report = match phase {
            Phase::Prefill => &mut self.prefill,
            Phase::Decode => &mut self.decode,
        };
        if let Some(found) = &budgets {
            report.budgets.clone_from(&found.budgets);
        }
        report.refined = Some(found);
        report.budgets_refined = budgets;
    }

    /// A control for `plan`: the same plan with the policy of each layer replaced by its worst candidate of the same format,
    /// under the same budgets. Layers and phases that keep everything stay as they are.
    ///
    /// # Errors
    /// A plan of another number of layers, no candidates, and tables that do not fit the layers and candidates.
    pub fn invert(&self, plan: &Plan, candidates: &[Candidate]) -> Result<Plan> {
        if self.layers != plan.layers.len() {
            let allowed = format!("{}, the plan's", plan.layers.len());
            return Err(Error::invalid("profile", "layers", self.layers, allowed));
        }
        let mut inverse = plan.clone();
        for phase in Phase::BOTH {
            if plan.rules(phase).all(|rule| *rule == Rule::Keep) {
                continue;
            }
            let candidates = &candidates[..self.choices(phase).min(candidates.len())];
            self.check_tables(phase, candidates.len())?;
            let format = |candidate: &Candidate| candidate.kv;
            let others = candidates
                .iter()
                .any(|one| Some(one.kv) != candidates.first().map(format));
            let allowed = |layer: usize, candidate: usize| {
                !others || candidates[candidate].kv == plan.layers[layer].kv
            };
            let picks = best(self, candidates, phase, Direction::Inverse, 1.0, &allowed);
            for (layer, pick) in inverse.layers.iter_mut().zip(picks) {
                if let Rule::Evict { policy, .. } = layer.rule_mut(phase) {
                    *policy = candidates[pick].policy.clone();
                }
            }
        }
        Ok(inverse)
    }

    /// Checks that the tables of the signal have a row per layer and a column per candidate.
    fn check_tables(&self, phase: Phase, candidates: usize) -> Result<()> {
        if candidates == 0 {
            return Err(Error::invalid("profile", "candidates", 0, "at least 1"));
        }
        for profile in self.profiles.values() {
            let table = match self.settings.signal {
                Signal::Cosine => &profile.phase(phase).cosine,
                Signal::Ppl => &profile.phase(phase).delta_ppl,
            };
            let fits = table.len() == self.layers;
            if !fits || table.iter().any(|row| row.len() != candidates) {
                let widths: Vec<usize> = table.iter().map(Vec::len).collect();
                let field = format!("numbers per layer of the {phase}");
                let found = format!("{widths:?}");
                let allowed = format!("{candidates} for each of {} layers", self.layers);
                return Err(Error::invalid("profile", field, found, allowed));
            }
        }
        Ok(())
    }
}

/// The route of one phase. `text` is the factor by which plain text counts more than questions, where both were measured.
/// `allowed` says which candidates a layer may get.
pub(super) fn best(
    report: &Report,
    candidates: &[Candidate],
    phase: Phase,
    direction: Direction,
    text: f64,
    allowed: &dyn Fn(usize, usize) -> bool,
) -> Vec<usize> {
    let factor = |data| if data == Data::Text { text } else { 1.0 };
    let profiles = report.profiles.iter();
    let profiles: Vec<(&Profile, f64)> = profiles
        .map(|(&data, profile)| (profile, factor(data)))
        .collect();
    let costs = candidates.iter().map(|one| cost(one.policy.needs()));
    let costs: Vec<usize> = costs.collect();
    let signal = report.settings.signal;
    route(&profiles, phase, signal, direction, &costs, allowed)
}

/// Ranks candidates by their cost: looking at the attention of all queries costs more than remembering any number of them.
fn cost(needs: Needs) -> usize {
    needs.queries + if needs.attention { 1 << 20 } else { 0 }
}

#[cfg(test)]
mod tests;
