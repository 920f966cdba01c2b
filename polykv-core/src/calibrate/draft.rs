use super::Candidate;
use crate::budget::Budget;
use crate::plan::{LayerRange, Plan, Rule};
use crate::policy::{Params, Phase};

/// What a plan is made of.
#[derive(Clone, Debug)]
pub struct Draft<'a> {
    pub candidates: &'a [Candidate],
    pub layers: usize,
    pub budget: Budget,
    /// Fingerprint of the model.
    pub model: Option<String>,
    /// Budgets per layer for each phase, empty for the same in all layers.
    pub budgets: [Vec<usize>; 2],
    /// An allocator that splits the budget per prompt instead.
    pub online: Option<String>,
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
        let full = Plan::uniform(self.layers, "full", Params::new(), self.budget, &[]);
        let mut plan = Plan {
            model: self.model.clone(),
            online: self.online.clone(),
            ..full
        };
        for (phase, picks) in [(Phase::Prefill, prefill), (Phase::Decode, decode)] {
            if let Some(picks) = picks {
                plan.set_layers(phase, self.rules(self.budgets(phase), picks));
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

    /// As [`Self::with`] for other budgets of `phase`, whose sum need not be the total: the plan names the entries of each
    /// layer, whatever the prompt's length.
    pub fn trial(
        &self,
        phase: Phase,
        prefill: Option<&[usize]>,
        picks: &[usize],
        budgets: &[usize],
    ) -> Plan {
        let mut draft = self.with_budgets(phase, budgets);
        let most = draft.budgets.iter().flatten().max();
        draft.budget = Budget::Tokens(most.copied().unwrap_or(1));
        Plan {
            unbalanced: true,
            ..draft.with(phase, prefill, picks)
        }
    }

    fn rules(&self, budgets: &[usize], picks: &[usize]) -> Vec<Rule> {
        let (least, most) = (budgets.iter().min(), budgets.iter().max());
        let uneven = match self.budget {
            Budget::Tokens(tokens) => budgets.iter().any(|&own| own != tokens),
            // A split that differs by what does not divide is what a plan without shares means.
            _ => least
                .zip(most)
                .is_some_and(|(least, most)| most - least > 1),
        };
        let rule = |(layer, &pick): (usize, &usize)| {
            let own = &self.candidates[pick];
            let mut rule = Rule::new(LayerRange::all(1), own.policy.clone());
            rule.params = own.params.clone();
            if uneven {
                match self.budget {
                    Budget::Tokens(_) => rule.tokens = Some(budgets[layer]),
                    _ => rule.share = Some(budgets[layer] as f64),
                }
            }
            rule
        };
        picks.iter().enumerate().map(rule).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_become_valid_plans() {
        let candidates = Candidate::parse_list("tova,snapkv:window=8").unwrap();
        let draft = |budget, budgets: &[usize]| Draft {
            candidates: &candidates,
            layers: 3,
            budget,
            model: None,
            budgets: [budgets.to_vec(), Vec::new()],
            online: None,
        };
        let plan = draft(Budget::Tokens(20), &[30, 15, 15]).plan(Some(&[0, 1, 1]), None);
        plan.validate("draft").unwrap();
        let tokens: Vec<_> = plan.prefill.iter().map(|rule| rule.tokens).collect();
        assert_eq!(tokens, [Some(30), Some(15)]);
        assert_eq!(plan.prefill[1].params["window"], 8);
        assert_eq!(plan.decode[0].policy, "full");
        let plan =
            draft(Budget::Ratio(0.5), &[30, 15, 15]).plan(Some(&[0, 1, 0]), Some(&[1, 1, 1]));
        plan.validate("draft").unwrap();
        assert_eq!((plan.prefill.len(), plan.decode.len()), (3, 1));
        assert_eq!(plan.prefill[0].share, Some(30.0));
        let even = draft(Budget::Ratio(0.5), &[9; 3]);
        let plan = even.trial(Phase::Decode, Some(&[0; 3]), &[1; 3], &[30, 9, 9]);
        plan.validate("draft").unwrap();
        let tokens = |rules: &[Rule]| rules.iter().map(|rule| rule.tokens).collect::<Vec<_>>();
        assert_eq!(tokens(&plan.prefill), [Some(9)]);
        assert_eq!(tokens(&plan.decode), [Some(30), Some(9)]);
        let plan = draft(Budget::Tokens(20), &[20, 20, 20]).plan(Some(&[0; 3]), None);
        assert_eq!(
            (plan.prefill[0].tokens, plan.prefill[0].share),
            (None, None)
        );
    }
}
