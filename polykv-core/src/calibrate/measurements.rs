use super::heads;
use super::report::best;
use super::{
    BudgetSignal, Candidate, Data, Measured, PhaseReport, Profile, Report, SCHEMA, Settings,
};
use crate::Result;
use crate::allocate::{Allocator, Basis, LayerStat};
use crate::apportion::capped;
use crate::budget::{Budget, EntryCost};
use crate::codes::Codes;
use crate::phase::Phase;
use crate::policy::PolicySpec;
use std::collections::BTreeMap;

/// The measurements of a model and the choices by which they become routes and budgets.
#[derive(Clone, Debug)]
pub struct Measurements<'a> {
    /// The fingerprint of the model.
    pub model: String,
    /// The windows of the model's layers and the memory of an entry.
    pub cost: EntryCost,
    /// The names and parameters of the policies to choose from.
    pub specs: Vec<PolicySpec>,
    /// The formats to choose from, at least one.
    pub kv: Vec<Option<Codes>>,
    /// The policies in every format, as [`Candidate::all`] makes them of both lists.
    pub candidates: &'a [Candidate],
    /// The phases that evict, all of which were measured.
    pub phases: &'a [Phase],
    /// The plan's budget.
    pub budget: Budget,
    /// The allocator that splits the budget.
    pub allocator: &'a dyn Allocator,
    /// The signal that it splits by, if its basis is [`Basis::Calibration`].
    pub budget_signal: BudgetSignal,
    /// The part of the budget for each KV head of each layer, see [`parts`](super::parts), which the layers' budgets then follow;
    /// empty to leave the division to the policies.
    pub heads: Vec<Vec<f64>>,
    /// The settings that the report states. [`Settings::signal`] and [`Settings::route`] decide the route, and
    /// [`Settings::length`] is the prompt length for which the budget is split.
    pub settings: Settings,
    /// The measurements, one per example.
    pub measured: &'a [Measured],
}

impl Measurements<'_> {
    /// A report with a route and budgets for each phase, by the effect of each layer alone.
    ///
    /// # Errors
    /// A candidate that protects more than its budget under every budget.
    pub fn report(self) -> Result<Report> {
        let profiles: BTreeMap<Data, Profile> = [Data::Text, Data::Evidence]
            .into_iter()
            .filter_map(|data| Some((data, Profile::of(self.measured, data)?)))
            .collect();
        let mut settings = self.settings;
        settings.allocator = self.allocator.name().to_string();
        let follows = self.allocator.basis() == Basis::Calibration;
        settings.budget_signal = follows.then_some(self.budget_signal);
        let kv = match self.kv.as_slice() {
            [None] => Vec::new(),
            formats => formats.to_vec(),
        };
        let mut report = Report {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_string(),
            model: self.model,
            layers: self.cost.windows.len(),
            budget: self.budget,
            settings,
            candidates: self.specs,
            kv,
            heads: self.heads,
            profiles,
            prefill: PhaseReport::default(),
            decode: PhaseReport::default(),
            plan_hash: String::new(),
        };
        let length = report.settings.length;
        let total = self.budget.total(length, &self.cost);
        let phases = Phase::BOTH.into_iter();
        for phase in phases.filter(|phase| self.phases.contains(phase)) {
            let candidates = Candidate::of_phase(self.candidates, phase, self.phases);
            let forward = report.settings.route;
            let route = best(&report, candidates, phase, forward, 1.0, &|_, _| true);
            // A layer has the format of its candidate in the prefill if that phase evicts, which comes first.
            let formats = match report.prefill.route.as_slice() {
                [] => &route,
                prefill => prefill,
            };
            let formats = Candidate::formats(self.candidates, formats);
            let (least, most) = report.limits(self.candidates, &formats, &self.cost)?;
            let stat = |(sensitivity, &most): (f64, &usize)| LayerStat {
                share: 1.0,
                least: least.min(most),
                sensitivity,
            };
            let stats = sensitivity(&report, phase, self.budget_signal);
            let stats: Vec<LayerStat> = stats.into_iter().zip(&most).map(stat).collect();
            let split = match report.heads.is_empty() {
                true => self.allocator.split(total, length, &stats),
                false => heads::budgets(&report.heads, total, least, &most),
            };
            let found = PhaseReport {
                route,
                budgets: capped(&split, &most, length),
                ..PhaseReport::default()
            };
            match phase {
                Phase::Prefill => report.prefill = found,
                Phase::Decode => report.decode = found,
            }
        }
        Ok(report)
    }
}

/// The sensitivity of each layer. With two kinds of data the signals of each are divided by their sum and added up.
fn sensitivity(report: &Report, phase: Phase, signal: BudgetSignal) -> Vec<f64> {
    let mut sums = vec![0.0; report.layers];
    for profile in report.profiles.values() {
        let signals = match signal {
            BudgetSignal::Entropy => profile.entropy.clone(),
            BudgetSignal::Ppl => profile.phase(phase).worst_delta_ppl(),
            // Evenly, until a search tells more.
            BudgetSignal::Effect => vec![1.0; report.layers],
        };
        let total: f64 = signals.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        for (sum, signal) in sums.iter_mut().zip(signals) {
            *sum += signal / total;
        }
    }
    sums
}
