use crate::allocate::Allocator;
use crate::budget::Budget;
use crate::phase::Phase;
use crate::plan::{LayerPlan, Plan, Rule, Share};
use crate::policy::Policy;
use std::sync::Arc;

/// Everything of a plan but the choice of a candidate for each layer.
#[derive(Clone, Debug)]
pub struct PlanDraft<'a> {
    /// The policies that routes name by index.
    pub candidates: &'a [Arc<dyn Policy>],
    /// The number of the model's layers.
    pub layers: usize,
    /// The plan's budget.
    pub budget: Budget,
    /// Entries per KV head in each layer, for the prefill and for the decode phase; empty for equal budgets in all layers.
    pub budgets: [Vec<usize>; 2],
    /// An allocator that splits the budget anew for each prompt, if the plan names one; then there are no budgets.
    pub online: Option<Arc<dyn Allocator>>,
}

impl PlanDraft<'_> {
    /// The budgets of one phase in entries per KV head, one per layer.
    pub fn budgets(&self, phase: Phase) -> &[usize] {
        match phase {
            Phase::Prefill => &self.budgets[0],
            Phase::Decode => &self.budgets[1],
        }
    }

    /// The plan with these candidates, an index per layer for each phase. In a phase with `None` it keeps everything.
    #[must_use]
    pub fn plan(&self, prefill: Option<&[usize]>, decode: Option<&[usize]>) -> Plan {
        let mut plan = Plan::new(vec![LayerPlan::KEEP; self.layers], self.budget);
        plan.online = self.online.clone();
        for (phase, picks) in [(Phase::Prefill, prefill), (Phase::Decode, decode)] {
            if let Some(picks) = picks {
                plan.set_rules(phase, self.rules(self.budgets(phase), picks));
            }
        }
        plan
    }

    /// The plan in which `phase` has the candidates `picks`, an index per layer. If `phase` is the decode phase, the prefill
    /// has the candidates `prefill`; otherwise the decode phase keeps everything.
    #[must_use]
    pub fn with(&self, phase: Phase, prefill: Option<&[usize]>, picks: &[usize]) -> Plan {
        match phase {
            Phase::Prefill => self.plan(Some(picks), None),
            Phase::Decode => self.plan(prefill, Some(picks)),
        }
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
        let mut draft = self.with_budgets(phase, budgets);
        let sums = draft.budgets.iter().map(|budgets| budgets.iter().sum());
        draft.budget = Budget::Total(sums.max().unwrap_or(1));
        draft.with(phase, prefill, picks)
    }

    fn rules(&self, budgets: &[usize], picks: &[usize]) -> Vec<Rule> {
        let (least, most) = (budgets.iter().min(), budgets.iter().max());
        let entries = matches!(self.budget, Budget::Tokens(_) | Budget::Total(_));
        let uneven = match self.budget {
            Budget::Tokens(tokens) => budgets.iter().any(|&budget| budget != tokens),
            Budget::Total(_) => !budgets.is_empty(),
            // A split that differs by what does not divide is what a plan without shares means.
            _ => least
                .zip(most)
                .is_some_and(|(least, most)| most - least > 1),
        };
        let rule = |(layer, &pick): (usize, &usize)| {
            let rule = Rule::evict(self.candidates[pick].clone());
            match (uneven, entries) {
                (false, _) => rule,
                (true, true) => rule.with_share(Share::Entries(budgets[layer])),
                (true, false) => rule.with_share(Share::Part(budgets[layer] as f64)),
            }
        };
        picks.iter().enumerate().map(rule).collect()
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

    #[test]
    fn drafts_become_valid_plans() {
        let policies = Policies::default();
        let candidates = ["{}", "{window: 8}"].map(|params| {
            let name = if params == "{}" { "tova" } else { "snapkv" };
            policies
                .build(name, &Params::from_yaml(params).unwrap())
                .unwrap()
        });
        let draft = |budget, budgets: &[usize]| PlanDraft {
            candidates: &candidates,
            layers: 3,
            budget,
            budgets: [budgets.to_vec(), Vec::new()],
            online: None,
        };
        let entries = |budgets: [usize; 3]| budgets.map(|budget| Some(Share::Entries(budget)));
        let plan = draft(Budget::Tokens(20), &[30, 15, 15]).plan(Some(&[0, 1, 1]), None);
        plan.check().unwrap();
        assert_eq!(shares(&plan, Phase::Prefill), entries([30, 15, 15]));
        assert_eq!(shares(&plan, Phase::Decode), [None; 3]);
        assert_eq!(
            plan.layers[1].prefill.policy().unwrap().key(),
            candidates[1].key()
        );
        let plan =
            draft(Budget::Ratio(0.5), &[30, 15, 15]).plan(Some(&[0, 1, 0]), Some(&[1, 1, 1]));
        plan.check().unwrap();
        assert_eq!(shares(&plan, Phase::Prefill)[0], Some(Share::Part(30.0)));
        assert_eq!(shares(&plan, Phase::Decode), [Some(Share::Part(1.0)); 3]);
        let even = draft(Budget::Ratio(0.5), &[9; 3]);
        let plan = even.trial(Phase::Decode, Some(&[0; 3]), &[1; 3], &[30, 9, 9]);
        plan.check().unwrap();
        assert_eq!(shares(&plan, Phase::Prefill), entries([9; 3]));
        assert_eq!(shares(&plan, Phase::Decode), entries([30, 9, 9]));
        let plan = draft(Budget::Tokens(20), &[20, 20, 20]).plan(Some(&[0; 3]), None);
        assert_eq!(shares(&plan, Phase::Prefill), [Some(Share::Part(1.0)); 3]);
    }
}
