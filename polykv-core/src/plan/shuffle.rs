//! A control for a plan: the same rules in other layers.

use super::Plan;
use crate::random::splitmix;

impl Plan {
    /// The plan with its layers in a random order; the prefill and decode rules of a layer move together. Equal seeds give
    /// equal orders.
    #[must_use]
    pub fn shuffled(&self, seed: u64) -> Self {
        let mut order: Vec<usize> = (0..self.layers.len()).collect();
        let mut state = splitmix(seed);
        for last in (1..order.len()).rev() {
            state = splitmix(state);
            order.swap(last, (state % (last as u64 + 1)) as usize);
        }
        let layers = order.iter().map(|&layer| self.layers[layer].clone());
        Self {
            layers: layers.collect(),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PlanFile, Rule};
    use super::*;
    use crate::Registry;
    use crate::phase::Phase;

    #[test]
    fn a_shuffle_moves_whole_layers() {
        let text = "{schema: 1, layers: 6, budget: {tokens: 20},
            prefill: [{layers: 2-5, policy: h2o, tokens: 15}, {layers: 0-1, policy: tova, tokens: 30}],
            decode: [{layers: 0, policy: knorm}, {layers: 1-5, policy: tova, params: {protect_last: 2}}]}";
        let plan = PlanFile::from_yaml(text).unwrap();
        let plan = plan.build(&Registry::default()).unwrap();
        let whole = |plan: &Plan| -> Vec<String> {
            let name = |rule: &Rule| {
                rule.policy()
                    .map_or_else(String::new, |policy| policy.key())
            };
            let layers = plan.layers.iter();
            let key = |layer: &super::super::LayerPlan| {
                format!(
                    "{} {}",
                    name(layer.rule(Phase::Prefill)),
                    name(&layer.decode)
                )
            };
            layers.map(key).collect()
        };
        let sorted = |mut list: Vec<String>| {
            list.sort();
            list
        };
        let mut orders = std::collections::BTreeSet::new();
        for seed in 0..20 {
            let shuffled = plan.shuffled(seed);
            shuffled.check().unwrap();
            assert_eq!(shuffled.layers, plan.shuffled(seed).layers);
            assert_eq!(sorted(whole(&shuffled)), sorted(whole(&plan)));
            orders.insert(whole(&shuffled));
        }
        assert!(orders.len() > 10, "{}", orders.len());
    }
}
