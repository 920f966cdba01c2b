use super::{EvidenceOptions, Example, Examples, JournalOptions, TextOptions};
use crate::LoadedModel;
use polykv_core::allocate::{Basis, UniformAllocator};
use polykv_core::calibrate::{
    BudgetSignal, Candidate, CandidatePolicy, Direction, Settings, Signal,
};
use polykv_core::{Allocator, Budget, Codes, Error, Phase, Policy, Registry, Result};
use std::sync::Arc;

/// Which examples count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// The likelihood of a text's continuation (PolyKV, arXiv 2606.15157).
    Text,
    /// The likelihood of an answer that is hidden in the text (our addition).
    Evidence,
    /// Both: the loss beyond the best policy on either, on a common scale (our addition).
    Both,
}

/// Options of [`calibrate`](super::calibrate).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CalibrateOptions {
    /// The policies to choose from, at least one.
    pub candidates: Vec<CandidatePolicy>,
    /// The formats of entries to choose from, `None` for the cache's type: one, or under a budget in bytes several, each once.
    /// A layer has one format, which is chosen with the policy of its prefill if that phase evicts (our addition).
    pub kv: Vec<Option<Codes>>,
    /// The plan's budget.
    pub budget: Budget,
    /// The phases that evict, each once; the other one keeps everything.
    pub phases: Vec<Phase>,
    /// Which examples count.
    pub objective: Objective,
    /// The number of windows of text.
    pub examples: usize,
    /// The number of questions about hidden facts.
    pub evidence: usize,
    /// Tokens of each prompt.
    pub length: usize,
    /// Tokens of a text after its prompt, at least 2.
    pub continuation: usize,
    /// Whether a question runs over the compressed text. Otherwise it is part of the prompt and compressed with it.
    pub question_after: bool,
    /// Seed of the examples and of the searches.
    pub seed: u64,
    /// Whether every KV head gets a part of the budget of its own, by what repeating the examples attends to (KVzip, arXiv
    /// 2505.23416, as a teacher; our addition). The layers' budgets follow it instead of the allocator.
    pub heads: bool,
    /// The signal by which the route ranks the candidates of a layer.
    pub signal: Signal,
    /// Whether the route takes the best candidate of each layer, or as a control the worst.
    pub route: Direction,
    /// Splits the budget over layers.
    pub allocator: Arc<dyn Allocator>,
    /// The signal that an allocator of [`Basis::Calibration`] splits the budget by.
    pub budget_signal: BudgetSignal,
    /// Evaluations of whole plans that may improve the route of each phase.
    pub refine: usize,
    /// The phases whose routes are refined.
    pub refine_phases: Vec<Phase>,
    /// The registry whose names the plan file uses.
    pub registry: Registry,
    /// Where measurements are kept, so that an interrupted calibration can go on; without it they are in memory only.
    pub journal: Option<JournalOptions>,
}

impl CalibrateOptions {
    /// Options with these defaults: both phases, 8 windows of text with a prompt of 1024 tokens and a continuation of
    /// 128, a route by the best cosine, the same budget for every layer, no search and no journal.
    pub fn new(candidates: Vec<CandidatePolicy>, budget: Budget) -> Self {
        Self {
            candidates,
            kv: vec![None],
            budget,
            phases: Phase::BOTH.to_vec(),
            objective: Objective::Text,
            examples: 8,
            evidence: 12,
            length: 1024,
            continuation: 128,
            question_after: false,
            seed: 0,
            heads: false,
            signal: Signal::Cosine,
            route: Direction::Forward,
            allocator: Arc::new(UniformAllocator),
            budget_signal: BudgetSignal::Entropy,
            refine: 0,
            refine_phases: Phase::BOTH.to_vec(),
            registry: Registry::default(),
            journal: None,
        }
    }

    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// A budget out of range, no candidates or phases, a search that does not go with the allocator or the phases, budgets
    /// by effect without a search. The error names the option.
    pub fn check(&self) -> Result<()> {
        let refuse = |field: &str, found: String, allowed: &str| {
            Err(Error::invalid("calibration", field, found, allowed))
        };
        self.budget.check()?;
        if self.candidates.is_empty() {
            return refuse("policies", "0".into(), "at least 1");
        }
        let twice = |(index, kv): (usize, &Option<Codes>)| self.kv[..index].contains(kv);
        if self.kv.is_empty() || self.kv.iter().enumerate().any(twice) {
            return refuse("kv", format!("{:?}", self.kv), "at least 1, each once");
        }
        if self.kv.len() > 1 && !self.budget.counts_bytes() {
            let found = format!("{} formats beside a budget in entries", self.kv.len());
            return refuse("kv", found, "1, or a budget in bytes");
        }
        self.check_heads()?;
        let Some(first) = self.phases.first() else {
            return refuse("phases", "none".into(), "prefill, decode, or both");
        };
        let basis = self.allocator.basis();
        if self.refine > 0 && basis == Basis::Layers {
            // A route is put together from layers that ran under other routes, which had other budgets.
            let found = format!("{} beside allocator {}", self.refine, self.allocator.name());
            let allowed = "0, or an allocator that need not see the layers first";
            return refuse("refine", found, allowed);
        }
        let mut refined = self.refine_phases.iter();
        if self.refine > 0 && !refined.any(|phase| self.phases.contains(phase)) {
            let found = self.refine_phases.first().map(ToString::to_string);
            let allowed = format!("{first}, the phase that evicts");
            return refuse("refine_phase", found.unwrap_or_default(), &allowed);
        }
        if self.searches_budgets() && self.refine == 0 {
            let allowed = "with refine: it is a search, too";
            return refuse("budget_signal", "effect".into(), allowed);
        }
        Ok(())
    }

    /// Whether budgets of KV heads go with the other options.
    fn check_heads(&self) -> Result<()> {
        if !self.heads {
            return Ok(());
        }
        let refuse = |field: &str, found: String, allowed: &str| {
            Err(Error::invalid("calibration", field, found, allowed))
        };
        let basis = self.allocator.basis();
        let follows = basis == Basis::Calibration && !self.searches_budgets();
        if basis.is_online() || follows {
            let found = format!("beside allocator {}", self.allocator.name());
            let allowed = "allocator uniform, or calibrated by effect: budgets follow the heads";
            return refuse("heads", found, allowed);
        }
        let whole = |candidate: &&CandidatePolicy| !candidate.policy.can_be_divided();
        match self.candidates.iter().find(whole) {
            Some(found) => {
                let allowed = "policies that neither merge nor divide budgets, beside heads";
                refuse("policies", found.spec.to_string(), allowed)
            }
            None => Ok(()),
        }
    }

    /// The policies in every format.
    pub(super) fn all_candidates(&self) -> Vec<Candidate> {
        let candidates = self.candidates.iter();
        let policies = candidates.map(|candidate| candidate.policy.clone());
        let policies: Vec<Arc<dyn Policy>> = policies.collect();
        Candidate::all(&policies, &self.kv)
    }

    /// Whether likelihoods have to be measured beside cosines.
    pub(super) fn likelihoods(&self) -> bool {
        let calibrated = self.allocator.basis() == Basis::Calibration;
        let budgets = calibrated && self.budget_signal == BudgetSignal::Ppl;
        self.signal == Signal::Ppl || budgets
    }

    /// Whether budgets are searched for with the whole plan in effect.
    pub(super) fn searches_budgets(&self) -> bool {
        let calibrated = self.allocator.basis() == Basis::Calibration;
        calibrated && self.budget_signal == BudgetSignal::Effect
    }

    /// Whether there are windows of text, and questions about hidden facts.
    pub(super) fn kinds(&self) -> (bool, bool) {
        let (text, evidence) = (Objective::Text, Objective::Evidence);
        (self.objective != evidence, self.objective != text)
    }

    pub(super) fn settings(&self) -> Settings {
        Settings {
            length: self.length,
            continuation: self.continuation,
            question_after: self.question_after,
            seed: self.seed,
            signal: self.signal,
            route: self.route,
            allocator: self.allocator.name().to_string(),
            budget_signal: None,
            refine: self.refine,
        }
    }

    /// # Errors
    /// What [`Examples`] refuses.
    pub(super) fn make_examples(
        &self,
        model: &LoadedModel,
        texts: &[String],
    ) -> Result<Vec<Example>> {
        let mut examples = Examples::default();
        let (text, evidence) = self.kinds();
        if text {
            let options = TextOptions {
                examples: self.examples,
                length: self.length,
                continuation: self.continuation,
                seed: self.seed,
            };
            examples.add_text(model, texts, &options)?;
        }
        if evidence {
            let options = EvidenceOptions {
                examples: self.evidence,
                length: self.length,
                question_after: self.question_after,
                seed: self.seed,
            };
            examples.add_evidence(model, &options)?;
        }
        Ok(examples.0)
    }
}
