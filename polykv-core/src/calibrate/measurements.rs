use super::report::{best, least_of_all};
use super::{BudgetSignal, Data, Measured, PhaseReport, Profile, Report, SCHEMA, Settings};
use crate::Result;
use crate::allocate::{Allocator, Basis, LayerStat};
use crate::apportion::capped;
use crate::budget::{Budget, EntryCost};
use crate::phase::Phase;
use crate::policy::{Policy, PolicySpec};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The measurements of a model and the choices by which they become routes and budgets.
#[derive(Clone, Debug)]
pub struct Measurements<'a> {
    /// The fingerprint of the model.
    pub model: String,
    /// The windows of the model's layers and the memory of an entry.
    pub cost: EntryCost,
    /// The names and parameters of the candidates.
    pub specs: Vec<PolicySpec>,
    /// The candidates, in the same order.
    pub candidates: &'a [Arc<dyn Policy>],
    /// The phases that evict, all of which were measured.
    pub phases: &'a [Phase],
    /// The plan's budget.
    pub budget: Budget,
    /// The allocator that splits the budget.
    pub allocator: &'a dyn Allocator,
    /// The signal that it splits by, if its basis is [`Basis::Calibration`].
    pub budget_signal: BudgetSignal,
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
        let mut report = Report {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_string(),
            model: self.model,
            layers: self.cost.windows.len(),
            budget: self.budget,
            settings,
            candidates: self.specs,
            profiles,
            prefill: PhaseReport::default(),
            decode: PhaseReport::default(),
            plan_hash: String::new(),
        };
        let least = least_of_all(self.candidates)?;
        let length = report.settings.length;
        let total = self.budget.total(length, &self.cost);
        let most: Vec<usize> = (0..report.layers)
            .map(|layer| self.cost.most(layer))
            .collect();
        for &phase in self.phases {
            let stat = |(sensitivity, &most): (f64, &usize)| LayerStat {
                share: 1.0,
                least: least.min(most),
                sensitivity,
            };
            let stats = sensitivity(&report, phase, self.budget_signal);
            let stats: Vec<LayerStat> = stats.into_iter().zip(&most).map(stat).collect();
            let found = PhaseReport {
                route: best(&report, self.candidates, phase, report.settings.route, 1.0),
                budgets: capped(&self.allocator.split(total, length, &stats), &most, length),
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
