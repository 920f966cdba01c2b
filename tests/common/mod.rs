//! Policies and plans by name, and what all prompts here do.

#![allow(dead_code, reason = "each test file uses a part of it")]

use burn::tensor::Tensor;
use polykv::policy::{Params, Policies};
use polykv::testing::variants;
use polykv::{Budget, Error, Phase, Plan, PlanFile, Policy, Prompt, PromptCache, Registry, Rule};
use std::sync::Arc;

/// A policy of ours with parameters as a YAML map.
pub fn policy(name: &str, params: &str) -> Arc<dyn Policy> {
    let params = Params::from_yaml(params).unwrap();
    Policies::default().build(name, &params).unwrap()
}

/// A rule of a policy of ours with its default parameters.
pub fn rule(name: &str) -> Rule {
    Rule::evict(policy(name, "{}"))
}

/// One policy of ours with its default parameters in all layers.
pub fn uniform(layers: usize, name: &str, budget: Budget, phases: &[Phase]) -> Plan {
    Plan::uniform(layers, policy(name, "{}"), budget, phases)
}

/// Every policy of ours with each of its variants.
pub fn all_variants() -> Vec<Arc<dyn Policy>> {
    variants(&Policies::default()).unwrap()
}

/// Every policy of ours with its first variant.
pub fn each_policy() -> Vec<Arc<dyn Policy>> {
    let policies = Policies::default();
    let first = |entry: &polykv::policy::PolicyEntry| policy(&entry.name, &entry.variants[0]);
    policies.iter().map(first).collect()
}

/// A plan as text, for messages.
pub fn written(plan: &Plan) -> String {
    PlanFile::of(plan, &Registry::default()).to_yaml()
}

/// A plan from a plan file's text.
pub fn plan(text: &str) -> Plan {
    let file = PlanFile::from_yaml(text).unwrap();
    file.build(&Registry::default()).unwrap()
}

/// Gives the layer that is next a repetition of its prompt, if a policy asks for one.
pub fn repeat<C: PromptCache>(
    prompt: &mut Prompt<C>,
    layer: usize,
    [q, k, v]: [Tensor<4>; 3],
) -> Result<(), Error> {
    match layer < prompt.layers_to_repeat() {
        true => prompt.repeat(layer, q, k, v).map(drop),
        false => Ok(()),
    }
}
