use super::Candidate;
use crate::allocate::Allocator;
use crate::budget::{Budget, EntryCost};
use crate::codes::Codes;
use crate::phase::Phase;
use crate::plan::{LayerPlan, Plan, Rule, Share};
use std::sync::Arc;

/// Everything of a plan but the choice of a candidate for each layer.
#[derive(Clone, Debug)]
pub struct PlanDraft<'a> {
    /// The candidates that routes name by index.
    pub candidates: &'a [Candidate],
    /// The memory of an entry and the windows of the model's layers, as many as it has layers.
    pub cost: EntryCost,
    /// The plan's budget.
    pub budget: Budget,
    /// Entries per KV head in each layer if it keeps them in the cache's type, for the prefill and for the decode phase; empty
    /// for equal budgets in all layers. Under a budget in bytes a layer in codes has as many as fit in the same memory.
    pub budgets: [Vec<usize>; 2],
    /// A part for each KV head in each layer, see [`LayerPlan::heads`]; empty if policies divide the budgets.
    pub heads: Vec<Vec<f64>>,
    /// An allocator that splits the budget anew for each prompt, if the plan names one; then there are no budgets.
    pub online: Option<Arc<dyn Allocator>>,
}

impl PlanDraft<'_> {
    /// The number of the model's layers.
    pub fn layers(&self) -> usize {
        self.cost.windows.len()
    }

    /// The budgets of one phase, one per layer, see [`PlanDraft::budgets`](Self#structfield.budgets).
    pub fn budgets(&self, phase: Phase) -> &[usize] {
        match phase {
            Phase::Prefill => &self.budgets[0],
            Phase::Decode => &self.budgets[1],
        }
    }

    /// The plan with these candidates, an index per layer for each phase. In a phase with `None` it keeps everything. A layer
    /// has the format of its candidate in the prefill, or in the decode phase if the prefill keeps everything.
    #[must_use]
    pub fn plan(&self, prefill: Option<&[usize]>, decode: Option<&[usize]>) -> Plan {
        self.assemble([prefill, decode], false)
    }

    /// The plan in which `phase` has the candidates `picks`, an index per layer. If `phase` is the decode phase, the prefill
    /// has the candidates `prefill`; otherwise the decode phase keeps everything.
    #[must_use]
    pub fn with(&self, phase: Phase, prefill: Option<&[usize]>, picks: &[usize]) -> Plan {
        self.assemble(in_phase(phase, prefill, picks), false)
    }

    /// The same draft with other budgets in one phase.
    #[must_use]
    pub fn with_budgets(&self, phase: Phase, budgets: &[usize]) -> Self {
        let mut draft = self.clone();
        match phase {
            Phase::Prefill => draft.budgets[0] = budgets.to_vec(),
            Phase::Decode => draft.budgets[1] = budgets.to_vec(),
        }
        draft
    }

    /// The plan of [`PlanDraft::with`] with other budgets in `phase`, whose sum may differ from the draft's budget. The plan
    /// states the entries of each layer, for prompts of any length.
    #[must_use]
    pub fn trial(
        &self,
        phase: Phase,
        prefill: Option<&[usize]>,
        picks: &[usize],
        budgets: &[usize],
    ) -> Plan {
        let draft = self.with_budgets(phase, budgets);
        draft.assemble(in_phase(phase, prefill, picks), true)
    }

    /// The least of [`PlanDraft::budgets`](Self#structfield.budgets) under which a layer has `entries` entries in a format.
    pub fn in_cache_type(&self, entries: usize, kv: Option<Codes>) -> usize {
        match self.budget.counts_bytes() {
            false => entries,
            true => {
                let bytes = entries.saturating_mul(self.cost.bytes_in(kv));
                let bytes = bytes.saturating_add(self.cost.bytes_beside(kv));
                bytes.div_ceil(self.cost.bytes.max(1))
            }
        }
    }

    /// The entries of a layer with a budget of the draft, in a format.
    fn entries(&self, budget: usize, kv: Option<Codes>) -> usize {
        match self.budget.counts_bytes() {
            false => budget,
            true => {
                let bytes = budget.saturating_mul(self.cost.bytes);
                let bytes = bytes.saturating_sub(self.cost.bytes_beside(kv));
                (bytes / self.cost.bytes_in(kv).max(1)).max(1)
            }
        }
    }

    /// A plan that states entries instead of the draft's budget is as large as its larger phase.
    fn assemble(&self, picks: [Option<&[usize]>; 2], stated: bool) -> Plan {
        let mut plan = Plan::new(vec![LayerPlan::KEEP; self.layers()], self.budget);
        plan.online = self.online.clone();
        if let Some(picks) = picks[0].or(picks[1]) {
            let formats = Candidate::formats(self.candidates, picks);
            for (layer, kv) in plan.layers.iter_mut().zip(formats) {
                layer.kv = kv;
            }
        }
        plan.set_heads(&self.heads);
        let mut most = 1;
        for (phase, picks) in Phase::BOTH.into_iter().zip(picks) {
            let Some(picks) = picks else { continue };
            let budgets = self.budgets(phase).iter().zip(&plan.layers);
            let entries = budgets.map(|(&budget, layer)| self.entries(budget, layer.kv));
            let entries: Vec<usize> = entries.collect();
            most = most.max(entries.iter().sum());
            plan.set_rules(phase, self.rules(&entries, picks, stated));
        }
        if stated {
            plan.budget = Budget::Total(most);
        }
        plan
    }

    fn rules(&self, entries: &[usize], picks: &[usize], stated: bool) -> Vec<Rule> {
        let (least, most) = (entries.iter().min(), entries.iter().max());
        let counts = stated || matches!(self.budget, Budget::Tokens(_) | Budget::Total(_));
        let uneven = match self.budget {
            Budget::Tokens(tokens) if !stated => entries.iter().any(|&count| count != tokens),
            _ if counts => !entries.is_empty(),
            // A split that differs by what does not divide is what a plan without shares means.
            _ => least
                .zip(most)
                .is_some_and(|(least, most)| most - least > 1),
        };
        let rule = |(layer, &pick): (usize, &usize)| {
            let rule = Rule::evict(self.candidates[pick].policy.clone());
            match (uneven, counts) {
                (false, _) => rule,
                (true, true) => rule.with_share(Share::Entries(entries[layer])),
                (true, false) => rule.with_share(Share::Part(entries[layer] as f64)),
            }
        };
        picks.iter().enumerate().map(rule).collect()
    }
}

fn in_phase<'a>(
    phase: Phase,
    prefill: Option<&'a [usize]>,
    picks: &'a [usize],
) -> [Option<&'a [usize]>; 2] {
    match phase {
        Phase::Prefill => [Some(picks), None],
        Phase::Decode => [prefill, Some(picks)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Params, Policies};

    fn shares(plan: &Plan, phase: Phase) -> Vec<Option<Share>> {
        let share = |rule: &Rule| match rule {
            Rule::Keep => None,
            Rule::Evict { share, .. } => Some(*share),
        };
        plan.rules(phase).map(share).collect()
    }

    fn candidates(formats: &[Option<Codes>]) -> Vec<Candidate> {
        let policies = Policies::default();
        let policies = ["{}", "{window: 8}"].map(|params| {
            let name = if params == "{}" { "tova" } else { "snapkv" };
            policies
                .build(name, &Params::from_yaml(params).unwrap())
                .unwrap()
        });
        Candidate::all(&policies, formats)
    }

    fn draft(candidates: &[Candidate], budget: Budget, budgets: [usize; 3]) -> PlanDraft<'_> {
        PlanDraft {
            candidates,
            heads: Vec::new(),
            cost: EntryCost {
                windows: vec![None; 3].into(),
                bytes: 200,
                half: 100,
                coded: [60, 40],
            },
            budget,
            budgets: [budgets.to_vec(), Vec::new()],
            online: None,
        }
    }

    #[test]
    fn drafts_become_valid_plans() {
        let candidates = candidates(&[None]);
        let draft = |budget, budgets| draft(&candidates, budget, budgets);
        let entries = |budgets: [usize; 3]| budgets.map(|budget| Some(Share::Entries(budget)));
        let plan = draft(Budget::Tokens(20), [30, 15, 15]).plan(Some(&[0, 1, 1]), None);
        plan.check().unwrap();
        assert_eq!(shares(&plan, Phase::Prefill), entries([30, 15, 15]));
        assert_eq!(shares(&plan, Phase::Decode), [None; 3]);
        assert_eq!(
            plan.layers[1].prefill.policy().unwrap().key(),
            candidates[1].policy.key()
        );
        let plan = draft(Budget::Ratio(0.5), [30, 15, 15]).plan(Some(&[0, 1, 0]), Some(&[1, 1, 1]));
        plan.check().unwrap();
        assert_eq!(shares(&plan, Phase::Prefill)[0], Some(Share::Part(30.0)));
        assert_eq!(shares(&plan, Phase::Decode), [Some(Share::Part(1.0)); 3]);
        let even = draft(Budget::Ratio(0.5), [9; 3]);
        let plan = even.trial(Phase::Decode, Some(&[0; 3]), &[1; 3], &[30, 9, 9]);
        plan.check().unwrap();
        assert_eq!(shares(&plan, Phase::Prefill), entries([9; 3]));
        assert_eq!(shares(&plan, Phase::Decode), entries([30, 9, 9]));
        let plan = draft(Budget::Tokens(20), [20, 20, 20]).plan(Some(&[0; 3]), None);
        assert_eq!(shares(&plan, Phase::Prefill), [Some(Share::Part(1.0)); 3]);
    }

    #[test]
    fn layers_in_codes_hold_what_fits_in_the_same_bytes() {
        let formats = [None, Some(Codes::Q8), Some(Codes::Q4)];
        let candidates = candidates(&formats);
        let bytes = draft(&candidates, Budget::ByteRatio(0.5), [30; 3]);
        // The second policy in q4, the first in q8, the first in the cache's type.
        let picks = [5, 2, 0];
        let plan = bytes.plan(Some(&picks), Some(&[1; 3]));
        plan.check().unwrap();
        let kv: Vec<Option<Codes>> = plan.layers.iter().map(|layer| layer.kv).collect();
        assert_eq!(kv, [formats[2], formats[1], formats[0]]);
        let beside = bytes.cost.bytes_beside(formats[2]);
        let counts = [(6000 - beside) / 40, 6000 / 60, 30];
        let parts = counts.map(|count| Some(Share::Part(count as f64)));
        assert_eq!(shares(&plan, Phase::Prefill), parts);
        let stated = bytes.trial(Phase::Prefill, None, &picks, &[30; 3]);
        assert_eq!(stated.budget, Budget::Total(counts.iter().sum()));
        assert_eq!(bytes.in_cache_type(counts[0], formats[2]), 30);
        // At any length they share the bytes, all but what does not divide.
        let resolved = plan.resolve(400, &bytes.cost).unwrap();
        let held = resolved.layers.iter().zip([40, 60, 200]);
        let held: usize = held
            .map(|(layer, size)| layer.budget(Phase::Prefill).unwrap() * size)
            .sum();
        assert!(held + beside <= 60_000 && held + beside > 60_000 - 3 * 200);
        // A budget in entries is the same in every format.
        let entries = draft(&candidates, Budget::Tokens(20), [30, 15, 15]);
        let plan = entries.plan(Some(&picks), None);
        assert_eq!(shares(&plan, Phase::Prefill)[0], Some(Share::Entries(30)));
    }
}
