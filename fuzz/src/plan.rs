//! A plan file: parsed, built, written again, and resolved for prompts of several lengths.

use polykv_core::budget::EntryCost;
use polykv_core::plan::Resolved;
use polykv_core::{Phase, Plan, PlanFile, Registry, Rule};

const PROMPTS: [usize; 6] = [1, 2, 63, 1000, 131_072, 1 << 26];
/// Bytes of an entry.
const BYTES: usize = 1536;

pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match PlanFile::from_yaml(text) {
        Ok(file) => parsed(&file),
        Err(error) => super::refused(&error),
    }
}

fn parsed(file: &PlanFile) {
    let written = file.to_yaml();
    let again = PlanFile::from_yaml(&written).expect("a plan that can be read again");
    assert_eq!(again.to_yaml(), written);
    let registry = Registry::default();
    let plan = match file.build(&registry) {
        Ok(plan) => plan,
        Err(error) => return super::refused(&error),
    };
    plan.check().expect("a plan that is valid");
    let again = PlanFile::of(&plan, &registry).build(&registry);
    let again = again.expect("a plan that can be written");
    assert_eq!(again.layers, plan.layers);
    let cost = EntryCost {
        windows: vec![None; plan.layers.len()].into(),
        bytes: BYTES,
        half: BYTES,
        coded: [BYTES; 2],
    };
    for prompt in PROMPTS {
        match plan.resolve(prompt, &cost) {
            Ok(resolved) => check(&plan, &resolved, prompt, &cost),
            Err(error) => super::refused(&error),
        }
    }
}

/// A resolved plan spends its budget and no more, and gives each layer what its policy protects.
fn check(plan: &Plan, resolved: &Resolved, prompt: usize, cost: &EntryCost) {
    assert_eq!(resolved.layers.len(), plan.layers.len());
    for phase in Phase::BOTH {
        let full = plan
            .rules(phase)
            .filter(|rule| **rule == Rule::Keep)
            .count();
        if full == plan.layers.len() {
            continue;
        }
        let total = plan.most_entries(prompt, cost);
        let found = resolved.total(phase);
        if plan.allow_full_extra {
            assert!(found <= total, "{phase} has {found} of {total}");
        } else {
            assert!(
                found <= total - full * prompt,
                "{phase} has {found} of {total}"
            );
        }
        for eviction in resolved.layers.iter().filter_map(|layer| layer.of(phase)) {
            let protected = eviction.policy.protect(eviction.budget).count();
            assert!(eviction.budget >= protected.max(1));
        }
    }
}
