//! A plan layer by layer.

use super::{LayerRange, Plan, Rule};
use crate::policy::{Phase, splitmix};

impl Plan {
    /// A valid plan's rules of one phase, one per layer.
    pub fn by_layer(&self, phase: Phase) -> Vec<Rule> {
        let mut layers: Vec<Rule> = self
            .rules(phase)
            .iter()
            .flat_map(|rule| {
                (rule.layers.first..=rule.layers.last).map(|layer| Rule {
                    layers: LayerRange {
                        first: layer,
                        last: layer,
                    },
                    ..rule.clone()
                })
            })
            .collect();
        layers.sort_by_key(|rule| rule.layers.first);
        layers
    }

    /// Replaces a phase's rules by one per layer, from layer 0 on; their own ranges are ignored, and equal neighbours become
    /// one rule.
    pub fn set_layers(&mut self, phase: Phase, rules: Vec<Rule>) {
        let mut joined: Vec<Rule> = Vec::new();
        for (layer, rule) in rules.into_iter().enumerate() {
            let range = LayerRange {
                first: layer,
                last: layer,
            };
            let rule = Rule {
                layers: range,
                ..rule
            };
            match joined.last_mut() {
                Some(last)
                    if (Rule {
                        layers: range,
                        ..last.clone()
                    }) == rule =>
                {
                    last.layers.last = layer;
                }
                _ => joined.push(rule),
            }
        }
        match phase {
            Phase::Prefill => self.prefill = joined,
            Phase::Decode => self.decode = joined,
        }
    }

    /// The control for a plan: the same rules with their budgets in permuted layers. A layer's prefill and decode rules
    /// move together. The same seed gives the same order.
    pub fn shuffled(&self, seed: u64) -> Self {
        let mut order: Vec<usize> = (0..self.layers).collect();
        let mut state = splitmix(seed);
        for last in (1..order.len()).rev() {
            state = splitmix(state);
            order.swap(last, (state % (last as u64 + 1)) as usize);
        }
        let mut plan = self.clone();
        for phase in [Phase::Prefill, Phase::Decode] {
            let rules = self.by_layer(phase);
            let permuted = order.iter().map(|&layer| rules[layer].clone()).collect();
            plan.set_layers(phase, permuted);
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let text = "{schema: 1, layers: 6, budget: {tokens: 20},
            prefill: [{layers: 2-5, policy: h2o, tokens: 15}, {layers: 0-1, policy: tova, tokens: 30}],
            decode: [{layers: 0, policy: knorm}, {layers: 1-5, policy: tova, params: {protect_last: 2}}]}";
        Plan::from_yaml("test", text).unwrap()
    }

    #[test]
    fn layers_and_ranges_are_two_forms_of_one_plan() {
        let plan = plan();
        let rules = plan.by_layer(Phase::Prefill);
        let policies: Vec<&str> = rules.iter().map(|rule| rule.policy.as_str()).collect();
        assert_eq!(policies, ["tova", "tova", "h2o", "h2o", "h2o", "h2o"]);
        let mut other = plan.clone();
        other.set_layers(Phase::Prefill, rules);
        let ranges: Vec<String> = other
            .prefill
            .iter()
            .map(|rule| rule.layers.to_string())
            .collect();
        assert_eq!(ranges, ["0-1", "2-5"]);
        assert_eq!(
            other.by_layer(Phase::Prefill),
            plan.by_layer(Phase::Prefill)
        );
        other.validate("test").unwrap();
    }

    #[test]
    fn a_shuffle_moves_whole_layers() {
        let plan = plan();
        let whole = |plan: &Plan| -> Vec<String> {
            let prefill = plan.by_layer(Phase::Prefill).into_iter();
            let both = prefill.zip(plan.by_layer(Phase::Decode));
            both.map(|(a, b)| format!("{} {:?} {} {:?}", a.policy, a.tokens, b.policy, b.params))
                .collect()
        };
        let sorted = |mut list: Vec<String>| {
            list.sort();
            list
        };
        let mut orders = std::collections::BTreeSet::new();
        for seed in 0..20 {
            let shuffled = plan.shuffled(seed);
            shuffled.validate("test").unwrap();
            assert_eq!(shuffled, plan.shuffled(seed));
            assert_eq!(sorted(whole(&shuffled)), sorted(whole(&plan)));
            orders.insert(whole(&shuffled));
        }
        assert!(orders.len() > 10, "{}", orders.len());
    }
}
