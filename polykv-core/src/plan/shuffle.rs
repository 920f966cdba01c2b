//! Controls for a plan: the same rules, policies or budgets in other layers.

use super::{Plan, Rule};
use crate::phase::Phase;
use crate::random::splitmix;

/// What [`Plan::shuffled`] moves to other layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Moved {
    /// Whole layers: a layer's policies and budgets of both phases move together.
    #[default]
    Layers,
    /// The policies. Every layer keeps its budgets, so that the control says what the route adds to them.
    Policies,
    /// The budgets with the formats of entries and the parts of KV heads. Every layer keeps its policies, so that the control says what the budgets add
    /// to the route.
    Budgets,
}

impl Plan {
    /// The plan with whole layers, or only their policies or budgets, in a random order. Where policies or budgets move by
    /// themselves, layers that keep everything in a phase stay as they are in it. Equal seeds give equal orders.
    #[must_use]
    pub fn shuffled(&self, seed: u64, moved: Moved) -> Self {
        let mut plan = self.clone();
        if moved == Moved::Layers {
            let order = order(self.layers.len(), seed);
            plan.layers = order
                .iter()
                .map(|&from| self.layers[from].clone())
                .collect();
            return plan;
        }
        let mut formats = moved == Moved::Budgets;
        for phase in Phase::BOTH {
            let evicts = |layer: &usize| self.layers[*layer].rule(phase).policy().is_some();
            let evicting: Vec<usize> = (0..self.layers.len()).filter(evicts).collect();
            for (&to, from) in evicting.iter().zip(order(evicting.len(), seed)) {
                let there = self.layers[to].rule(phase);
                let other = self.layers[evicting[from]].rule(phase);
                *plan.layers[to].rule_mut(phase) = match moved {
                    Moved::Budgets => with_share_of(there, other),
                    _ => with_share_of(other, there),
                };
                if formats {
                    let other = &self.layers[evicting[from]];
                    plan.layers[to].kv = other.kv;
                    plan.layers[to].heads.clone_from(&other.heads);
                }
            }
            formats &= evicting.is_empty();
        }
        plan
    }
}

/// The policy of one rule with the share of another.
fn with_share_of(policy: &Rule, share: &Rule) -> Rule {
    match share {
        Rule::Evict { share, .. } => policy.clone().with_share(*share),
        Rule::Keep => Rule::Keep,
    }
}

/// The numbers below `count` in a random order (Fisher and Yates).
fn order(count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut state = splitmix(seed);
    for last in (1..count).rev() {
        state = splitmix(state);
        order.swap(last, (state % (last as u64 + 1)) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::super::{LayerPlan, PlanFile, Share};
    use super::*;
    use crate::{Codes, Registry};
    use std::collections::BTreeSet;

    fn plan() -> Plan {
        let text = "{schema: 1, layers: 6, budget: {tokens: 20},
            prefill: [{layers: 2-5, policy: h2o, tokens: 15}, {layers: 0-1, policy: tova, tokens: 30}],
            decode: [{layers: 0, policy: knorm}, {layers: 1-5, policy: tova, params: {protect_last: 2}}]}";
        let file = PlanFile::from_yaml(text).unwrap();
        file.build(&Registry::default()).unwrap()
    }

    fn sorted(mut list: Vec<String>) -> Vec<String> {
        list.sort();
        list
    }

    fn names(plan: &Plan, phase: Phase) -> Vec<String> {
        let name = |rule: &Rule| rule.policy().map(|policy| policy.key());
        plan.rules(phase)
            .map(|rule| name(rule).unwrap_or_default())
            .collect()
    }

    fn shares(plan: &Plan, phase: Phase) -> Vec<String> {
        let share = |rule: &Rule| match rule {
            Rule::Keep => None,
            Rule::Evict { share, .. } => Some(*share),
        };
        plan.rules(phase)
            .map(|rule| format!("{:?}", share(rule)))
            .collect()
    }

    #[test]
    fn a_shuffle_moves_whole_layers() {
        let plan = plan();
        let whole = |plan: &Plan| -> Vec<String> {
            let key = |layer: &LayerPlan| format!("{layer:?}");
            plan.layers.iter().map(key).collect()
        };
        let mut orders = BTreeSet::new();
        for seed in 0..20 {
            let shuffled = plan.shuffled(seed, Moved::Layers);
            shuffled.check().unwrap();
            assert_eq!(shuffled.layers, plan.shuffled(seed, Moved::Layers).layers);
            assert_eq!(sorted(whole(&shuffled)), sorted(whole(&plan)));
            orders.insert(whole(&shuffled));
        }
        assert!(orders.len() > 10, "{}", orders.len());
    }

    #[test]
    fn policies_and_budgets_move_apart() {
        let mut plan = plan();
        plan.layers[2].prefill = Rule::Keep;
        plan.layers[5].kv = Some(Codes::Q4);
        let phase = Phase::Prefill;
        let codes = |plan: &Plan| -> Vec<bool> {
            let layers = plan.layers.iter();
            layers.map(|layer| layer.kv.is_some()).collect()
        };
        let (mut routes, mut budgets) = (BTreeSet::new(), BTreeSet::new());
        for seed in 0..20 {
            let routed = plan.shuffled(seed, Moved::Policies);
            assert_eq!(shares(&routed, phase), shares(&plan, phase));
            assert_eq!(sorted(names(&routed, phase)), sorted(names(&plan, phase)));
            assert_eq!(codes(&routed), codes(&plan));
            routes.insert(names(&routed, phase));
            let given = plan.shuffled(seed, Moved::Budgets);
            assert_eq!(names(&given, phase), names(&plan, phase));
            assert_eq!(sorted(shares(&given, phase)), sorted(shares(&plan, phase)));
            // The format goes where its layer's budget goes, to one of those that evict.
            assert_eq!(codes(&given).iter().filter(|coded| **coded).count(), 1);
            budgets.insert((shares(&given, phase), codes(&given)));
            for shuffled in [routed, given] {
                shuffled.check().unwrap();
                assert_eq!(shuffled.layers[2].prefill, Rule::Keep);
            }
        }
        assert!(
            routes.len() > 5 && budgets.len() > 5,
            "{routes:?}, {budgets:?}"
        );
    }

    #[test]
    fn the_policies_of_a_uniform_plan_have_nowhere_to_go() {
        let mut plan = plan();
        let policy = plan.layers[0].prefill.policy().unwrap().clone();
        for (layer, rules) in plan.layers.iter_mut().enumerate() {
            rules.prefill = Rule::evict(policy.clone()).with_share(Share::Entries(10 + layer));
        }
        for seed in 0..5 {
            let rules = |plan: &Plan| plan.rules(Phase::Prefill).cloned().collect::<Vec<_>>();
            assert_eq!(rules(&plan.shuffled(seed, Moved::Policies)), rules(&plan));
        }
    }
}
