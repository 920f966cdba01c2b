use crate::allocate::Allocator;
use crate::budget::Budget;
use crate::phase::Phase;
use crate::plan::{LayerPlan, Plan, Rule, Share};
use crate::policy::Policy;
use std::sync::Arc;

/// What a plan is made of.
#[derive(Clone, Debug)]
pub struct Draft<'a> {
    /// What indices in routes stand for.
    pub candidates: &'a [Arc<dyn Policy>],
    /// The model's layers.
    pub layers: usize,
    /// The plan's budget.
    pub budget: Budget,
    /// Budgets per layer for each phase, empty for the same in all layers.
    pub budgets: [Vec<usize>; 2],
    /// An allocator that splits the budget per prompt instead.
    pub online: Option<Arc<dyn Allocator>>,
}

impl Draft<'_> {
    /// The budgets of one phase.
    pub fn budgets(&self, phase: Phase) -> &[usize] {
        match phase {
            Phase::Prefill => &self.budgets[0],
            Phase::Decode => &self.budgets[1],
        }
    }

    /// The plan with a candidate per layer; a phase without any keeps everything.
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

    /// The plan in which `phase` has a candidate per layer; the prefill has `prefill` if that is the decode phase.
    pub fn with(&self, phase: Phase, prefill: Option<&[usize]>, picks: &[usize]) -> Plan {
        match phase {
            Phase::Prefill => self.plan(Some(picks), None),
            Phase::Decode => self.plan(prefill, Some(picks)),
        }
    }

    /// The draft with other budgets in one phase.
    pub fn with_budgets(&self, phase: Phase, budgets: &[usize]) -> Self {
        let mut draft = self.clone();
        match phase {
            Phase::Prefill => draft.budgets[0] = budgets.to_vec(),
            Phase::Decode => draft.budgets[1] = budgets.to_vec(),
        }
        draft
    }

    /// The plan of [`Draft::with`] for other budgets of `phase`, whatever their sum: it states the entries of each layer
    /// for prompts of any length.
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
        let draft = |budget, budgets: &[usize]| Draft {
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
